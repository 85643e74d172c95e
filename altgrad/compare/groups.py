"""Groups: runs that differ in nothing but the seed, and the fields in which a group differs from the other groups.

Runs that differ in any other field are in different groups.  A group with two learning rates would have a mean that
belongs to neither: the gaps +0.10 and +0.12 at 3e-4 with +1.10 and +1.12 at 1e-2 would have the mean +0.61.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from altgrad.compare.pairing import describe_field
from altgrad.compare.row import Row, Unpaired
from altgrad.text.error_hints import did_you_mean, shown


def by_group(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """`Row.group` -> its rows, which differ in nothing but the seed."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def find_group(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows of the group with that label, or of the group of the run with that name.

    Raises ValueError, with the nearest known name, if there is none, or if several groups share the label.
    """
    groups = by_group(rows)
    found = [members for members in groups.values() if any(name in (row.group_label, row.run) for row in members)]
    if len(found) == 1:
        return found[0]
    if found:
        runs = ", ".join(members[0].run for members in found)
        raise ValueError(f"{shown(name)} is the label of {len(found)} groups; name one by a run of it: {runs}")
    known = dict.fromkeys(row.group_label for row in rows)
    raise ValueError(f"no group or run {shown(name)}{did_you_mean(name, known)}; groups: {', '.join(known)}")


def with_settings(members: Sequence[Unpaired]) -> list[Unpaired]:
    """The members with `group` and `differs` filled in their rows: the fields in which these members differ."""
    models = _models(members)
    varying = _varying([member.settings.others for member in members])
    result = []
    for member in members:
        said = [describe_field(name, member.settings.others.get(name)) for name in varying]
        group, known = member.settings.group, models[member.settings.group]
        if len(known) > 1:  # the user trained several models with one config
            vocabulary, parameters = member.origin.model or known[0]
            group += f"{vocabulary} {parameters}"
            said.append(f"model of {parameters} parameters, vocabulary {vocabulary}")
        result.append(replace(member, row=replace(member.row, group=group, differs=tuple(said))))
    return result


def _varying(fields: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the fields that do not have the same value in all of these mappings."""
    names = dict.fromkeys(name for one in fields for name in one)
    return [name for name in names if len({repr(one.get(name)) for one in fields}) > 1]


def _models(members: Iterable[Unpaired]) -> dict[str, list[tuple[Any, Any]]]:
    """Group -> its distinct models as (vocabulary, parameters); empty if no run of the group recorded its model."""
    found: dict[str, list[tuple[Any, Any]]] = {}
    for member in members:
        known = found.setdefault(member.settings.group, [])
        if member.origin.model is not None and member.origin.model not in known:
            known.append(member.origin.model)
    return found

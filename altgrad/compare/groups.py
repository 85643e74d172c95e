"""Groups: runs that differ in nothing but the seed, and what sets a group apart from the others beside it.

Every field that differs within the comparison tells groups apart, whatever it is.  Two learning rates in one group
would have a mean that belongs to neither: seeds +0.10, +0.12 at 3e-4 and +1.10, +1.12 at 1e-2 make "+0.61".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from altgrad.compare.pairing import describe_field
from altgrad.compare.row import Row, Unpaired


def by_group(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by `Row.group`: those of one list differ in nothing but the seed."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def with_settings(members: Sequence[Unpaired]) -> list[Unpaired]:
    """The members, each row with its group and with the fields (`differs`) that set it apart within these members."""
    models = _models(members)
    varying = _varying([member.settings.others for member in members])
    result = []
    for member in members:
        said = [describe_field(name, member.settings.others.get(name)) for name in varying]
        group, known = member.settings.group, models[member.settings.group]
        if len(known) > 1:  # several models were given to the runner under one config
            vocabulary, parameters = member.origin.model or known[0]
            group += f"{vocabulary} {parameters}"
            said.append(f"model of {parameters} parameters, vocabulary {vocabulary}")
        result.append(replace(member, row=replace(member.row, group=group, differs=tuple(said))))
    return result


def _varying(fields: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the fields that do not have the same value everywhere."""
    names = dict.fromkeys(name for one in fields for name in one)
    return [name for name in names if len({repr(one.get(name)) for one in fields}) > 1]


def _models(members: Iterable[Unpaired]) -> dict[str, list[tuple[Any, Any]]]:
    """The models that were trained with the settings of each group; none where no run lived to say."""
    found: dict[str, list[tuple[Any, Any]]] = {}
    for member in members:
        known = found.setdefault(member.settings.group, [])
        if member.origin.model is not None and member.origin.model not in known:
            known.append(member.origin.model)
    return found

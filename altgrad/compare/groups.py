"""Groups: runs that differ in nothing but the seed, and the tasks within which groups can be compared.

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


def by_task(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """`Row.task` -> its rows, in their order: losses and gaps are ranked, pooled and judged only among these.

    Of another task, model, data set, length of a run or unit a loss is another quantity, and a gap of 0.1 another feat.
    """
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row.task, []).append(row)
    return tasks


def tasks_note(rows: Iterable[Row]) -> str | None:
    """That the rows are of several tasks, and in what these differ; None if they are of one."""
    labels = [own[0].task_label for own in by_task(rows).values()]
    if len(labels) < 2:
        return None
    return (
        f"Losses of {len(labels)} different tasks, models or data sets are no common measure: runs are compared, "
        f"ranked and judged only within each ({'; '.join(labels)})."
    )


def with_settings(members: Sequence[Unpaired]) -> list[Unpaired]:
    """The members with group, task, and what differs among these members filled in their rows."""
    recorded = _recorded(members)
    varying = _varying([member.settings.others for member in members])
    result = []
    for member in members:
        fields = {name: describe_field(name, member.settings.others.get(name)) for name in varying}
        known = recorded[member.settings.task]
        own = next((one for one in known if _is_of(member, one)), ("", None))
        words = _told_apart(own, known)
        said = (*fields.values(), *words)
        group = member.settings.group + (repr(own) if len(known) > 1 else "")
        of_task = [text for name, text in fields.items() if name in member.settings.task_fields]
        row = replace(member.row, group=group, differs=said, task=member.settings.task + repr(own))
        result.append(replace(member, row=replace(row, task_label=", ".join([*of_task, *words]))))
    return result


def _varying(fields: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the fields that do not have the same value in all of these mappings."""
    names = dict.fromkeys(name for one in fields for name in one)
    return [name for name in names if len({repr(one.get(name)) for one in fields}) > 1]


_Task = tuple[str, tuple[Any, Any, Any] | None]  # unit of the loss, and `Origin.task`


def _recorded(members: Iterable[Unpaired]) -> dict[str, list[_Task]]:
    """`Settings.task` -> what distinguishes runs of that config: the user trained several tasks or models with it."""
    found: dict[str, list[_Task]] = {}
    for member in sorted(members, key=lambda member: (member.origin.task is None, member.row.run)):
        known = found.setdefault(member.settings.task, [])
        if not any(_is_of(member, one) for one in known):
            known.append((member.row.loss_unit, member.origin.task))
    return found


def _is_of(member: Unpaired, task: _Task) -> bool:
    unit, recorded = task
    return member.row.loss_unit == unit and (recorded is None or member.origin.same_task(recorded))


def _told_apart(own: _Task, known: Sequence[_Task]) -> list[str]:
    """In words that in which a task differs from the others of its config."""
    said = []
    if len({unit for unit, _ in known}) > 1:
        said.append(f"loss in {own[0] or 'an unknown unit'}")
    tasks = [task for _, task in known if task is not None]
    if own[1] is None:
        return said
    task_hash, vocabulary, parameters = own[1]
    if len({task[1:] for task in tasks}) > 1:
        said.append(f"model of {parameters} parameters, vocabulary {vocabulary}")
    if len({task[0] for task in tasks}) > 1:
        said.append(f"task {str(task_hash)[:8]}")
    return said

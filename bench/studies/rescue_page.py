"""The page of the study `rescue`: which act saves which fault, why none does, and what the controls say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from altgrad.compare.statistics import interval

RUNGS = ("skip", "rate", "rollback", "shift", "bf16", "ladder", "clip")
# Why no act saves a run, for the page; shown while that is so.  The numbers are those of seed 3.
WHY_NOT: Mapping[str, str] = {
    "E4M3 stored": "the shift to BF16 moves the weights again (realised displacement 0.03 before, 1.0 after) and turns "
    "the gap (0.73 at step 78, 0.59 at step 120). But it comes at step 61, once the weights were frozen in two "
    "diagnostic intervals, and the verdict, whose patience of 40 steps has run since step 41, comes at step 80, before "
    "the smoothed gap has fallen",
    "explosion (rate x 32)": "at 32 times the rate from the first step on the loss does not rise far, it stops "
    "falling: it lies between 3.0 and 3.8 from step 9 on, where BF16 goes down to 2.7. After the warm-up it is not "
    "`rescue_margin` (0.5) above its best, so that the ladder, which sees the loss of its own run alone, finds no "
    "trouble, and a cut during the warm-up is back at 32 times the rate after 25 steps",
}


def acts_per_kind(row: Mapping[str, Any]) -> dict[str, int]:
    """Act -> how often a run did it."""
    rungs = [act["rung"] for act in row["acts"]]
    return {rung: rungs.count(rung) for rung in dict.fromkeys(rungs)}


def page(head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The study as markdown."""
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        "# Which act saves which collapse?",
        "",
        f"`{head['command']}`, {head['date']}, {head['machine']['processor']}, torch {head['machine']['torch']}. "
        f"`micro` with one block, {len(seeds)} paired seeds; a run is saved if no collapse rule judges it. "
        "In brackets: gap of the saved runs to the BF16 run of their seed at the end, smoothed training loss, nats, "
        "mean and 95 % t interval.",
        "",
        "| fault | " + " | ".join(("none", *RUNGS)) + " |",
        "| --- |" + " --- |" * (len(RUNGS) + 1),
    ]
    faults = list(dict.fromkeys(row["fault"] for row in rows))
    for fault in faults:
        cells = [_cell(_of(rows, fault, rung, "acts")) for rung in ("none", *RUNGS)]
        lines.append(f"| {fault} | " + " | ".join(cells) + " |")
    lines += _why_not(rows, faults)
    lines += [
        "",
        "Against its controls, for every act that was taken: saved with the act when it saw fit, with the same acts at "
        "random steps, and without any act but with the mean learning rate of the rescued run from the start.",
        "",
        "| fault | act | acts per run | saved | at random steps | equal rate from the start |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for fault in faults:
        for rung in RUNGS:
            acted = [row for row in _of(rows, fault, rung, "acts") if row["acts"]]
            if not acted or not _of(rows, fault, rung, "random"):
                continue
            kinds = dict.fromkeys(kind for row in acted for kind in acts_per_kind(row))
            per = ", ".join(
                f"{kind} {sum(acts_per_kind(row).get(kind, 0) for row in acted) / len(acted):.1f}" for kind in kinds
            )
            rates = _of(rows, fault, rung, "rate")
            share = sum(row["share"] for row in acted) / len(acted)
            equal = f"{_cell(rates)} at {share:.0%}" if rates else "the same rate"
            cells = [fault, f"`{rung}`", per, _cell(acted), _cell(_of(rows, fault, rung, "random")), equal]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _why_not(rows: Sequence[Mapping[str, Any]], faults: Sequence[str]) -> list[str]:
    """A sentence for each fault of which no act saves a run that is not saved without one, and why."""
    found = [
        f"- {fault}: {WHY_NOT[fault]}."
        for fault in faults
        if fault in WHY_NOT and all(_saved(rows, fault, rung) <= _saved(rows, fault, "none") for rung in RUNGS)
    ]
    return ["", "Saved by no act (the numbers are those of seed 3):", "", *found] if found else []


def _saved(rows: Sequence[Mapping[str, Any]], fault: str, rung: str) -> int:
    return sum(row["verdict"] is None for row in _of(rows, fault, rung, "acts"))


def _of(rows: Sequence[Mapping[str, Any]], fault: str, rung: str, what: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if (row["fault"], row["rung"], row["what"]) == (fault, rung, what)]


def _cell(rows: Sequence[Mapping[str, Any]]) -> str:
    """`5 of 5 (+0.03, +0.01 to +0.05)`."""
    gaps = [row["gap"] for row in rows if row["verdict"] is None and row["gap"] is not None]
    said = f"{sum(row['verdict'] is None for row in rows)} of {len(rows)}"
    middle, low, high = interval(gaps)
    if middle is None:
        return said
    return f"{said} ({middle:+.2f})" if low is None else f"{said} ({middle:+.2f}, {low:+.2f} to {high:+.2f})"

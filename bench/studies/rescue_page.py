"""The page of the study `rescue`: which act saves which fault, why none does, and what the controls say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from altgrad.compare.statistics import interval

SAVED_GAP = 0.3  # nats behind BF16 at the end, up to which a run without a verdict is saved: its `gap_limit`
RUNGS = ("skip", "rate", "rollback", "shift", "bf16", "ladder", "clip")
# Why no act saves a run, for the page; shown while that is so.  The numbers are those of seed 3.
WHY_NOT: Mapping[str, str] = {
    "E4M3 stored": "the shift to BF16 moves the weights again (realised displacement 0.04 before, 1.0 after). But it "
    "comes at step 61, once the weights were frozen in two diagnostic intervals, and the gap is 0.60 by then. It goes "
    "on to rise, up to 0.73 at step 81, and falls slowly: to 0.71 at step 101, where the patience of 40 steps that "
    "began anew with the shift is over, and, in a run that nobody stops, to 0.69 at step 120",
    "explosion (rate x 32)": "at 32 times the rate from the first step on the loss does not rise far, it stops "
    "falling: it lies between 3.0 and 3.8 from step 9 on, where BF16 goes down to 2.7. After the warm-up it is not "
    "`rescue_margin` (0.5) above its best, so that the ladder, which sees the loss of its own run alone, finds no "
    "trouble, and a cut during the warm-up is back at 32 times the rate after 25 steps",
    "rate x 1000 from step 40": "without an act the run is judged at step 80, 8.7 nats behind. Eight cuts alone "
    "(verdict at step 110, 11.0 behind) and eight rollbacks alone (step 116, 13.1 behind) do not turn it. The ladder, "
    "with two of each and a shift, does: no rule judges it, and it is 0.70 behind at step 120, 80 steps after the "
    "fault. The same acts at random steps leave it 13.5 behind",
}


def acts_per_kind(row: Mapping[str, Any]) -> dict[str, int]:
    """Act -> how often a run did it."""
    rungs = [act["rung"] for act in row["acts"]]
    return {rung: rungs.count(rung) for rung in dict.fromkeys(rungs)}


def page(head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The study as markdown."""
    seeds = sorted({row["seed"] for row in rows})
    used = Counter(row["processor"] for row in rows)
    processors = " and ".join(f"{name} ({n} runs)" if len(used) > 1 else name for name, n in used.items())
    lines = [
        "# Which act saves which collapse?",
        "",
        f"`{head['command']}`, {head['date']}, {processors}, torch {head['machine']['torch']}. "
        f"`micro` with one block, {len(seeds)} paired seeds; a run is saved if no collapse rule judges it and its gap "
        f"to the BF16 run of its seed (smoothed training loss, nats) is at most {SAVED_GAP} at its end; open: no rule "
        "judges it, but it is further behind. In brackets: gap of the saved runs, mean and 95 % t interval, and the "
        "least and the largest gap of the open ones.",
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
    return sum(map(_is_saved, _of(rows, fault, rung, "acts")))


def _is_saved(row: Mapping[str, Any]) -> bool:
    return row["verdict"] is None and row["gap"] is not None and row["gap"] <= SAVED_GAP


def _of(rows: Sequence[Mapping[str, Any]], fault: str, rung: str, what: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if (row["fault"], row["rung"], row["what"]) == (fault, rung, what)]


def _cell(rows: Sequence[Mapping[str, Any]]) -> str:
    """`3 of 5 (+0.03, +0.01 to +0.05), 2 open (+0.36 to +0.42)`."""
    gaps = [row["gap"] for row in rows if _is_saved(row)]
    said = f"{len(gaps)} of {len(rows)}"
    behind = [row["gap"] for row in rows if row["verdict"] is None and not _is_saved(row) and row["gap"] is not None]
    others = sum(row["verdict"] is None for row in rows) - len(gaps)
    span = " to ".join(dict.fromkeys(f"{one:+.2f}" for one in (min(behind), max(behind)))) if behind else "no gap"
    left = f", {others} open ({span})" if others else ""
    middle, low, high = interval(gaps)
    if middle is None:
        return said + left
    spread = "" if low is None else f", {low:+.2f} to {high:+.2f}"
    return f"{said} ({middle:+.2f}{spread}){left}"

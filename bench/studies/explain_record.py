"""The outcomes of the study `explain`: their record, with which an interrupted command goes on, and their table."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from altgrad.explain.cells import Cell
from bench.detectors.scoring import wilson
from bench.record import machine

CELLS = 24
NAMING = math.floor(math.log2(CELLS)) + 4  # most replays of the search that naming a cell may take, with the control


@dataclass(frozen=True)
class Outcome:
    """What became of one run: rule and cells of the conclusion.  Rule `healthy`: it did not collapse.

    what: the planted fault, or `other`.  number: of those with this fault, or of the others, from 1.
    search: replays of the bisection, the control and that of all operands included; arms: all replays.
    """

    what: str
    number: int
    kind: str
    guilty: Cell | None
    rule: str
    blamed: tuple[Cell, ...] = ()
    search: int = 0
    arms: int = 0
    confidence: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is one of the runs asked for; a plant that trains on is none."""
        return self.guilty is None or self.rule != "healthy"

    @property
    def is_named(self) -> bool:
        """Whether exactly the planted cell was blamed, within the number of replays that is promised."""
        return self.guilty is not None and self.blamed == (self.guilty,) and self.search <= NAMING

    @property
    def is_false(self) -> bool:
        """Whether single cells were blamed that hold no fault."""
        return self.rule == "operands" and any(cell != self.guilty for cell in self.blamed)

    def __str__(self) -> str:
        guilty = "no guilty cell" if self.guilty is None else str(self.guilty)
        said = f"{self.kind:16} {guilty:34} {self.rule:15} {self.confidence:7} {self.search:3} of {self.arms:3} replays"
        return f"{said}  {'; '.join(map(str, self.blamed[:3]))}".rstrip()

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Outcome:
        """From its record."""
        guilty = None if fields["guilty"] is None else Cell(*fields["guilty"])
        return cls(**{**fields, "guilty": guilty, "blamed": tuple(Cell(*cell) for cell in fields["blamed"])})


class Recorded:
    """The outcomes in `study_explain.json` of a folder, with the page beside it; both are written with each outcome.

    Raises ValueError if the file holds outcomes of other settings.
    """

    def __init__(self, folder: Path, command: str, settings: Mapping[str, Any]) -> None:
        self._file = folder / "study_explain.json"
        self._settings = json.loads(json.dumps(settings, default=dict))
        self._head = {"command": command, "date": time.strftime("%Y-%m-%d"), "machine": machine()}
        self.outcomes: list[Outcome] = []
        if self._file.exists():
            before = json.loads(self._file.read_text())
            if before["settings"] != self._settings:
                raise ValueError(f"{self._file} holds outcomes of other settings; remove it, or choose another --out")
            self.outcomes = [Outcome.read(one) for one in before["outcomes"]]
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, what: str, number: int) -> bool:
        """Whether the outcome of this plant or other is there."""
        return any((one.what, one.number) == (what, number) for one in self.outcomes)

    def counted(self, what: str, drawn: int) -> int:
        """How many of the first `drawn` plants or others count, those that are not there yet included."""
        known = [one for one in self.outcomes if one.what == what and one.number <= drawn]
        return drawn - sum(not one.counts for one in known)

    def take(self, outcome: Outcome) -> None:
        """Print and write an outcome."""
        print(outcome, flush=True)
        self.outcomes = sorted([*self.outcomes, outcome], key=lambda one: (one.guilty is None, one.what, one.number))
        record = {**self._head, "settings": self._settings, "outcomes": [asdict(one) for one in self.outcomes]}
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1) + "\n")
        part.replace(self._file)
        self._file.with_suffix(".md").write_text(page(self._head, self.outcomes))


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """How many plants were named, with how many replays, and how often a cell was blamed falsely; one line each."""
    planted = [one for one in outcomes if one.guilty is not None and one.counts]
    without = sum(one.guilty is not None and not one.counts for one in outcomes)
    rest = [one for one in outcomes if one.guilty is None]
    lines = [f"Plants that collapsed: {len(planted)}; {without} more trained on and are left out."]
    if planted:
        named = sum(one.is_named for one in planted)
        lines += [
            f"Named with at most {NAMING} replays of the search: {_share(named, len(planted))}.",
            f"Replays of the search: {_range([one.search for one in planted])}; all replays with the controls: "
            f"{_range([one.arms for one in planted])}.",
        ]
    if rest:
        single = sum(one.rule == "operands" and len(one.blamed) == 1 for one in rest)
        lines.append(f"Single cell blamed in a healthy or globally bad run: {_share(single, len(rest))}.")
    if planted or rest:
        false = _share(sum(one.is_false for one in (*planted, *rest)), len(planted + rest))
        lines.append(f"False blame (a cell without a fault, alone or among others): {false}.")
    return lines


def page(head: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The outcomes as markdown."""
    lines = [
        "# Does an explanation name a planted fault?",
        "",
        f"`{head['command']}`, {head['date']}, {head['machine']['processor']}, torch {head['machine']['torch']}. "
        "A perceptron of four linear layers (task `regression`) has 24 cells, an operand of a GEMM in a layer each. A "
        "plant is a fault in one of them; shares with their 95 % Wilson intervals.",
        "",
        *(f"- {line}" for line in summary(outcomes)),
        "",
        "| run | runs | named | conclusions | blamed falsely |",
        "| --- | ---: | ---: | --- | ---: |",
    ]
    counted = [one for one in outcomes if one.counts]
    for planted, kind in dict.fromkeys((one.guilty is not None, one.kind) for one in counted):
        own = [one for one in counted if (one.guilty is not None, one.kind) == (planted, kind)]
        said = ", ".join(f"{rule} {n}" for rule, n in Counter(one.rule for one in own).most_common())
        named = str(sum(one.is_named for one in own)) if planted else "-"
        what, false = f"planted: {kind}" if planted else kind, sum(one.is_false for one in own)
        lines.append(f"| {what} | {len(own)} | {named} | {said} | {false} |")
    missed = [one for one in counted if one.is_false or (one.guilty is not None and not one.is_named)]
    if missed:
        lines += ["", "Plants that were not named, and all that were blamed falsely:", ""]
        lines += ["| run | fault in | conclusion | blamed | replays |", "| --- | --- | --- | --- | ---: |"]
        for one in missed:
            blamed = "; ".join(map(str, one.blamed[:4])) + ("; ..." if len(one.blamed) > 4 else "")
            lines.append(f"| {one.kind} | {one.guilty or 'none'} | {one.rule} | {blamed or 'none'} | {one.search} |")
    return "\n".join(lines) + "\n"


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)} to {max(counts)}"


def _share(some: int, of: int) -> str:
    """`57 of 60 (95 %, 86 to 98 %)`: with the 95 % Wilson interval."""
    low, high = wilson(some, of)
    return f"{some} of {of} ({some / of:.0%}, {low:.0%} to {high:.0%})"

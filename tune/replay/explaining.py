"""One explanation while it is made: which arms it wants, what they showed, and its record in the run's folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from altgrad.explain import EXPLANATION, Arm, ArmResult, Conclusion, conclude, next_arms, read_explanation
from altgrad.explain.harm import harm_left
from altgrad.explain.record import ARMS
from altgrad.report import write_failure_report
from altgrad.results import SCHEMA, RecordError
from altgrad.storage.folder import Folder
from tune.replay.case_of_run import Replayed


class Explanation:
    """The explanation of one run, with at most `budget` arms."""

    def __init__(self, replayed: Replayed, budget: int) -> None:
        self.replayed = replayed
        self._budget = budget
        self._results: dict[Arm, ArmResult] = {}
        self._records: dict[str, dict[str, Any]] = {}
        self._running: dict[str, Arm] = {}

    @property
    def folder(self) -> Folder:
        """The run's folder."""
        return self.replayed.run.folder

    @property
    def conclusion(self) -> Conclusion:
        """What the results show so far."""
        return conclude(self.replayed.case, self._results)

    def begin(self) -> None:
        """Remove the arms of an earlier explanation whose replays had other steps; those of this one are kept."""
        try:
            before = read_explanation(self.folder)
        except RecordError:
            before = None
        case = self.replayed.case
        stale = before is not None and (before["start"], before["until"]) != (case.start, case.until)
        if stale and (self.folder / ARMS).list():
            self.folder.filesystem.delete_dir(f"{self.folder.path}/{ARMS}")
        self._write(finished=False)

    def next_arm(self) -> Arm | None:
        """The most important arm that is neither done nor running; None if there is none now, or no budget left."""
        if len(self._results) + len(self._running) >= self._budget:
            return None
        for arm in next_arms(self.replayed.case, self._results):
            if arm.name not in self._running:
                self._running[arm.name] = arm
                return arm
        return None

    def job_of(self, arm: Arm, owner: str) -> dict[str, Any]:
        """The plain values with which `arm_run.train_arm` trains an arm."""
        replayed, case = self.replayed, self.replayed.case
        origin = {**replayed.origin, **({"forget": list(arm.forget)} if arm.forget else {})}
        fields: dict[str, Any] = {"branch_from": origin, "stop_on_collapse": True, "threads": replayed.threads}
        changed = bool(arm.changes or arm.forget)
        if changed and case.config.compile == "auto" and not replayed.gpus:
            fields["compile"] = False  # most arms have a graph of their own, which takes longer to compile than to run
        config = case.config.altered(**dict(arm.changes), **fields)
        return {
            "name": arm.name,
            "folder": str(self.folder / ARMS / arm.name),
            "run": str(self.folder),
            "config": config.model_dump(),
            "start": case.start,
            "until": case.until,
            "threads": replayed.threads,
            "baseline": None if replayed.baseline is None else dict(replayed.baseline),
            "baseline_start": dict(replayed.baseline_start),
            "unchanged": not changed,
            "on_other_batches": bool(arm.replay),
            "owner": owner,
        }

    def take(self, arm: Arm, found: Mapping[str, Any]) -> None:
        """Note what an arm showed, and write the record."""
        prevented = {"prevented": True, "collapsed": False}.get(found["status"])
        measured = (found.get(name) for name in ("repeats", "error", "loss", "loss_step"))
        self._results[arm] = ArmResult(prevented, *measured)
        self._records[arm.name] = {
            "name": arm.name,
            "label": arm.label,
            "kind": arm.kind,
            "replay": arm.replay,
            "changes": dict(arm.changes),
            "forget": list(arm.forget),
            "cells": [list(cell) for cell in sorted(arm.cells)],
            **found,
        }
        del self._running[arm.name]
        self._write(finished=False)

    def end(self) -> Conclusion:
        """Write the record and the run's failure report for good; returns the conclusion."""
        self._write(finished=True)
        write_failure_report(self.folder.patient())
        return self.conclusion

    @property
    def spent(self) -> str | None:
        """A sentence if the budget has ended before the explanation was complete; else None."""
        if len(self._results) < self._budget or not next_arms(self.replayed.case, self._results):
            return None
        return f"the budget of {self._budget} replays is used up; the same command with a larger --budget goes on"

    def _write(self, finished: bool) -> None:
        case, found = self.replayed.case, self.conclusion
        spent = self.spent if finished else None
        left = {arm.name: share for arm, share in harm_left(self._results).items()}
        record = {
            "schema": SCHEMA,
            "start": case.start,
            "until": case.until,
            "notes": [*self.replayed.notes, *([] if spent is None else [spent])],
            "arms": [{**arm, "harm_left": left.get(name)} for name, arm in self._records.items()],
            "conclusion": {
                "rule": found.rule,
                "sentence": found.sentence,
                "confidence": found.confidence,
                "cells": [list(cell) for cell in sorted(found.cells)],
                "worked": list(found.worked),
            },
            "finished": finished,
            "written": time.time(),
        }
        self.folder.patient().write_json(EXPLANATION, record)

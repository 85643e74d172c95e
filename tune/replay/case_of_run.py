"""From a collapsed run's folder to what its replays need: where they start and end, their config, their baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from altgrad.branch.checkpoints import checkpoint_steps
from altgrad.branch.parent import parent_config
from altgrad.config.train_config import BUILT_IN_TASK, TrainConfig
from altgrad.explain import Case
from altgrad.metrics import columns
from altgrad.report.evidence import Evidence
from altgrad.report.signals import Departure, what_moved
from altgrad.results import RecordError, Run, read_plan, read_start
from altgrad.results.reading.ancestors import losses_by_step
from tune.plan.options import SweepError

_FURTHER = 0.5  # a replay goes on beyond the verdict by this share of the steps from its start to the verdict


@dataclass(frozen=True)
class Replayed:
    """A collapsed run and how it is replayed.

    origin: `branch_from` of every arm.  moved: the signal that moved first.  baseline: step -> loss of the BF16 run;
    None without one.  step_seconds: mean time of a step of the run.
    """

    run: Run
    case: Case
    origin: Mapping[str, Any]
    moved: Departure | None
    baseline: Mapping[int, float] | None
    baseline_start: Mapping[str, Any] = field(default_factory=dict)
    step_seconds: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        """CPU threads of the run, which its replays use too: sums of other threads differ in the last bit."""
        return int(self.run.info.get("threads") or 1)

    @property
    def gpus(self) -> float:
        """GPUs, or the share of one, that a replay holds: as many as the run did; 0 if it trained on the CPU."""
        held = self.run.info.get("resources") or {}
        on_gpu = str(self.run.info.get("device") or "").startswith("cuda")
        return float(held.get("gpus") or 1.0) if on_gpu else 0.0

    @property
    def arm_steps(self) -> int:
        """Number of steps of a replay that does not collapse."""
        return self.case.until - self.case.start


def replayed(run: Run, steps: int | None, replays: int) -> Replayed:
    """How a run is replayed.  Raises SweepError, one line, for a run that cannot be explained.

    steps: number of steps of a replay; None: up to half as far again as from its start to the verdict.
    """
    verdict = run.verdict
    if verdict is None:
        raise SweepError(f"{run.folder}: the run did not collapse ({run.status}); there is nothing to explain")
    config = parent_config(run.folder)
    _check_replayable(run, config)
    evidence = Evidence.of(run)
    signals = what_moved(((name, evidence.curve(name)) for name in columns("step")), run.loss_unit)
    moved = signals.moved[0] if signals.moved else None
    behind = _behind_since(evidence)
    first = min(behind, verdict.step if moved is None else min(moved.step, verdict.step))
    own = [step for step in checkpoint_steps(run.folder) if step < first]
    notes = []
    origin: Mapping[str, Any] = {"run": str(run.folder), "step": own[-1] if own else 0}
    if not own and config.branch_from is not None:
        origin = config.branch_from
    start: int = origin["step"] or config.start_step
    if not own:
        sign = "the verdict" if moved is None else f"the first sign ({moved.metric}, step {moved.step})"
        sign = f"the run fell behind (step {behind})" if first == behind < verdict.step else sign
        notes.append(f"there is no checkpoint from before {sign}, so every replay starts from step {start}")
    until = min(_last_step(verdict.step, start, steps), config.max_steps)
    baseline, baseline_start = _baseline(run)
    if baseline is None and verdict.rule == "gap_to_baseline":
        raise SweepError(f"{run.folder}: judged by the gap to a baseline, which is not in {run.folder.parent}")
    return Replayed(
        run,
        Case(config, tuple(run.info["layers"]), start, until, replays),
        origin,
        moved,
        baseline,
        baseline_start,
        _step_seconds(evidence),
        tuple(notes),
    )


def _check_replayable(run: Run, config: TrainConfig) -> None:
    """Raise SweepError for a run that its config alone does not repeat."""
    if (run.info.get("data") is None and config.task == BUILT_IN_TASK) or not run.info.get("layers"):
        raise SweepError(f"{run.folder}: its model or its batches were given in Python; only a config can be replayed")
    if (run.info.get("workers") or 1) > 1:
        raise SweepError(
            f"{run.folder}: {run.info['workers']} processes trained it; a replay has one, and would differ"
        )


def _last_step(verdict: int, start: int, steps: int | None) -> int:
    """The last step of a replay from the step `start`; `steps`: how many it has, None: see `replayed`."""
    if steps is None:
        return verdict + max(1, round(_FURTHER * (verdict - start)))
    if start + steps < verdict:
        raise SweepError(
            f"--steps {steps}: a replay starts at step {start} and the verdict came at step {verdict}; "
            f"use at least {verdict - start}"
        )
    return start + steps


def _step_seconds(evidence: Evidence) -> float | None:
    """Mean time of a step up to the verdict, after which the run may have trained on; None if it was not measured."""
    seconds = evidence.curve("elapsed_seconds").values
    return float(seconds[-1]) / len(seconds) if len(seconds) else None


def _behind_since(evidence: Evidence) -> int:
    """The first step of the gap that a verdict `gap_to_baseline` judges; the step of any other verdict.

    A replay from within it takes over how long the run was behind, and is judged before healing could have shown.
    """
    verdict, since = evidence.verdict, evidence.verdict.step
    if verdict.rule == "gap_to_baseline":
        gap = evidence.curve(verdict.metric)
        for step, value in zip(reversed(gap.steps.tolist()), reversed(gap.values.tolist()), strict=True):
            if not value > verdict.limit:
                break
            since = step
    return since


def _baseline(run: Run) -> tuple[dict[int, float] | None, Mapping[str, Any]]:
    """(step -> loss, run.json) of the BF16 run that the sweep planned for a run; (None, {}) if there is none."""
    sweep = run.folder.parent
    try:
        planned = {one["run"]: one.get("baseline") for one in read_plan(sweep)["runs"]}
    except (FileNotFoundError, NotADirectoryError, RecordError):
        return None, {}
    name = planned.get(run.folder.name)
    if name is None or not (sweep / name).has("run.json"):
        return None, {}
    return losses_by_step(sweep / name), read_start(sweep / name)

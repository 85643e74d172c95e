"""One row per run: what the comparison table, the matrix and the dashboard's sweep page are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from altgrad.compare.pairing import Settings, choose_baselines, settings_of
from altgrad.curves import Curve, difference, measured
from altgrad.results import Run, Status, acts, format_shifts, read_events

STEP_COLUMNS = ["validation_loss", "tokens_per_second", "stall_rate", "overflow_rate", "elapsed_seconds"]
_NEEDED: Mapping[str, tuple[tuple[type, ...], str]] = {
    "format": ((str,), "a name"),
    "seed": ((int,), "a whole number"),
    "max_steps": ((int,), "a whole number"),
    "learning_rate": ((int, float), "a number"),
}
_READERS = 8  # threads: reading waits for the disk or the object store, and decoding happens outside the GIL


@dataclass(frozen=True)
class Row:
    """One run of a comparison.  None = not measured, or there is none; NaN and inf are measurements.

    `group` is equal for runs that differ in nothing but the seed.  `gap` is validation loss minus that of the
    baseline of the same seed, in nats, at `gap_step`, the last step that both have reached; the baseline itself
    has none.  `acts` counts the interventions' events by kind.  `cpus` and `gpus` are what the sweep gave the run.
    """

    run: str
    group: str
    format: str
    variant: str
    intervention: str
    seed: int
    learning_rate: float
    status: Status
    is_baseline: bool
    validation_loss: float | None
    best_validation_loss: float | None
    gap: float | None
    gap_step: int | None
    collapse_step: int | None
    collapse_rule: str | None
    reason: str | None
    acts: Mapping[str, int]
    shifted_to: str | None
    tokens_per_second: float | None
    stall_rate: float | None
    overflow_rate: float | None
    step: int
    max_steps: int
    seconds: float | None
    cpus: float | None = None
    gpus: float | None = None

    @property
    def seconds_saved(self) -> float | None:
        """What the steps would have taken that the run was spared, at its own pace; None where nothing was."""
        if self.status not in ("collapsed", "stopped") or not self.seconds or not self.step:
            return None
        return max(self.max_steps - self.step, 0) * self.seconds / self.step

    @property
    def device(self) -> str | None:
        """What the run's hours are counted in: GPUs where it held any, else CPU cores; None where it does not say."""
        return "GPU" if self.gpus else None if self.cpus is None else "CPU-core"

    @property
    def device_hours(self) -> float | None:
        """Training time times the devices held meanwhile."""
        return self._in_device_hours(self.seconds)

    @property
    def device_hours_saved(self) -> float | None:
        return self._in_device_hours(self.seconds_saved)

    def _in_device_hours(self, seconds: float | None) -> float | None:
        devices = self.gpus or self.cpus
        return None if seconds is None or devices is None else seconds * devices / 3600

    @property
    def label(self) -> str:
        """Format and variant: `E7M0 (stored)`."""
        return f"{self.format} ({self.variant})" if self.variant else self.format

    @property
    def group_label(self) -> str:
        """What distinguishes the row's group in a legend: `E7M0 stored · clip`."""
        name = f"{self.format} {self.variant}".strip()
        return name if self.intervention == "none" else f"{name} · {self.intervention}"


@dataclass(frozen=True)
class Unpaired:
    """What one run's folder says; its row lacks the baseline.  Of a run that has ended it never changes again."""

    row: Row
    settings: Settings
    loss: Curve  # validation loss


def comparison(runs: Iterable[Run]) -> list[Row]:
    """A row for each run, by final validation loss; non-finite losses come last, runs without any at the very end."""
    with ThreadPoolExecutor(_READERS) as pool:
        return pair(pool.map(read_row, runs))


def pair(unpaired: Iterable[Unpaired]) -> list[Row]:
    """`comparison` of runs that were read before, each row with the gap to its baseline."""
    members = list(unpaired)
    baselines = choose_baselines((member.settings, member.row.run, member) for member in members)
    rows = [_with_gap(member, baselines.get(member.settings.pair)) for member in members]
    return sorted(rows, key=_rank)


def check_run(run: Run) -> None:
    """Raise ValueError, naming the file, where a record lacks what every comparison needs."""
    start, end = run.folder / "run.json", run.folder / "end.json"
    missing = _NEEDED.keys() - run.config.keys()
    if missing:
        raise ValueError(f"{start}: config lacks {', '.join(sorted(missing))}")
    for name, (kind, said) in _NEEDED.items():
        value = run.config[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{start}: config {name}={value!r}; expected {said}")
    if "started" not in run.info:
        raise ValueError(f"{start}: incomplete: it needs `started`")
    if run.end is not None and "status" not in run.end:
        raise ValueError(f"{end}: incomplete: it needs `status`")
    try:
        _ = run.verdict
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{end}: verdict={run.end and run.end['verdict']!r}: {error}") from error


def read_row(run: Run) -> Unpaired:
    """Read what a run's row needs: five columns of its steps, and its events."""
    steps = run.table("steps", STEP_COLUMNS)
    held = run.info.get("resources") or {}
    settings, verdict = settings_of(run), run.verdict
    events = read_events(run, steps)
    shifts = format_shifts(events)
    loss = measured(steps, "validation_loss")
    finite = loss.finite().values
    row = Row(
        run=run.name,
        group=settings.group,
        format=settings.config["format"],
        variant=settings.variant,
        intervention=settings.intervention,
        seed=settings.config["seed"],
        learning_rate=settings.config["learning_rate"],
        status=run.status,
        is_baseline=False,
        validation_loss=_last(loss),
        best_validation_loss=float(finite.min()) if len(finite) else None,
        gap=None,
        gap_step=None,
        collapse_step=None if verdict is None else verdict.step,
        collapse_rule=None if verdict is None else verdict.rule,
        reason=_reason(run),
        acts=acts(events),
        shifted_to=str(shifts[-1].detail["to"]) if shifts else None,
        tokens_per_second=_over_steps(np.median, steps, "tokens_per_second"),
        stall_rate=_last(measured(steps, "stall_rate")),
        overflow_rate=_over_steps(np.mean, steps, "overflow_rate"),
        step=steps["step"][-1].as_py() if steps.num_rows else 0,
        max_steps=settings.config["max_steps"],
        seconds=_last(measured(steps, "elapsed_seconds")),
        cpus=held.get("cpus"),
        gpus=held.get("gpus"),
    )
    return Unpaired(row, settings, loss)


def _with_gap(member: Unpaired, baseline: Unpaired | None) -> Row:
    """The row with its gap to the baseline's validation loss, where both have one."""
    row, loss = member.row, member.loss
    if baseline is None:
        return row
    if baseline is member:
        return replace(row, is_baseline=True)
    if not len(loss.steps) or not len(baseline.loss.steps):
        return row
    common = min(int(loss.steps[-1]), int(baseline.loss.steps[-1]))
    at_common = Curve(np.array([common]), np.array([np.interp(common, loss.steps, loss.values)]))
    gap = difference(at_common, baseline.loss)
    if common < loss.steps[0] or not len(gap.steps):
        return row
    return replace(row, gap=float(gap.values[0]), gap_step=common)


def _reason(run: Run) -> str | None:
    """Why the run ended before its last step: its verdict, its error, or who stopped it."""
    if run.verdict is not None:
        return run.verdict.sentence()
    summary = run.end["summary"] if run.end is not None else {}
    return summary.get("error") or summary.get("reason")


def _last(curve: Curve) -> float | None:
    return float(curve.values[-1]) if len(curve.values) else None


def _over_steps(statistic: Callable[[NDArray[np.float64]], Any], steps: pa.Table, metric: str) -> float | None:
    values = measured(steps, metric).values
    return float(statistic(values)) if len(values) else None


def _rank(row: Row) -> tuple[int, float, str]:
    loss = row.validation_loss
    if loss is None:
        return 2, 0.0, row.run
    return (0, loss, row.run) if math.isfinite(loss) else (1, 0.0, row.run)

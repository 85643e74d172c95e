"""A run as a row of a comparison, and the data of a run before it is paired with its baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from altgrad.compare.origin import Origin
from altgrad.compare.pairing import Settings, describe_field
from altgrad.compare.parity.verdict import Parity
from altgrad.results import Status
from altgrad.results.reading.curves import Curve


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run: its seconds of training, and the CPUs and GPUs that it had (None: not recorded)."""

    seconds: float | None
    cpus: float | None
    gpus: float | None

    @property
    def device(self) -> str | None:
        """The unit of its device-hours: `GPU` if it had one, else `CPU-core`; None without a record of its CPUs."""
        return "GPU" if self.gpus else None if self.cpus is None else "CPU-core"

    @property
    def hours(self) -> float | None:
        """Training time in hours times the number of GPUs, or of CPU cores without a GPU; None if not recorded."""
        devices = self.gpus or self.cpus
        return None if self.seconds is None or devices is None else self.seconds * devices / 3600


@dataclass(frozen=True)
class Row:
    """One run of a comparison.  None means not measured or not applicable; NaN and inf are measurements."""

    run: str
    group: str  # equal for runs that differ in nothing but the seed
    format: str
    variant: str
    intervention: str
    seed: int
    learning_rate: float
    status: Status
    is_baseline: bool
    validation_loss: float | None  # the last one, measured at `validation_step`
    best_validation_loss: float | None
    gap: float | None  # validation loss minus that of `baseline`, in `loss_unit`, at `gap_step`; None for a baseline
    gap_step: int | None  # see `gap`
    collapse_step: int | None
    collapse_rule: str | None
    reason: str | None
    acts: Mapping[str, int]  # number of acts per kind of intervention
    shifted_to: str | None
    tokens_per_second: float | None
    stall_rate: float | None
    overflow_rate: float | None
    step: int  # the last one, counted from 0 also in a branch, see `begins_after`
    max_steps: int
    seconds: float | None  # of training, see the metric `elapsed_seconds`
    cpus: float | None = None  # what the sweep assigned to the run in its last attempt; None: not recorded
    gpus: float | None = None
    earlier: tuple[Attempt, ...] = ()  # the attempts before the last one
    seconds_now: float | None = None  # of training in the last attempt; None: not recorded, as by older versions
    rounded_share: float | None = None  # of the FLOPs of the model's matrix products
    bytes_per_parameter: float | None = None  # see `Run`
    loss_unit: str = "nats"  # "" if it is unknown
    differs: tuple[str, ...] = ()  # the other fields in which the runs of the comparison differ, with their values
    baseline: str | None = None  # the run that it is compared with; a baseline names itself
    common_step: int | None = None  # at which all runs alive are compared
    pairing: str = ""  # why the run cannot be compared, or that its hashes were not recorded
    validation_step: int | None = None
    step_loss: float | None = None  # validation loss at `common_step`, whether there is a baseline or not
    baseline_died: bool = False  # the baseline has collapsed
    confounds: tuple[str, ...] = ()  # what else than the format differs from the baseline
    parity: Parity | None = None  # the verdict on the row's group; None for a baseline
    branched_from: str = ""  # of a branch: `NAME at step 300`
    started_from: str = ""  # of a run from given weights: `NAME@300`, or a file
    hidden_mates: int = 0  # runs of the group that people have hidden, see `shown_rows`
    begins_after: int = 0  # see `Run`
    task: str = ""  # equal for runs whose losses are the same quantity, see `groups.by_task`
    task_label: str = ""  # what tells it from the other tasks of the comparison; "" if there is one alone
    settings: Settings | None = None
    origin: Origin = field(default_factory=Origin)

    @property
    def collapsed(self) -> bool:
        """Whether the run has a collapse verdict; with `stop_on_collapse: false` it may still have trained on."""
        return self.status == "collapsed" or self.collapse_step is not None

    @property
    def fate(self) -> str:
        """What became of the run, as counts of runs say it: `collapsed` whatever its status is, else the status."""
        return "collapsed" if self.collapsed else str(self.status)

    @property
    def alive(self) -> bool:
        """Whether the run completed or still trains: it has not collapsed, failed, been killed or been stopped."""
        return self.status in ("completed", "running") and not self.collapsed

    @property
    def final_gap(self) -> float | None:
        """The gap if it may be averaged and ranked: both runs are alive, and it is at the common step.  Else None."""
        counts = self.alive and not self.baseline_died and self.gap_step == self.common_step
        return self.gap if counts else None

    @property
    def non_finite(self) -> bool:
        """Whether the run is alive, but its last validation loss, or that which is compared, is NaN or inf.

        A gap is NaN also where the loss of the baseline is, which says nothing about the run.
        """
        return self.alive and not all(
            math.isfinite(loss) for loss in (self.validation_loss, self.final_loss) if loss is not None
        )

    @property
    def is_dead(self) -> bool:
        """Whether the run has no loss that can be compared at the end: it collapsed, or reached NaN or inf."""
        return self.collapsed or self.non_finite

    @property
    def final_loss(self) -> float | None:
        """The validation loss at the common step if the run is alive and has measured it there; else None."""
        return self.step_loss if self.alive else None

    @property
    def own_steps(self) -> int:
        """The steps that the run has trained itself; those before `begins_after` took another run's time."""
        return self.step - self.begins_after

    @property
    def seconds_saved(self) -> float | None:
        """Seconds that the remaining steps of a collapsed or stopped run would have taken at its pace; else None."""
        if self.status not in ("collapsed", "stopped") or not self.seconds or self.own_steps <= 0:
            return None
        return max(self.max_steps - self.step, 0) * self.seconds / self.own_steps

    @property
    def device(self) -> str | None:
        """The unit of the device-hours of the last attempt, see `Attempt`."""
        return self.attempts[-1].device

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """All attempts in order, including the last one."""
        now = self.seconds_now if self.earlier else self.seconds
        return (*self.earlier, Attempt(now, self.cpus, self.gpus))

    @property
    def hours(self) -> dict[str, float]:
        """Kind of device -> device-hours, summed over the attempts with that kind; empty if none has a record."""
        found: dict[str, float] = {}
        for attempt in self.attempts:
            if attempt.device is not None and attempt.hours is not None:
                found[attempt.device] = found.get(attempt.device, 0.0) + attempt.hours
        return found

    @property
    def device_hours(self) -> float | None:
        """The device-hours, over all attempts, in the kind of device of the last attempt; None if not recorded."""
        return None if self.device is None else self.hours.get(self.device)

    @property
    def device_hours_saved(self) -> float | None:
        """The device-hours of the steps that were not trained, see `seconds_saved`; None if not known."""
        return Attempt(self.seconds_saved, self.cpus, self.gpus).hours

    @property
    def setting(self) -> str:
        """The fields in `differs`: `lr 3e-4, weight_decay 0.2`; "" if there are none."""
        return ", ".join(self.differs)

    @property
    def treatment(self) -> str:
        """Variant and setting, without format and intervention: `stored, lr 3e-4`; "" if both are empty."""
        return ", ".join(part for part in (self.variant, self.setting) if part)

    @property
    def label(self) -> str:
        """Format and treatment: `E7M0 (stored)`."""
        return f"{self.format} ({self.treatment})" if self.treatment else self.format

    @property
    def group_label(self) -> str:
        """The name of the row's group in a legend: `E7M0 stored, lr 3e-4 · clip`."""
        return self._label(self.differs)

    @property
    def label_at_any_rate(self) -> str:
        """`group_label` without the learning rate: equal for groups that differ in the learning rate alone."""
        rate = describe_field("learning_rate", self.learning_rate)
        return self._label([part for part in self.differs if part != rate])

    def _label(self, differs: Sequence[str]) -> str:
        name = ", ".join((f"{self.format} {self.variant}".strip(), *differs))
        return name if self.intervention == "none" else f"{name} · {self.intervention}"


@dataclass(frozen=True)
class Unpaired:
    """The data read from one run's folder; the row has no baseline yet.  It never changes once the run has ended."""

    row: Row
    settings: Settings
    origin: Origin
    loss: Curve  # validation loss


def loss_unit(rows: Iterable[Row]) -> str:
    """The common unit of these rows' losses and gaps; "" if it is unknown or not the same."""
    units = {row.loss_unit for row in rows}
    return units.pop() if len(units) == 1 else ""

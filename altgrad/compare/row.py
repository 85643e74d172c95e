"""A run as a row of a comparison, and what was read of it before it was compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from altgrad.compare.origin import Origin
from altgrad.compare.pairing import Settings, describe_field
from altgrad.results import Status
from altgrad.results.curves import Curve


@dataclass(frozen=True)
class Row:
    """One run of a comparison.  None = not measured, or there is none; NaN and inf are measurements.

    `group` is equal for runs that differ in nothing but the seed; `differs` has the other fields in which the
    comparison's runs differ, with their values.  `gap` is validation loss minus that of the run `baseline`, in
    `loss_unit`, at `gap_step` (see `gap`); a baseline's own is itself, without a gap.  `common_step` is the one at
    which all runs that are alive are compared.  `pairing` says why a run may not be compared, or that no hashes vouch
    for the gap.  `validation_step` is the one of `validation_loss`, the last.
    `acts` counts the interventions' events by kind.  `cpus` and `gpus` are what the sweep gave the run.
    `rounded_share`: of the FLOPs of the model's matrix products.  `loss_unit`: see `Run`; "" where nobody knows it.
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
    rounded_share: float | None = None
    loss_unit: str = "nats"
    differs: tuple[str, ...] = ()
    baseline: str | None = None
    common_step: int | None = None
    pairing: str = ""
    validation_step: int | None = None

    @property
    def collapsed(self) -> bool:
        """Whether the run was judged to have collapsed; it may have gone on all the same (`stop_on_collapse`)."""
        return self.status == "collapsed" or self.collapse_step is not None

    @property
    def alive(self) -> bool:
        """Whether the run completed or is on its way: neither collapsed nor failed, killed or stopped."""
        return self.status in ("completed", "running") and not self.collapsed

    @property
    def final_gap(self) -> float | None:
        """The gap that may be averaged and ranked: of a run alive, at the step at which all of them are compared."""
        return self.gap if self.alive and self.gap_step == self.common_step else None

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
    def setting(self) -> str:
        """`lr 3e-4, weight_decay 0.2`; "" where the comparison's runs differ in nothing else."""
        return ", ".join(self.differs)

    @property
    def treatment(self) -> str:
        """What sets the run apart beside format and intervention: `stored, lr 3e-4`; "" where nothing does."""
        return ", ".join(part for part in (self.variant, self.setting) if part)

    @property
    def label(self) -> str:
        """Format and treatment: `E7M0 (stored)`."""
        return f"{self.format} ({self.treatment})" if self.treatment else self.format

    @property
    def group_label(self) -> str:
        """What distinguishes the row's group in a legend: `E7M0 stored, lr 3e-4 · clip`."""
        return self._label(self.differs)

    @property
    def label_at_any_rate(self) -> str:
        """`group_label` without the learning rate: equal for groups that differ in that alone."""
        rate = describe_field("learning_rate", self.learning_rate)
        return self._label([part for part in self.differs if part != rate])

    def _label(self, differs: Sequence[str]) -> str:
        name = ", ".join((f"{self.format} {self.variant}".strip(), *differs))
        return name if self.intervention == "none" else f"{name} · {self.intervention}"


@dataclass(frozen=True)
class Unpaired:
    """What one run's folder says; its row lacks the baseline.  Of a run that has ended it never changes again."""

    row: Row
    settings: Settings
    origin: Origin
    loss: Curve  # validation loss


def loss_unit(rows: Iterable[Row]) -> str:
    """The unit of all these rows' losses and gaps; "" where it is unknown or not the same."""
    units = {row.loss_unit for row in rows}
    return units.pop() if len(units) == 1 else ""

"""Every metric's one name, label, unit and meaning.

A record's key, a stored column and a chart's axis all use the name given here; whatever measures a quantity
must find it in this table, and whatever shows it borrows its label.  A metric that was not measured is absent
from its record (null on disk), never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Level = Literal["step", "layer"]
Cadence = Literal["step", "report", "eval_interval", "diagnostic_interval"]  # the latter two are config fields
Site = Literal["weight", "activation", "gradient", "update"]
SITES: tuple[Site, ...] = ("weight", "activation", "gradient", "update")


@dataclass(frozen=True)
class Metric:
    """One measured quantity.

    `levels`: the tables that hold it, `steps` (whole model) and/or `layers` (per layer and site).
    `better`: which direction is good, or None where neither is.
    `every`: when its value for the whole model is measured; the `layers` table has rows every `diagnostic_interval`.
    `switch`: the config field that must be true; None: always measured.  `needs_baseline`: only where a run was given
    its baseline's curve.  `is_signal`: whether a change of it can tell of training in trouble (elapsed time cannot).
    """

    name: str
    label: str
    unit: str
    meaning: str
    levels: tuple[Level, ...] = ("step",)
    better: Literal["lower", "higher"] | None = None
    every: Cadence = "step"
    switch: str | None = None
    needs_baseline: bool = False
    is_signal: bool = True

    @property
    def axis(self) -> str:
        """Label with unit, for an axis or a column head."""
        return self.axis_in("nats")

    def axis_in(self, loss_unit: str) -> str:
        """The same for runs whose losses are in that unit (`Run.loss_unit`); "" is no unit."""
        unit = loss_unit if self.unit == "nats" else self.unit
        return f"{self.label} ({unit})" if unit else self.label


_BOTH: tuple[Level, ...] = ("step", "layer")
_LAYER: tuple[Level, ...] = ("layer",)

# fmt: off
_TABLE = (
    # every step
    Metric("loss", "Training loss", "nats", "mean loss of the step's batch, before the update; cross-entropy in nats unless the model is your own", better="lower"),
    Metric("learning_rate", "Learning rate", "", "of this step, after warm-up and schedule", is_signal=False),
    Metric("gradient_norm", "Gradient norm", "", "L2 norm over all parameters, before any clipping", _BOTH),
    Metric("non_finite_gradients", "Non-finite gradients", "share", "share of gradient values that are NaN or inf"),
    Metric("tokens", "Tokens", "", "tokens (examples, for inputs that are no token ids) trained on up to and including this step", is_signal=False),
    Metric("elapsed_seconds", "Elapsed time", "s", "training time of this run up to this step, restarts included", is_signal=False),
    Metric("tokens_per_second", "Throughput", "tokens/s", "tokens of the step over its wall time, measurements included", better="higher", is_signal=False),
    Metric("overflow_rate", "Overflow rate", "share", "non-zero values beyond the largest finite value of the scaled format", _BOTH, "lower"),
    Metric("underflow_rate", "Underflow rate", "share", "non-zero values that rounded to zero", _BOTH, "lower"),
    Metric("saturation_rate", "Saturation rate", "share", "non-zero values whose rounded magnitude is the largest finite one", _BOTH),
    # at every report (10 steps in a sweep), of the process that trains
    Metric("cpu_utilisation", "CPU use", "cores", "CPU time of the process by wall time since the last sample: 1 = one core busy; of several workers the first's", every="report", is_signal=False),
    Metric("resident_memory", "Resident memory", "MiB", "memory of the process that is in RAM; of several workers the first's", every="report", is_signal=False),
    Metric("gpu_utilisation", "GPU use", "share", "share of time in which any kernel ran on the run's GPU, by whichever process; absent without NVML", every="report", is_signal=False),
    Metric("gpu_memory", "GPU memory", "MiB", "memory in use on the run's GPU, by all processes that share it; absent without NVML", every="report", is_signal=False),
    # on the held-out data
    Metric("validation_loss", "Validation loss", "nats", "mean loss on the held-out data, the same batches for every run", better="lower", every="eval_interval"),
    # only where a baseline curve was given
    Metric("gap_to_baseline", "Training loss behind baseline", "nats", "smoothed training loss minus that of the baseline run of the same seed, which the collapse rule of that name watches; the comparison's gap is of validation losses", better="lower", needs_baseline=True),
    # around the real optimizer step
    Metric("stall_rate", "Stall rate", "share", "weights with a non-zero update whose stored value on the grid did not change", _BOTH, "lower", every="diagnostic_interval"),
    Metric("realised_displacement", "Realised displacement", "ratio", "<sum of stored changes, sum of intended updates> / |sum of intended updates|^2 over the window since the last measurement: 1 = the intent arrives, 0 = frozen", _BOTH, "higher", every="diagnostic_interval"),
    Metric("update_to_weight_ratio", "Update to weight", "ratio", "RMS of the intended update over RMS of the weight", _BOTH, every="diagnostic_interval"),
    Metric("gradient_sparsity", "Gradient sparsity", "share", "gradient values that are exactly zero", _BOTH, every="diagnostic_interval"),
    Metric("zero_update_fraction", "Zero updates", "share", "weights whose stored value did not change in the step", _BOTH, every="diagnostic_interval"),
    Metric("stable_rank", "Stable rank", "", "|W|_F^2 / |W|_2^2 of the weight matrix; the step column is the median over layers", _BOTH, every="diagnostic_interval"),
    Metric("stiffness_mean", "Stiffness, mean", "scaled units", "mean of 2^(floor(log2|w|) - M) over non-zero weights", _BOTH, every="diagnostic_interval", switch="log_stiffness"),
    Metric("stiffness_max", "Stiffness, max", "scaled units", "largest stiffness of a weight", _BOTH, every="diagnostic_interval", switch="log_stiffness"),
    Metric("stiffness_std", "Stiffness, std", "scaled units", "standard deviation of the stiffness", _BOTH, every="diagnostic_interval", switch="log_stiffness"),
    Metric("gradient_stiffness_pearson", "Gradient-stiffness correlation", "r", "Pearson correlation of |gradient| and stiffness", _BOTH, every="diagnostic_interval", switch="log_stiffness"),
    Metric("gradient_stiffness_log_correlation", "Gradient-stiffness log correlation", "r", "Pearson correlation of log2|gradient| and log2 stiffness", _BOTH, every="diagnostic_interval", switch="log_stiffness"),
    Metric("gradient_stiffness_shuffled", "Gradient-stiffness correlation, shuffled", "r", "control: the Pearson correlation after shuffling the gradient", _BOTH, every="diagnostic_interval", switch="log_stiffness", is_signal=False),
    Metric("gradient_stiffness_ratio", "Gradient to stiffness", "ratio", "mean of |gradient| / stiffness, both in scaled units", _BOTH, every="diagnostic_interval", switch="log_stiffness"),
    Metric("gradient_below_stiffness", "Gradients below stiffness", "share", "weights whose |gradient| is smaller than their stiffness", _BOTH, every="diagnostic_interval", switch="log_stiffness"),
    Metric("grid_error_mean", "Grid error, mean", "ULP", "mean of |w - Q(w)| in ULPs", _BOTH, every="diagnostic_interval", switch="log_grid_alignment"),
    Metric("grid_error_max", "Grid error, max", "ULP", "largest |w - Q(w)| in ULPs", _BOTH, every="diagnostic_interval", switch="log_grid_alignment"),
    Metric("grid_error_std", "Grid error, std", "ULP", "standard deviation of |w - Q(w)| in ULPs", _BOTH, every="diagnostic_interval", switch="log_grid_alignment"),
    Metric("grid_error_relative", "Grid error, relative", "ratio", "mean of |w - Q(w)| / |w| over non-zero weights", _BOTH, every="diagnostic_interval", switch="log_grid_alignment"),
    Metric("on_grid_fraction", "On grid", "share", "weights with w = Q(w)", _BOTH, every="diagnostic_interval", switch="log_grid_alignment"),
    Metric("ulps_moved_mean", "ULPs moved, mean", "ULP", "mean absolute number of grid positions a weight moved in the step", _BOTH, every="diagnostic_interval", switch="log_ulp"),
    Metric("ulps_moved_median", "ULPs moved, median", "ULP", "median absolute number of grid positions moved", _BOTH, every="diagnostic_interval", switch="log_ulp"),
    Metric("ulps_moved_max", "ULPs moved, max", "ULP", "largest absolute number of grid positions moved", _BOTH, every="diagnostic_interval", switch="log_ulp"),
    Metric("ulps_moved_zero_fraction", "ULPs moved, zero", "share", "weights that moved no grid position", _BOTH, every="diagnostic_interval", switch="log_ulp"),
    Metric("gradient_cosine_similarity", "Gradient cosine to shadow", "cos", "between the gradient and the unrounded gradient of the same weights on the same batch", _BOTH, "higher", every="diagnostic_interval", switch="use_shadow"),
    Metric("gradient_snr_db", "Gradient SNR", "dB", "10 log10(|shadow|^2 / |gradient - shadow|^2)", _BOTH, "higher", every="diagnostic_interval", switch="use_shadow"),
    Metric("shadow_loss", "Shadow loss", "nats", "loss of the same weights on the same batch without rounding", every="diagnostic_interval", switch="use_shadow"),
    # per layer and site only
    Metric("amax", "Largest magnitude", "", "largest finite |x| at the site, before scaling", _LAYER, every="diagnostic_interval"),
    Metric("scale", "Scale", "", "factor between the stored value and the grid: x ~ scale * grid value (largest where there are several)", _LAYER, every="diagnostic_interval"),
)
# fmt: on
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _TABLE}


def columns(level: Level) -> list[str]:
    """Names of the metrics of one table, in this module's order."""
    return [metric.name for metric in METRICS.values() if level in metric.levels]

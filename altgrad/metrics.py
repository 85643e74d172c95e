"""Name, label, unit and meaning of every metric, declared once.

The keys of a record, the columns on disk and the axes of charts use the name and label given here: code that measures
a quantity must find it in this table, and code that shows one takes its label from it.  A metric that was not measured
is absent from its record (null on disk), never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Level = Literal["step", "layer"]
Cadence = Literal["step", "report", "eval_interval", "diagnostic_interval"]  # the latter two are config fields
SiteName = Literal["weight", "activation", "gradient", "update"]
SITES: tuple[SiteName, ...] = ("weight", "activation", "gradient", "update")


@dataclass(frozen=True)
class Metric:
    """One measured quantity.

    `levels`: the tables that hold it, `steps` (whole model) and/or `layers` (per layer and site).
    `better`: the good direction, or None if neither is.
    `every`: when its value for the whole model is measured; the `layers` table has rows every `diagnostic_interval`.
    `switch`: the config field that must be true for it; None: always measured.  `needs_baseline`: measured only if the
    run was given the curve of its baseline.  `is_signal`: whether a change of it can indicate training in trouble
    (elapsed time cannot).  `short`: the label where a column is narrow, if it differs.
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
    short: str = ""

    @property
    def heading(self) -> str:
        """The heading of a narrow column: `short`, or the label if there is none."""
        return self.short or self.label

    def axis_in(self, loss_unit: str) -> str:
        """Label with unit, for an axis or a column head; `loss_unit`: that of the runs' losses, "" where unknown."""
        unit = loss_unit if self.unit == "nats" else self.unit
        return f"{self.label} ({unit})" if unit else self.label


RESCUE_ACTS = "rescue_acts"  # interventions write it, and the collapse rules read it
_BOTH: tuple[Level, ...] = ("step", "layer")
_LAYER: tuple[Level, ...] = ("layer",)
# What is compared with a grid is what the forward GEMM rounds, see `diagnostics.protocol.LayerStep`.
_READ = "; of a master weight that fprop rotates, of its values after the rotation, and absent if that is redrawn"

# fmt: off
_TABLE = (
    # every step
    Metric("loss", "Training loss", "nats", "mean loss over the step's batch, before the update; for the built-in model the cross-entropy in nats", better="lower", short="Loss"),
    Metric("learning_rate", "Learning rate", "", "learning rate of this step, after warm-up and schedule", is_signal=False),
    Metric("gradient_norm", "Gradient norm", "", "L2 norm of the gradient over all parameters, before any clipping", _BOTH),
    Metric("non_finite_gradients", "Non-finite gradients", "share", "share of gradient values that are NaN or inf"),
    Metric("tokens", "Tokens", "", "number of tokens trained on up to and including this step; examples, if the inputs are not token ids", is_signal=False),
    Metric("elapsed_seconds", "Elapsed time", "s", "training time of this run up to this step, restarts included", is_signal=False),
    Metric("tokens_per_second", "Throughput", "tokens/s", "tokens of the step divided by its wall time, measurements included", better="higher", is_signal=False, short="Tokens/s"),
    Metric("overflow_rate", "Overflow rate", "share", "share of the non-zero values that lie beyond the largest finite value of the scaled format", _BOTH, "lower", short="Overflow"),
    Metric("underflow_rate", "Underflow rate", "share", "share of the non-zero values that are rounded to zero", _BOTH, "lower"),
    Metric("saturation_rate", "Saturation rate", "share", "share of the non-zero values whose rounded magnitude is the largest finite value of the format", _BOTH),
    Metric(RESCUE_ACTS, "Rescue acts", "", "number of acts in this step after which the run is another one: rate cuts, rollbacks and format shifts of the rescue ladder, and emergency shifts; absent without one; the collapse rules count anew from there", is_signal=False),
    # at every report (10 steps in a sweep), of the process that trains
    Metric("cpu_utilisation", "CPU use", "cores", "CPU time of the training process divided by wall time, since the last sample: 1 = one busy core; with several workers that of the first", every="report", is_signal=False),
    Metric("resident_memory", "Resident memory", "MiB", "RAM used by the training process (resident set size); with several workers that of the first", every="report", is_signal=False),
    Metric("gpu_utilisation", "GPU use", "share", "share of time in which any process ran a kernel on the run's GPU; absent without NVML", every="report", is_signal=False),
    Metric("gpu_memory", "GPU memory", "MiB", "memory in use on the run's GPU by all processes together; absent without NVML", every="report", is_signal=False),
    # on the held-out data
    Metric("validation_loss", "Validation loss", "nats", "mean loss over the held-out batches, which are the same for every run", better="lower", every="eval_interval"),
    # only if a baseline curve was given
    Metric("gap_to_baseline", "Training loss behind baseline", "nats", "smoothed training loss minus that of the baseline run of the same seed; the collapse rule gap_to_baseline judges it (the gap in a comparison is one of validation losses)", better="lower", needs_baseline=True, short="Training vs BF16"),
    # around the real optimizer step
    Metric("stall_rate", "Stall rate", "share", "share of the weights with a non-zero update whose stored value on the grid did not change" + _READ, _BOTH, "lower", every="diagnostic_interval", short="Stalled"),
    Metric("realised_displacement", "Realised displacement", "ratio", "share of the intended weight change that the stored weights made since the last measurement: 1 = all of it, 0 = frozen; <sum of stored changes, sum of intended updates> / |sum of intended updates|^2" + _READ, _BOTH, "higher", every="diagnostic_interval"),
    Metric("update_to_weight_ratio", "Update to weight", "ratio", "RMS of the optimizer's intended update divided by RMS of the weight", _BOTH, every="diagnostic_interval"),
    Metric("gradient_sparsity", "Gradient sparsity", "share", "share of the gradient values that are exactly zero", _BOTH, every="diagnostic_interval"),
    Metric("zero_update_fraction", "Zero updates", "share", "share of the weights whose stored value did not change in the step" + _READ, _BOTH, every="diagnostic_interval"),
    Metric("decay_lost", "Weight decay lost", "share", "share of the non-zero stored weights that nearest rounding would return to where they were if weight decay (learning rate x weight decay x weight) alone acted; without master weights only", _BOTH, every="diagnostic_interval", is_signal=False),
    Metric("stable_rank", "Stable rank", "", "|W|_F^2 / |W|_2^2 of a weight matrix W: about the number of directions in which it acts; for the whole model the median over layers", _BOTH, every="diagnostic_interval"),
    Metric("stiffness_mean", "Stiffness, mean", "scaled units", "mean stiffness of the non-zero weights: the grid spacing 2^(floor(log2|w|) - M) at the scaled weight w, without the subnormal floor" + _READ, _BOTH, every="diagnostic_interval", switch="log_stiffness"),
    Metric("stiffness_max", "Stiffness, max", "scaled units", "largest stiffness (grid spacing at the weight, without the subnormal floor) of any weight" + _READ, _BOTH, every="diagnostic_interval", switch="log_stiffness"),
    Metric("stiffness_std", "Stiffness, std", "scaled units", "standard deviation of the stiffness (grid spacing at the weight) over the non-zero weights" + _READ, _BOTH, every="diagnostic_interval", switch="log_stiffness"),
    Metric("gradient_stiffness_pearson", "Gradient-stiffness correlation", "r", "Pearson correlation of |gradient| and stiffness (grid spacing at the weight) over the weights" + _READ, _BOTH, every="diagnostic_interval", switch="log_stiffness"),
    Metric("gradient_stiffness_log_correlation", "Gradient-stiffness log correlation", "r", "Pearson correlation of log2 |gradient| and log2 of the stiffness (grid spacing at the weight)" + _READ, _BOTH, every="diagnostic_interval", switch="log_stiffness"),
    Metric("gradient_stiffness_shuffled", "Gradient-stiffness correlation, shuffled", "r", "control: the Pearson correlation of |gradient| and stiffness after the gradient values were shuffled" + _READ, _BOTH, every="diagnostic_interval", switch="log_stiffness", is_signal=False),
    Metric("gradient_stiffness_ratio", "Gradient to stiffness", "ratio", "mean of |gradient| divided by stiffness (grid spacing at the weight), both in the units of the scaled weight" + _READ, _BOTH, every="diagnostic_interval", switch="log_stiffness"),
    Metric("gradient_below_stiffness", "Gradients below stiffness", "share", "share of the weights whose |gradient| is smaller than their stiffness (grid spacing at the weight), in the units of the scaled weight" + _READ, _BOTH, every="diagnostic_interval", switch="log_stiffness"),
    Metric("grid_error_mean", "Grid error, mean", "ULP", "mean distance |w - Q(w)| of a weight from its rounded value, in ULPs" + _READ, _BOTH, every="diagnostic_interval", switch="log_grid_alignment"),
    Metric("grid_error_max", "Grid error, max", "ULP", "largest distance |w - Q(w)| of a weight from its rounded value, in ULPs" + _READ, _BOTH, every="diagnostic_interval", switch="log_grid_alignment"),
    Metric("grid_error_std", "Grid error, std", "ULP", "standard deviation of the distance |w - Q(w)| of a weight from its rounded value, in ULPs" + _READ, _BOTH, every="diagnostic_interval", switch="log_grid_alignment"),
    Metric("grid_error_relative", "Grid error, relative", "ratio", "mean of |w - Q(w)| / |w| over the non-zero weights, with Q(w) the rounded weight" + _READ, _BOTH, every="diagnostic_interval", switch="log_grid_alignment"),
    Metric("on_grid_fraction", "On grid", "share", "share of the weights that equal their rounded value Q(w)" + _READ, _BOTH, every="diagnostic_interval", switch="log_grid_alignment"),
    Metric("ulps_moved_mean", "ULPs moved, mean", "ULP", "mean over the weights of the absolute number of grid positions moved in the step" + _READ, _BOTH, every="diagnostic_interval", switch="log_ulp", short="ULPs moved"),
    Metric("ulps_moved_median", "ULPs moved, median", "ULP", "median over the weights of the absolute number of grid positions moved in the step" + _READ, _BOTH, every="diagnostic_interval", switch="log_ulp"),
    Metric("ulps_moved_max", "ULPs moved, max", "ULP", "largest absolute number of grid positions that a weight moved in the step" + _READ, _BOTH, every="diagnostic_interval", switch="log_ulp"),
    Metric("ulps_moved_zero_fraction", "ULPs moved, zero", "share", "share of the weights that moved by no grid position in the step" + _READ, _BOTH, every="diagnostic_interval", switch="log_ulp"),
    Metric("gradient_cosine_similarity", "Gradient cosine to shadow", "cos", "cosine between the gradient and its shadow: the unrounded gradient of the same weights on the same batch", _BOTH, "higher", every="diagnostic_interval", switch="use_shadow"),
    Metric("gradient_snr_db", "Gradient SNR", "dB", "signal-to-noise ratio 10 log10(|shadow|^2 / |gradient - shadow|^2), where the shadow is the unrounded gradient of the same weights and batch", _BOTH, "higher", every="diagnostic_interval", switch="use_shadow"),
    Metric("shadow_loss", "Shadow loss", "nats", "loss of the same weights on the same batch without rounding", every="diagnostic_interval", switch="use_shadow"),
    # per layer and site only
    Metric("amax", "Largest magnitude", "", "largest finite |x| of the rounded tensor, before scaling", _LAYER, every="diagnostic_interval"),
    Metric("scale", "Scale", "", "factor between values and grid: x is rounded to scale * grid value; the largest, if the tensor has several scales", _LAYER, every="diagnostic_interval"),
)
# fmt: on
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _TABLE}


def described(name: str) -> Metric:
    """The metric of a name; any other name is that of a metric of a run's task, which has no unit."""
    known = METRICS.get(name)
    return known or Metric(name, name.replace("_", " ").capitalize(), "", "a metric of the run's task")


def columns(level: Level) -> list[str]:
    """Names of the metrics of one table, in this module's order."""
    return [metric.name for metric in METRICS.values() if level in metric.levels]

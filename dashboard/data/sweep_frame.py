"""The table of the sweep page as data, for the screen and the exported CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import streamlit as st

from altgrad.compare import Row, by_group, collapse_step, furthest, paired_gap
from altgrad.metrics import METRICS
from altgrad.results.reading.curves import Curve, buckets, measured
from altgrad.show.glossary import meaning
from altgrad.text.number_text import number
from dashboard.data.watched_sweep import WatchedRun, WatchedSweep

CELL_COLUMNS = ("loss", "validation_loss", "ulps_moved_mean")  # besides those of the comparison
_SPARK_BUCKETS = 20
_NUMBER = st.column_config.NumberColumn
# Name in links -> heading on the screen and in the CSV
HEADS: Mapping[str, str] = {
    "run": "Run",
    "group": "Group",
    "format": "Format",
    "variant": "Variant",
    "setting": "Setting",
    "intervention": "Intervention",
    "seed": "Seed",
    "runs": "Runs",
    "collapsed": "Collapsed",
    "learning_rate": METRICS["learning_rate"].label,
    "status": "Status",
    "progress": "Progress",
    "loss_curve": "Loss curve",
    "loss": METRICS["loss"].label,
    "validation_loss": METRICS["validation_loss"].label,
    "best_validation_loss": "Best",
    "best_step": "Best step",
    "gap": "Gap to BF16",
    "gap_low": "Interval low",
    "gap_high": "Interval high",
    "n": "n",
    "said": "Gap with claim",
    "gap_step": "At step",
    "parity": "Parity",
    "seeds_needed": "Seeds to decide",
    "confounds": "Differs besides the format",
    "pairing": "Pairing",
    "rounded_share": "Rounded",
    "branched_from": "Branched from",
    "collapse_step": "Collapse step",
    "collapse_rule": "Rule",
    "stall_rate": METRICS["stall_rate"].label,
    "overflow_rate": METRICS["overflow_rate"].label,
    "ulps_moved_mean": METRICS["ulps_moved_mean"].heading,
    "tokens_per_second": METRICS["tokens_per_second"].heading,
    "seconds": "Time",
}
_LOSSES, _GAPS = ("loss", "validation_loss", "best_validation_loss"), ("gap", "gap_low", "gap_high")
_OF_A_GROUP = "of a group the mean over its runs alive with the latest validation step"
_HELP: Mapping[str, str] = {
    "run": meaning("run"),
    "group": meaning("group"),
    "format": meaning("format"),
    "variant": "what else than the format is special about the recipe, such as stored: no FP32 master weights",
    "setting": "fields other than the format in which the runs of this sweep differ",
    "intervention": meaning("intervention"),
    "seed": "of the initial weights and the order of the batches",
    "runs": "number of runs of the group",
    "collapsed": "number of these runs that collapsed",
    "learning_rate": "the highest one, after warm-up",
    "status": f"killed: {meaning('killed')}; stopped: {meaning('stopped')}",
    "progress": "share of the steps that the run has trained",
    "loss_curve": f"{meaning('loss')}; values that are not finite are left out",
    "loss": f"of the last step: {meaning('loss')}",
    "validation_loss": f"the last one, {meaning('validation_loss')}; {_OF_A_GROUP}",
    "best_validation_loss": "the smallest validation loss; of a group over its runs alive",
    "best_step": "the step of the smallest validation loss",
    "gap": meaning("gap"),
    "gap_low": f"lower end of the {meaning('t interval')}",
    "gap_high": f"upper end of the {meaning('t interval')}",
    "n": "number of seeds with a finite gap",
    "said": "the gap with its interval and what follows from it",
    "gap_step": "the step at which the gap was measured",
    "parity": meaning("parity verdict"),
    "seeds_needed": "number of seeds that would decide between equivalent, worse and better, with a chance of 80 %",
    "confounds": "what else than the format differs from the BF16 run, so that the gap is not one of formats alone",
    "pairing": "why the run cannot be compared with a BF16 run",
    "rounded_share": meaning("coverage"),
    "branched_from": meaning("branch"),
    "collapse_step": "the step of the verdict; of a group the median",
    "collapse_rule": meaning("rule"),
    "stall_rate": f"the last one: {meaning('stall_rate')}",
    "overflow_rate": f"mean over the steps: {meaning('overflow_rate')}",
    "ulps_moved_mean": f"the last one: {meaning('ulps_moved_mean')}",
    "tokens_per_second": f"median over the steps: {meaning('tokens_per_second')}",
    "seconds": "of training; of a group the sum",
}
_KINDS: Mapping[str, Any] = {
    "run": st.column_config.TextColumn(width="medium"),
    "group": st.column_config.TextColumn(width="medium"),
    "said": st.column_config.TextColumn(width="large"),
    "learning_rate": _NUMBER(format="%.2g"),
    "progress": st.column_config.ProgressColumn(format="%.0f %%", min_value=0, max_value=100),
    "loss_curve": st.column_config.LineChartColumn(width="small"),
    **dict.fromkeys(_LOSSES, _NUMBER(format="%.4f")),
    "best_step": _NUMBER(format="%d"),
    **dict.fromkeys(_GAPS, _NUMBER(format="%+.4f")),
    **dict.fromkeys(("stall_rate", "overflow_rate", "rounded_share"), _NUMBER(format="percent")),
    "ulps_moved_mean": _NUMBER(format="%.3g"),
    "tokens_per_second": _NUMBER(format="localized"),
    "seconds": _NUMBER(format="%.0f s"),
}
# Name in links -> how the column is shown, with its meaning at the pointer
COLUMNS: Mapping[str, Any] = {
    name: {**_KINDS.get(name, st.column_config.Column()), "help": f"{said[0].upper()}{said[1:]}."}
    for name, said in _HELP.items()
}


def columns_in(unit: str) -> Mapping[str, Any]:
    """`COLUMNS` for losses of a unit: one whose size says nothing has significant digits instead of decimals."""
    if unit == "nats":
        return COLUMNS
    digits = dict.fromkeys(_LOSSES, "%.5g") | dict.fromkeys(_GAPS, "%+.3g")
    return {
        **COLUMNS,
        **{name: {**_NUMBER(format=shape), "help": COLUMNS[name]["help"]} for name, shape in digits.items()},
    }


def run_frame(rows: Sequence[Row], sweep: WatchedSweep, sparklines: bool = True) -> pd.DataFrame:
    """One row per run."""
    runs = {run.name: run for run in sweep.runs}
    sweep.prefetch(runs.values(), "steps", CELL_COLUMNS)
    cells = []
    for row in rows:
        compute = partial(_measured_cells, runs[row.run], sparklines)
        cells.append(_run_cells(row, sweep.remembered(runs[row.run], ("cells", sparklines), compute)))
    frame = frame_of(cells)
    return frame if sparklines else frame.drop(columns="loss_curve", errors="ignore")


def frame_of(cells: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Records as a frame that distinguishes NaN, which was measured, from None, which was not.

    NumPy columns would hold both as NaN, which tables show as a dash and CSV files as nothing; Arrow columns do not.
    """
    names = dict.fromkeys(name for one in cells for name in one)
    return frame_of_columns({name: [one.get(name) for one in cells] for name in names})


def frame_of_columns(columns: Mapping[str, Any]) -> pd.DataFrame:
    """`frame_of` for columns: lists, in which None is absent, or arrays without absent values."""
    return pd.DataFrame({name: _column(values) for name, values in columns.items()})


def _column(values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return pd.Series(pd.arrays.ArrowExtensionArray(pa.array(values)))
    present = [value for value in values if value is not None]
    if not present or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        return pd.Series(values, dtype=object if not present else None)
    kind = pa.int64() if all(isinstance(value, int) for value in present) else pa.float64()
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.array(values, kind)))


def csv_of(frame: pd.DataFrame) -> str:
    """A frame of `frame_of` as CSV: an absent value is empty; `nan` and `inf` as Python and pandas read them."""
    return str(frame.to_csv(index=False))


def _measured_cells(run: WatchedRun, with_sparkline: bool) -> dict[str, Any]:
    """The cells of a run that need whole curves; the caller remembers them, so that they are computed once."""
    loss, validation, ulps = (_curve(run, name) for name in CELL_COLUMNS)
    finite = validation.finite()
    return {
        "loss_curve": sparkline(loss) if with_sparkline else None,
        "loss": _last(loss),
        "best_step": int(finite.steps[finite.values.argmin()]) if len(finite.steps) else None,
        "ulps_moved_mean": _last(ulps),
    }


def _run_cells(row: Row, measured_cells: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run": row.run,
        "format": row.format,
        "variant": row.variant,
        "setting": row.setting,
        "intervention": row.intervention,
        "seed": row.seed,
        "learning_rate": row.learning_rate,
        "status": row.status,
        "progress": 100 * row.step / row.max_steps,
        "loss_curve": measured_cells["loss_curve"],
        "loss": measured_cells["loss"],
        "validation_loss": row.validation_loss,
        "best_validation_loss": row.best_validation_loss,
        "best_step": measured_cells["best_step"],
        "gap": row.gap,
        "gap_step": row.gap_step,
        "parity": None if row.parity is None else row.parity.word,
        "confounds": ", ".join(row.confounds),
        "pairing": row.pairing,
        "rounded_share": row.rounded_share,
        "branched_from": row.branched_from,
        "collapse_step": row.collapse_step,
        "collapse_rule": row.collapse_rule,
        "stall_rate": row.stall_rate,
        "overflow_rate": row.overflow_rate,
        "ulps_moved_mean": measured_cells["ulps_moved_mean"],
        "tokens_per_second": row.tokens_per_second,
        "seconds": row.seconds,
    }


def group_name(members: Sequence[Row]) -> str:
    """A group's name in links: the name of its first run.  Its label may change, and several groups may share one."""
    return min(row.run for row in members)


def group_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """One row per group of runs that differ in nothing but the seed."""
    return frame_of([_group_cells(members) for members in by_group(rows).values()])


def _group_cells(members: Sequence[Row]) -> dict[str, Any]:
    row, gap = members[0], paired_gap(members)
    losses = [member.validation_loss for member in furthest(members) if member.validation_loss is not None]
    best = [m.best_validation_loss for m in members if m.alive and m.best_validation_loss is not None]
    collapsed = [member for member in members if member.collapsed]
    is_baseline = any(member.is_baseline for member in members)
    return {
        "group": row.group_label,
        "learning_rate": row.learning_rate,
        "runs": len(members),
        "collapsed": len(collapsed),
        "validation_loss": _mean(losses),
        "best_validation_loss": min(best, default=None),
        "gap": gap.mean,
        "gap_step": gap.step,
        "gap_low": gap.low,
        "gap_high": gap.high,
        "n": gap.n,
        "parity": None if gap.parity is None or is_baseline else gap.parity.word,
        "seeds_needed": None if gap.parity is None or is_baseline else gap.parity.seeds,
        "rounded_share": _mean([m.rounded_share for m in members if m.rounded_share is not None]),
        "branched_from": ", ".join(dict.fromkeys(m.branched_from for m in members if m.branched_from)),
        "said": f"baseline, {gap.count}" if is_baseline else gap.sentence,
        "collapse_step": collapse_step(members),
        "collapse_rule": ", ".join(sorted({m.collapse_rule for m in collapsed if m.collapse_rule})),
        "stall_rate": _mean([m.stall_rate for m in members if m.stall_rate is not None]),
        "overflow_rate": _mean([m.overflow_rate for m in members if m.overflow_rate is not None]),
        "tokens_per_second": _mean([m.tokens_per_second for m in members if m.tokens_per_second is not None]),
        "seconds": sum(m.seconds or 0.0 for m in members),
    }


def sparkline(loss: Curve) -> list[float]:
    """The finite losses, thinned to a few points; a cell with a NaN would show nothing."""
    finite = loss.finite()
    return [float(number(value)) for value in buckets(*finite, _SPARK_BUCKETS).values]


def _curve(run: WatchedRun, metric: str) -> Curve:
    return measured(run.table("steps", [metric]), metric)


def _last(curve: Curve) -> float | None:
    return float(curve.values[-1]) if len(curve.values) else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

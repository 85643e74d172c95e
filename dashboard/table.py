"""The sweep page's table as data: what is on the screen and in the exported CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from altgrad.compare import Row, by_group, paired_gap
from altgrad.curves import Curve, buckets, measured
from altgrad.markdown import number
from dashboard.sweep import Sweep, WatchedRun

CELL_COLUMNS = ("loss", "validation_loss", "ulps_moved_mean")  # besides those of the comparison
_SPARK_BUCKETS = 20
_NUMBER = st.column_config.NumberColumn
COLUMNS: Mapping[str, Any] = {
    "Group": st.column_config.TextColumn(width="medium"),
    "What can be said": st.column_config.TextColumn(width="large"),
    "Learning rate": _NUMBER(format="%.2g"),
    "Progress": st.column_config.ProgressColumn(format="%.0f %%", min_value=0, max_value=100),
    "Loss curve": st.column_config.LineChartColumn(width="small", help="training loss; non-finite values left out"),
    "Training loss": _NUMBER(format="%.4f", help="of the last step"),
    "Validation loss": _NUMBER(format="%.4f"),
    "Best": _NUMBER(format="%.4f", help="smallest validation loss"),
    "Best step": _NUMBER(format="%d"),
    "Gap to BF16": _NUMBER(format="%+.4f", help="validation loss minus that of the BF16 run of the same seed"),
    "Interval low": _NUMBER(format="%+.4f", help="95 % t interval over seeds"),
    "Interval high": _NUMBER(format="%+.4f", help="95 % t interval over seeds"),
    "Stall rate": _NUMBER(format="percent"),
    "Overflow rate": _NUMBER(format="percent"),
    "ULPs moved": _NUMBER(format="%.3g"),
    "Tokens/s": _NUMBER(format="localized"),
    "Time": _NUMBER(format="%.0f s"),
}


def run_frame(rows: Sequence[Row], sweep: Sweep, sparklines: bool = True) -> pd.DataFrame:
    """One row per run."""
    runs = {run.name: run for run in sweep.runs}
    sweep.prefetch(runs.values(), "steps", CELL_COLUMNS)
    cells = []
    for row in rows:
        compute = partial(_measured_cells, runs[row.run], sparklines)
        cells.append(_run_cells(row, sweep.remembered(runs[row.run], ("cells", sparklines), compute)))
    frame = pd.DataFrame(cells)
    return frame if sparklines else frame.drop(columns="Loss curve")


def _measured_cells(run: WatchedRun, with_sparkline: bool) -> dict[str, Any]:
    """What takes reading whole curves, so that it is done once per run."""
    loss, validation, ulps = (_curve(run, name) for name in CELL_COLUMNS)
    finite = validation.finite()
    return {
        "Loss curve": sparkline(loss) if with_sparkline else None,
        "Training loss": _last(loss),
        "Best step": int(finite.steps[finite.values.argmin()]) if len(finite.steps) else None,
        "ULPs moved": _last(ulps),
    }


def _run_cells(row: Row, measured_cells: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "Run": row.run,
        "Format": row.format,
        "Variant": row.variant,
        "Intervention": row.intervention,
        "Seed": row.seed,
        "Learning rate": row.learning_rate,
        "Status": row.status,
        "Progress": 100 * row.step / row.max_steps,
        "Loss curve": measured_cells["Loss curve"],
        "Training loss": measured_cells["Training loss"],
        "Validation loss": row.validation_loss,
        "Best": row.best_validation_loss,
        "Best step": measured_cells["Best step"],
        "Gap to BF16": row.gap,
        "At step": row.gap_step,
        "Collapse step": row.collapse_step,
        "Rule": row.collapse_rule,
        "Stall rate": row.stall_rate,
        "Overflow rate": row.overflow_rate,
        "ULPs moved": measured_cells["ULPs moved"],
        "Tokens/s": row.tokens_per_second,
        "Time": row.seconds,
    }


def group_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """One row per group of runs that differ in nothing but the seed; every statistic is the group's own."""
    return pd.DataFrame([_group_cells(members) for members in by_group(rows).values()])


def _group_cells(members: Sequence[Row]) -> dict[str, Any]:
    row, gap = members[0], paired_gap(members)
    losses = [member.validation_loss for member in members if member.validation_loss is not None]
    collapsed = [member for member in members if member.status == "collapsed"]
    return {
        "Group": row.group_label,
        "Learning rate": row.learning_rate,
        "Runs": len(members),
        "Collapsed": len(collapsed),
        "Validation loss": _mean(losses),
        "Best": min((m.best_validation_loss for m in members if m.best_validation_loss is not None), default=None),
        "Gap to BF16": gap.mean,
        "Interval low": gap.low,
        "Interval high": gap.high,
        "n": gap.n,
        "What can be said": "baseline" if row.is_baseline else gap.sentence,
        "Collapse step": _mean([m.collapse_step for m in collapsed if m.collapse_step is not None]),
        "Rule": ", ".join(sorted({m.collapse_rule for m in collapsed if m.collapse_rule})),
        "Stall rate": _mean([m.stall_rate for m in members if m.stall_rate is not None]),
        "Overflow rate": _mean([m.overflow_rate for m in members if m.overflow_rate is not None]),
        "Tokens/s": _mean([m.tokens_per_second for m in members if m.tokens_per_second is not None]),
        "Time": sum(m.seconds or 0.0 for m in members),
    }


def sparkline(loss: Curve) -> list[float]:
    """The loss in few points; finite ones only, since a cell with NaN in it shows nothing at all."""
    finite = loss.finite()
    return [float(number(value)) for value in buckets(*finite, _SPARK_BUCKETS).values]


def _curve(run: WatchedRun, metric: str) -> Curve:
    return measured(run.table("steps", [metric]), metric)


def _last(curve: Curve) -> float | None:
    return float(curve.values[-1]) if len(curve.values) else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

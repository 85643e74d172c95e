"""The metrics that a run's task measures under names of its own: in the table `own`, one row per step and metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from altgrad.config.train_config import BUILT_IN_TASK
from altgrad.metrics import METRICS
from altgrad.results.reading.curves import Curve, measured
from altgrad.results.schema import TableName


class Tables(Protocol):
    """A run whose config and tables can be read."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The fields of its config by name."""
        ...

    def table(self, name: TableName, columns: list[str] | None = None) -> pa.Table:
        """Rows of a table in order of step."""
        ...


def own_names(run: Tables) -> list[str]:
    """Names of the task's metrics that the run has measured, in alphabetical order; the built-in task has none."""
    if run.config.get("task", BUILT_IN_TASK) == BUILT_IN_TASK:
        return []  # no file is looked for
    return sorted(pc.unique(run.table("own", [])["name"]).to_pylist())


def curve_of(run: Tables, metric: str) -> Curve:
    """The curve of a metric, of ours or of the task's; without points if it was not measured."""
    if metric in METRICS:
        return measured(run.table("steps", [metric]), metric)
    rows = run.table("own", ["value"])
    chosen = rows.filter(pc.equal(rows["name"], metric))
    return Curve(chosen["step"].to_numpy().astype(np.int64), chosen["value"].to_numpy().astype(np.float64))

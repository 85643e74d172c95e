"""The tables of a run with their columns and keys, the statuses of a run, and the verdict of a collapsed run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from altgrad.metrics import columns

SCHEMA = 1
Status = Literal["running", "completed", "collapsed", "stopped", "failed", "killed"]
TableName = Literal["steps", "layers", "events", "tensors", "own"]

_KEY: list[tuple[str, Any]] = [("step", pa.int64()), ("attempt", pa.int32())]
_SITE: list[tuple[str, Any]] = [("layer", pa.string()), ("site", pa.string())]
SCHEMAS: Mapping[TableName, pa.Schema] = {
    "steps": pa.schema([*_KEY, ("time", pa.float64()), *((name, pa.float64()) for name in columns("step"))]),
    "layers": pa.schema([*_KEY, *_SITE, *((name, pa.float64()) for name in columns("layer"))]),
    "events": pa.schema([*_KEY, ("time", pa.float64()), ("kind", pa.string()), ("detail", pa.string())]),
    # exponents[i] counts values with floor(log2|x|) = first_exponent + i; zeros and non-finite values have own counts
    "tensors": pa.schema(
        [
            *_KEY,
            *_SITE,
            ("first_exponent", pa.int32()),
            ("exponents", pa.list_(pa.int64())),
            ("zeros", pa.int64()),
            ("non_finite", pa.int64()),
            ("sample", pa.list_(pa.float32())),
        ]
    ),
    # metrics of the run's task, which has its own names for them
    "own": pa.schema([*_KEY, ("name", pa.string()), ("value", pa.float64())]),
}
# The columns that identify a row, together with the attempt; two events may agree in everything, so they have no key.
ROW_KEY: Mapping[TableName, list[str]] = {
    "steps": ["step"],
    "layers": ["step", "layer", "site"],
    "events": [],
    "tensors": ["step", "layer", "site"],
    "own": ["step", "name"],
}
KEY_COLUMNS: Mapping[TableName, list[str]] = {
    name: [column for column in ("step", "attempt", "layer", "site", "name") if column in schema.names]
    for name, schema in SCHEMAS.items()
}


@dataclass(frozen=True)
class Verdict:
    """Why a run counts as collapsed: at `step`, `rule` found `metric` = `value` beyond `limit`."""

    step: int
    rule: str
    metric: str
    value: float
    limit: float
    detail: str = ""

    def sentence(self) -> str:
        """One line for tables and reports: `stalled at step 120: realised displacement 0.021, limit 0.1`."""
        limit = f", limit {self.limit:.4g}" if math.isfinite(self.limit) else ""
        return f"{self.rule} at step {self.step}: {self.metric.replace('_', ' ')} {self.value:.4g}{limit}"

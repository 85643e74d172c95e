"""The rows of a comparison, from which the comparison table, the rescue matrix and the dashboard's pages are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from altgrad.compare.baselines import paired
from altgrad.compare.groups import by_task, with_settings
from altgrad.compare.origin import Origin
from altgrad.compare.pairing import settings_of
from altgrad.compare.parity.verdict import Terms
from altgrad.compare.row import Attempt, Row, Unpaired
from altgrad.compare.statistics import with_parity
from altgrad.results import Run, acts, format_shifts, read_events
from altgrad.results.reading.attempt_time import seconds_of_attempt
from altgrad.results.reading.curves import Curve, measured

STEP_COLUMNS = ["validation_loss", "tokens_per_second", "stall_rate", "overflow_rate", "elapsed_seconds"]
_READERS = 8  # threads: reading waits for the disk or the object store, and decoding happens outside the GIL


def comparison(runs: Iterable[Run], terms: Terms | None = None) -> list[Row]:
    """One row per run, by task, sorted by final validation loss; runs that are not alive come last (see `Row.alive`).

    `terms`: of the parity verdicts; None: the default margin and one look.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        return pair(pool.map(read_row, runs), terms)


def pair(unpaired: Iterable[Unpaired], terms: Terms | None = None) -> list[Row]:
    """`comparison` of runs that were read before: each row gets its group, its baseline, its gap and its verdict."""
    members = with_settings(list(unpaired))
    rows = with_parity(paired(members), terms or Terms())
    order = list(by_task(sorted(rows, key=lambda row: row.run)))
    return sorted(rows, key=lambda row: (order.index(row.task), *_rank(row)))


def read_row(run: Run) -> Unpaired:
    """Read the data for one row: the columns `STEP_COLUMNS` of a run's steps, and its events."""
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
        step=steps["step"][-1].as_py() if steps.num_rows else run.begins_after,
        max_steps=settings.config["max_steps"],
        seconds=_last(measured(steps, "elapsed_seconds")),
        validation_step=int(loss.steps[-1]) if len(loss.steps) else None,
        cpus=held.get("cpus"),
        gpus=held.get("gpus"),
        earlier=tuple(_attempt(one) for one in run.info.get("earlier", [])),
        seconds_now=seconds_of_attempt(steps, run.info.get("attempt", 0)) if "earlier" in run.info else None,
        rounded_share=run.rounded_share,
        bytes_per_parameter=run.bytes_per_parameter,
        loss_unit=run.loss_unit,
        branched_from=run.branch_words,
        started_from=run.start_words,
        begins_after=run.begins_after,
    )
    return Unpaired(row, settings, Origin.of(run.info), loss)


def _attempt(record: Mapping[str, Any]) -> Attempt:
    held = record.get("resources") or {}
    return Attempt(record["seconds"], held.get("cpus"), held.get("gpus"))


def _reason(run: Run) -> str | None:
    """Why the run ended before its last step: the verdict, the error, or the reason of a stop request; else None."""
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
    """Sort key: runs alive first, since the last loss of a run that collapsed early may be lower than a final loss."""
    loss = row.validation_loss
    if loss is None:
        return 3, 0.0, row.run
    if not math.isfinite(loss):
        return 2, 0.0, row.run
    return (0 if row.alive else 1), loss, row.run

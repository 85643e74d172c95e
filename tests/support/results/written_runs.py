"""Runs written by hand through the real writer, metric by metric."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from altgrad.compare import Row, comparison
from altgrad.config.train_config import TrainConfig
from altgrad.results import Run, RunWriter, Status, Verdict, list_runs, read_run
from altgrad.storage.folder import Folder

COLLAPSED = Verdict(35, "diverged", "loss", 9.0, 5.0)
# of the model and its batches, as run.json has them
HASHES: dict[str, Any] = {
    "initial_weights_hash": "a1b2a1b2a1b2a1b2", "batches_hash": "77aa77aa77aa77aa", "vocabulary": 96,
    "parameters": 1000,
}  # fmt: skip


def curve(steps: range, end: float) -> dict[int, float]:
    """A loss that falls from 5 to `end` at the last of the steps."""
    return {step: end + (5 - end) * (1 - step / steps[-1]) for step in steps}


def write_run(
    sweep: Folder,
    name: str,
    losses: dict[int, float],
    *,
    config: dict[str, Any] | None = None,
    intervention: str = "none",
    status: Status | None = "completed",
    verdict: Verdict | None = None,
    events: list[tuple[int, str, dict[str, Any]]] | None = None,
    info: dict[str, Any] | None = None,
    **metrics: dict[int, float],
) -> None:
    """A run whose metrics are given as step -> value; a step without a value is not measured there."""
    writer = RunWriter(sweep / name, flush_seconds=1e9)
    full = TrainConfig(**(config or {})).model_dump()
    writer.start({"run": name, "sweep": sweep.name, "config": full, "intervention": intervention} | (info or {}))
    curves = {"validation_loss": losses, **metrics}
    for step in sorted({step for curve in curves.values() for step in curve}):
        writer.step({"step": step} | {metric: curve[step] for metric, curve in curves.items() if step in curve})
    for step, kind, detail in events or []:
        writer.event(step, kind, **detail)
    if status is None:
        writer.flush()
    else:
        writer.end(status, verdict, {})


def rows_of(sweep: Folder) -> dict[str, Row]:
    return {row.run: row for row in comparison(list_runs(sweep)[0])}


def row(seed: int = 0, gap: float | None = None, **fields: Any) -> Row:
    """A row of a comparison that no folder stands behind."""
    plain: dict[str, Any] = dict(
        run=f"r{seed}", group="g", format="E4M3", variant="", intervention="none", seed=seed, learning_rate=1e-3,
        status="completed", is_baseline=False, validation_loss=None, best_validation_loss=None, gap=gap, gap_step=None,
        collapse_step=None, collapse_rule=None, reason=None, acts={}, shifted_to=None, tokens_per_second=None,
        stall_rate=None, overflow_rate=None, step=100, max_steps=100, seconds=None,
    )  # fmt: skip
    return Row(**(plain | fields))


def write_ended_run(
    folder: Folder,
    verdict: Verdict | None,
    config: dict[str, Any] | None = None,
    steps: Iterable[dict[str, float]] = (),
    layers: Iterable[dict[str, Any]] = (),
    events: Iterable[tuple[int, str, dict[str, Any]]] = (),
) -> Run:
    """A run that has ended, with these rows and events; collapsed if there is a verdict."""
    writer = RunWriter(folder, flush_seconds=1e9)
    full = TrainConfig(**(config or {})).model_dump()
    writer.start({"run": folder.name, "sweep": "sweep", "config": full, "intervention": "none"})
    for record in steps:
        writer.step(record)
    writer.layers(layers)
    for step, kind, detail in events:
        writer.event(step, kind, **detail)
    writer.end("collapsed" if verdict else "completed", verdict, {})
    return read_run(folder)

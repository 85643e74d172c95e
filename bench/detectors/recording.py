"""Trains a run to its end without stopping, and keeps all that a rule may read, one row per step.

Besides the metrics of altgrad a row has what the rules of others need: the gradient norm of each parameter, and the
RMS of gradient over second moment of each (`UpdateRMS`); every 20 steps the largest singular value of each matrix and
the share of its inputs on the rarer side of its first right singular vector.  A run lies in one Parquet file, whose
metadata hold what was trained, so that a finished run is not trained again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from altgrad.training.task.found_task import find_task
from altgrad.training.trainer import Trainer
from bench.detectors.faults import FaultyBatches, plant, strike
from bench.detectors.scenarios import BASE, INTERVAL, Plan

_VERSION = 1  # of the files: increase it if what a run records changes


@dataclass(frozen=True)
class Recording:
    """A run to its end.  rows: by step, a metric that was not measured is None.  held_out: loss by step, from 0."""

    plan: Plan
    vocabulary: int | None
    rows: list[dict[str, Any]]
    held_out: Mapping[int, float]

    @property
    def losses(self) -> dict[int, float]:
        return {row["step"]: row["loss"] for row in self.rows}

    @property
    def steps(self) -> int:
        return len(self.rows)


def read(plan: Plan, folder: Path) -> Recording | None:
    """The run of a plan, read from the folder; None if it is missing, or was trained otherwise."""
    file = folder / f"{plan.name}.parquet"
    if not file.exists():
        return None
    table = pq.read_table(file)
    known = table.schema.metadata
    if json.loads(known[b"plan"]) != _described(plan):
        return None
    held_out = {int(step): float(loss) for step, loss in json.loads(known[b"held_out"]).items()}
    return Recording(plan, json.loads(known[b"vocabulary"]), table.to_pylist(), held_out)


def recorded(plan: Plan, folder: Path) -> Recording:
    """As `read`; a run that is missing is trained and written there."""
    run = read(plan, folder)
    if run is not None:
        return run
    run = train(plan)
    metadata = {
        "plan": json.dumps(_described(plan)),
        "held_out": json.dumps({step: repr(loss) for step, loss in run.held_out.items()}),
        "vocabulary": json.dumps(run.vocabulary),
    }
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{plan.name}.unfinished"
    pq.write_table(pa.Table.from_pylist(_complete(run.rows)).replace_schema_metadata(metadata), unfinished)
    unfinished.replace(folder / f"{plan.name}.parquet")
    return run


def _described(plan: Plan) -> dict[str, Any]:
    """What is trained; not by which runs it is judged."""
    return {"version": _VERSION, "base": dict(BASE), "fields": dict(plan.fields), "faults": plan.faults}


def record(plan: Plan, folder: Path) -> str:
    """As `recorded`, for another process: one line about the run."""
    run = recorded(plan, folder)
    return f"{plan.name:32} held-out loss {run.held_out[run.steps]:.4g}"


def _complete(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = sorted({name for row in rows for name in row})
    return [{name: row.get(name) for name in names} for row in rows]


def train(plan: Plan) -> Recording:
    """Train the run of a plan to its last step."""
    config = plan.config()
    torch.set_num_threads(1)
    task = find_task(config)
    batches = FaultyBatches(task.batches(config), plan.faults, plan.seed)
    trainer = Trainer(config, task.model(config), batches)
    plant(trainer, plan.faults)
    extra: dict[str, Any] = {}
    trainer.optimizer.register_step_post_hook(lambda optimizer, *_: extra.update(_of_update(optimizer)))
    held_out, rows = {0: _validation(trainer)}, []
    for step in range(1, config.max_steps + 1):
        strike(trainer, plan.faults, plan.seed)
        extra.clear()
        record = {"step": step, **trainer.step().record, **extra}
        record.pop("validation_loss", None)
        if step % INTERVAL == 0:
            with _Alignment(trainer) as alignment:
                held_out[step] = _validation(trainer)
            record |= alignment.found()
        rows.append(record)
    return Recording(plan, trainer.batches.vocabulary, _complete(rows), held_out)


def _validation(trainer: Trainer) -> float:
    found = trainer.validation_loss()
    assert found is not None
    return found


def _of_update(optimizer: torch.optim.Optimizer) -> dict[str, list[float]]:
    """After an AdamW step: norm of each gradient, and sqrt(mean(g^2 / v)) of each, v the corrected second moment.

    The latter is `RMS_t` of Wortsman et al. (2023), arXiv:2304.13013, algorithm 2.
    """
    pairs = [
        (parameter.grad, optimizer.state[parameter], group)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    gradients = [gradient for gradient, _, _ in pairs]
    squares = torch._foreach_mul(gradients, gradients)
    seconds = [state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"])) for _, state, group in pairs]
    torch._foreach_clamp_min_(seconds, pairs[0][2]["eps"] ** 2)
    ratios = torch._foreach_div(squares, seconds)
    numbers = torch.stack([torch.stack(torch._foreach_norm(gradients)), torch.stack([r.mean().sqrt() for r in ratios])])
    norms, roots = numbers.tolist()
    return {"gradient_norms": norms, "update_rms": roots}


class _Alignment:
    """While it is open: of each linear layer's inputs, the share on either side of the first right singular vector.

    The sign diversity of spectral alignment, Qiu et al. (2025), arXiv:2510.04202.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._hooks: list[Any] = []
        self._signs: dict[str, list[torch.Tensor]] = {}
        self._largest: list[float] = []
        for name, layer in trainer.layers.items():
            weight = layer.weight.detach().float()
            if weight.isfinite().all():
                _, values, rows = torch.linalg.svd(weight, full_matrices=False)
                self._largest.append(float(values[0]))
                self._hooks.append(layer.register_forward_pre_hook(self._look(name, rows[0])))
            else:
                self._largest.append(math.nan)

    def _look(self, name: str, direction: torch.Tensor) -> Any:
        def look(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            self._signs.setdefault(name, []).append((inputs[0].detach().float() @ direction > 0).flatten())

        return look

    def __enter__(self) -> _Alignment:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def found(self) -> dict[str, list[float]]:
        """By layer: the smaller of the two shares, and the largest singular value."""
        shares = [float(torch.cat(signs).float().mean()) for signs in self._signs.values()]
        return {"sign_diversity": [min(share, 1 - share) for share in shares], "largest_singular": self._largest}

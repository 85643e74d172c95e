"""Sweeps made of invented numbers, written through the real writer: every state that a dashboard has to survive.

The curves have the shapes that training produces (a loss that falls, stalls, or turns into NaN for a while), so
that pictures of pages look like pictures of sweeps; the numbers mean nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from altgrad.config.interventions import intervention_fields
from altgrad.config.train_config import TrainConfig
from altgrad.metrics import RESCUE_ACTS, columns
from altgrad.results import SCHEMA, SCHEMAS, RunWriter, Verdict, write_end
from altgrad.results.part_file import encoded
from altgrad.storage.folder import Folder

LAYERS = tuple(f"blocks.{block}.{part}" for block in range(2) for part in ("attention.qkv", "attention.out", "mlp.up"))
Ending = Literal["completed", "collapsed", "failed", "stopped", "open"]
PLANNED: Mapping[str, Any] = {"run": "e4m3", "config": {"format": "E4M3", "max_steps": 120}}
DAY_AGO = time.time() - 86_400

# How far behind the baseline each format ends, in nats.
LAG = {"BF16": 0.0, "E3M4": 0.02, "E4M3": 0.05, "E5M2": 0.11, "E2M5": 0.08, "E1M6": 0.3, "E0M7": 0.32, "E6M1": 0.5}


class InventedRun:
    """One run's numbers; `rows(first, last)` gives the step records."""

    def __init__(
        self,
        format: str = "E4M3",
        intervention: str = "none",
        seed: int = 42,
        steps: int = 120,
        nan_span: tuple[int, int] | None = None,
        stalls_from: int | None = None,
        **config: Any,
    ) -> None:
        fields = {"format": format, "seed": seed, "max_steps": steps, **intervention_fields(intervention), **config}
        self.config = TrainConfig(**fields)
        self.intervention = intervention
        self.nan_span = nan_span
        self.stalls_from = stalls_from
        self._noise = np.random.default_rng([seed, *format.encode()])
        self._lag = (
            LAG.get(format, 0.8) * (0.5 if intervention != "none" else 1.0) + 0.01 * self._noise.standard_normal()
        )

    @property
    def name(self) -> str:
        extra = "" if self.intervention == "none" else f"_{self.intervention.replace('+', '_')}"
        return f"{self.config.format.lower()}{extra}_lr{self.config.learning_rate:g}_s{self.config.seed}"

    def info(self, sweep: str) -> dict[str, Any]:
        return {
            "run": self.name,
            "sweep": sweep,
            "config": self.config.model_dump(),
            "intervention": self.intervention,
            "versions": {"altgrad": "0.1.0", "torch": "2.13.0"},
            "git_commit": "0123456789abcdef",
            "host": "worker-1",
            "device": "cpu",
            "parameters": 812_544,
            "vocabulary": 96,
            "layers": list(LAYERS),
            "initial_weights_hash": "5f1e",
            "batches_hash": "77aa",
        }

    def loss(self, step: int) -> float:
        if self.nan_span and self.nan_span[0] <= step <= self.nan_span[1]:
            return float("nan")
        reached = step if self.stalls_from is None else min(step, self.stalls_from)
        progress = reached / self.config.max_steps
        noise = 0.04 * float(self._noise.standard_normal())
        return 1.6 + self._lag * progress + 2.9 * np.exp(-6 * progress) + noise

    def rows(self, first: int, last: int) -> Iterator[dict[str, float]]:
        """Step records first..last, with validation loss and diagnostics where the config says so."""
        config = self.config
        for step in range(first, last + 1):
            loss = self.loss(step)
            frozen = self.stalls_from is not None and step > self.stalls_from
            row = {
                "step": step,
                "loss": loss,
                "learning_rate": config.learning_rate * min(1.0, step / 20),
                "gradient_norm": abs(loss) * 0.4,
                "non_finite_gradients": 0.03 if np.isnan(loss) else 0.0,
                "tokens": step * 768.0,
                "elapsed_seconds": step * 0.05,
                "tokens_per_second": 15_000 + 500 * float(self._noise.standard_normal()),
                "overflow_rate": 0.002 * (1 + step / config.max_steps),
                "underflow_rate": 0.01,
                "saturation_rate": 0.001,
            }
            if step % config.eval_interval == 0 or step == config.max_steps:
                row["validation_loss"] = loss + 0.05
            if step % config.diagnostic_interval == 0:
                row["stall_rate"] = 0.97 if frozen else 0.3 + 0.1 * step / config.max_steps
                row["realised_displacement"] = 0.02 if frozen else 0.95
                row["update_to_weight_ratio"] = 1e-3
                row["ulps_moved_mean"] = 0.02 if frozen else 0.8
                row["stable_rank"] = 6.0
            yield row

    def layer_rows(self, step: int) -> Iterator[dict[str, Any]]:
        for depth, layer in enumerate(LAYERS):
            for site in ("weight", "activation", "gradient"):
                row: dict[str, Any] = {
                    "step": step,
                    "layer": layer,
                    "site": site,
                    "amax": 0.3 + depth,
                    "scale": 2.0**-6,
                }
                row |= {"overflow_rate": 1e-3 * depth, "underflow_rate": 0.01 * depth, "saturation_rate": 1e-3}
                if site == "weight":
                    frozen = self.stalls_from is not None and step > self.stalls_from
                    row |= {"stall_rate": 0.97 if frozen else 0.1 * depth, "realised_displacement": 0.9 - 0.1 * depth}
                    row |= {"gradient_sparsity": 0.01 * depth, "stable_rank": 6.0 + depth, "stiffness_mean": 0.1}
                    row |= {"ulps_moved_mean": 1.5 - 0.2 * depth, "gradient_cosine_similarity": 0.99 - 0.01 * depth}
                yield row

    def tensor_rows(self, step: int) -> Iterator[dict[str, Any]]:
        for depth, layer in enumerate(LAYERS[:3]):
            for site in ("weight", "activation", "gradient"):
                sample = self._noise.standard_normal(64) * 0.02 * (depth + 1)
                exponents = np.floor(np.log2(np.abs(sample))).astype(int)
                first = int(exponents.min())
                counts = 100 * np.bincount(exponents - first)
                yield {
                    "step": step,
                    "layer": layer,
                    "site": site,
                    "first_exponent": first,
                    "exponents": counts.tolist(),
                    "zeros": 3,
                    "non_finite": 0,
                    "sample": sample.astype(np.float32).tolist(),
                }


def write_run(
    sweep: Folder,
    run: InventedRun,
    ending: Ending = "completed",
    until: int | None = None,
    verdict: Verdict | None = None,
    started: float = DAY_AGO,
    rows_per_part: int = 50,
) -> Folder:
    """Write a run's folder up to step `until`; `open` leaves it without an end record (running, or killed)."""
    folder = sweep / run.name
    writer = RunWriter(folder, flush_seconds=1e9)
    writer.start(run.info(sweep.name) | {"started": started})
    last = run.config.max_steps if until is None else until
    for first in range(1, last + 1, rows_per_part):
        for row in run.rows(first, min(first + rows_per_part - 1, last)):
            writer.step(row)
            if row["step"] % run.config.diagnostic_interval == 0:
                writer.layers(run.layer_rows(int(row["step"])))
                writer.tensors(run.tensor_rows(int(row["step"])))
        writer.flush()
    if "clip" in run.intervention:
        for step in range(10, last, 10):
            writer.event(step, "clip", gradient_norm=2.5, limit=1.0)
    if verdict is not None:
        writer.event(verdict.step, "verdict", rule=verdict.rule, value=verdict.value, limit=verdict.limit)
        folder.write_bytes("failure_report.md", f"# {run.name}\n\n{verdict.sentence()}\n".encode())
    if ending == "open":
        writer.flush()
    else:
        writer.end(ending, verdict, {"last_step": last})
    if ending == "open" and started < time.time() - 3600:
        for part in Path(folder.path).rglob("part-*"):
            os.utime(part, (started, started))
    return folder


STALLED = Verdict(80, "stalled", "realised_displacement", 0.02, 0.1, "frozen in 3 windows")
NON_FINITE = Verdict(75, "non_finite", "loss", float("nan"), 5.0, "5 steps in a row")


def new_sweep(root: Path, name: str, planned: int | None = None) -> Folder:
    """An empty sweep folder."""
    sweep = Folder.at(root) / name
    content: Mapping[str, Any] = {"schema": SCHEMA, "name": name, "command": "python tune/sweep.py"}
    sweep.write_json("sweep.json", {**content, "runs": [PLANNED] * planned} if planned else content)
    return sweep


def mixed_sweep(root: Path, name: str = "mixed", seeds: tuple[int, ...] = (1, 2, 3), steps: int = 120) -> Folder:
    """Every state at once: healthy, collapsed twice over, NaN in the middle, killed, corrupt, unknown schema."""
    sweep = new_sweep(root, name)
    short: dict[str, Any] = {"steps": steps, "eval_interval": 20, "diagnostic_interval": 10}
    for seed in seeds:
        for format in ("BF16", "E3M4", "E4M3", "E5M2"):
            write_run(sweep, InventedRun(format, seed=seed, **short))
        for intervention in ("none", "clip", "shift", "clip+shift"):
            frozen = InventedRun(
                "E7M0", intervention, seed, stalls_from=None if "shift" in intervention else 50, **short
            )
            if "shift" in intervention:
                write_run(sweep, frozen)
            else:
                write_run(sweep, frozen, "collapsed", until=80, verdict=STALLED)
    write_run(sweep, InventedRun("E5M2", seed=4, nan_span=(40, 60), **short))
    write_run(sweep, InventedRun("E0M7", nan_span=(71, 75), **short), "collapsed", until=75, verdict=NON_FINITE)
    write_run(sweep, InventedRun("E6M1", **short), "open", until=60)
    damaged_run(sweep, InventedRun("E2M5", **short))
    corrupt_run(sweep)
    unknown_schema(sweep)
    return sweep


def running_sweep(root: Path, name: str = "running") -> Folder:
    """One run under way, another not begun to write rows."""
    sweep = new_sweep(root, name, planned=4)
    write_run(sweep, InventedRun("BF16", steps=120, eval_interval=20), "open", until=70, started=time.time() - 4)
    RunWriter(sweep / "e4m3_begun").start(InventedRun("E4M3").info(name) | {"run": "e4m3_begun"})
    return sweep


def damaged_run(sweep: Folder, run: InventedRun, rows_per_part: int = 50) -> Folder:
    """A run that was ended from outside, the last part of its steps damaged."""
    folder = write_run(sweep, run, "open", rows_per_part=rows_per_part)
    corrupt_part(folder)
    write_end(folder, "completed", None, {})
    return folder


def corrupt_part(run: Folder) -> None:
    """Damage a run's last steps part, as a full disk or a half-finished upload does."""
    last = sorted((Path(run.path) / "steps").glob("part-*"))[-1]
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])


def corrupt_run(sweep: Folder, name: str = "torn") -> None:
    """A run whose run.json is half a file."""
    (sweep / name).write_bytes("run.json", b'{"schema": 1, "run": "torn", "conf')


def unknown_schema(sweep: Folder, name: str = "from_the_future") -> None:
    """A run written by a version that does not exist yet."""
    (sweep / name).write_json("run.json", {"schema": 99, "run": name, "config": {}})


def large_sweep(root: Path, runs: int, steps: int, parts: int = 1, name: str = "large") -> Folder:
    """Many finished runs with every common step metric filled; written as columns, because rows would take minutes."""
    sweep = new_sweep(root, name)
    rng = np.random.default_rng(0)
    formats = tuple(LAG)
    index = np.arange(1, steps + 1)
    rare = ("tokens", "elapsed_seconds", "validation_loss", RESCUE_ACTS)
    measured = [c for c in columns("step") if c not in rare][:23]
    for number in range(runs):
        run = InventedRun(formats[number % len(formats)], seed=number // len(formats), steps=steps)
        folder = sweep / run.name
        progress = index / steps
        values: dict[str, Any] = {c: rng.random(steps).astype(np.float32).astype(np.float64) for c in measured}
        values["loss"] = 1.6 + 2.9 * np.exp(-6 * progress) + 0.04 * rng.standard_normal(steps)
        values["tokens"], values["elapsed_seconds"] = index * 768.0, index * 0.05
        values["validation_loss"] = pa.array(values["loss"], mask=(index % 100 != 0))
        keys = {"step": index, "attempt": np.zeros(steps, np.int32), "time": DAY_AGO + index * 0.05}
        arrays = {c: (keys | values).get(c, pa.nulls(steps, pa.float64())) for c in SCHEMAS["steps"].names}
        table = pa.table(arrays, schema=SCHEMAS["steps"])
        Path(folder.path, "steps").mkdir(parents=True)
        for part, begin in enumerate(range(0, steps, -(-steps // parts))):
            path = Path(folder.path, "steps", f"part-000-{part:06d}.parquet")
            path.write_bytes(encoded("steps", table.slice(begin, -(-steps // parts))))
        information = {"schema": SCHEMA, "attempt": 0, "started": DAY_AGO, **run.info(name)}
        Path(folder.path, "run.json").write_text(json.dumps(information))
        end = {"schema": SCHEMA, "ended": DAY_AGO + 500, "status": "completed", "verdict": None, "summary": {}}
        Path(folder.path, "end.json").write_text(json.dumps(end))
    return sweep

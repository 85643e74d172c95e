"""Runs of a model of ten numbers that take a fraction of a second, with everything that is told of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.experiment.outcome import ExperimentResult, Report
from altgrad.results import read_run
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from tests.support.runs.small_runs import SMALL

CONFIG = SMALL.altered(
    format="BF16", learning_rate=0.01, n_layer=None, batch_size=2, max_steps=7, eval_interval=3, diagnostic_interval=2,
    checkpoint_interval=4, non_finite_patience=2, schedule="constant", warmup_steps=0,
)  # fmt: skip


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        for number, parameter in enumerate(self.parameters()):
            nn.init.constant_(parameter, 0.5 + number / 4)
        self.threads: set[int] = set()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.threads.add(torch.get_num_threads())
        return ((self.second(self.first(x)) - y) ** 2).mean()


class Data:
    """Targets of another height at every step; NaN from step `bad` on."""

    vocabulary = None

    def __init__(self, bad: float = math.inf) -> None:
        self._bad = bad

    def training(self, step: int) -> tuple[Tensor, Tensor]:
        x = torch.tensor([[1.0, 0.5], [0.25, -1.0]])
        return x, torch.full((2, 2), math.nan if step >= self._bad else (3.0, 1.0, 2.0)[step % 3])

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        return [self.training(0)]

    def digest(self) -> str:
        return "heights"


def told_run(
    folder: Path | Folder, bad: float = math.inf, hear: Callable[[Report], None] | None = None, **own: Any
) -> tuple[ExperimentResult, list[Report]]:
    """The result of a run that reports every three steps, and its reports."""
    told: list[Report] = []

    def report(news: Report) -> None:
        told.append(news)
        if hear is not None:
            hear(news)

    config = own.pop("config", CONFIG)
    options: dict[str, Any] = {"model": Net(), "batches": Data(bad), "report": report, "report_interval": 3} | own
    return run_format_experiment(config, folder, **options), told


def column(folder: Folder, name: str, table: Any = "steps") -> list[Any]:
    return read_run(folder).table(table, [name]).to_pandas()[name].tolist()


def end_of(folder: Folder) -> dict[str, Any]:
    end = read_run(folder).end
    assert end is not None
    return dict(end)


def checkpoints(folder: Folder) -> list[int]:
    return sorted(int(re.sub(r"step-(\d+)-.*", r"\1", info.base_name)) for info in (folder / "checkpoints").list())

"""Tasks as others write them: what works without a word, and one line for what does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from altgrad.config.train_config import ConfigError
from altgrad.experiment.outcome import Report
from altgrad.results import read_run
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import SMALL
from tune.plan.trial import Trial
from tune.run.trainable import _result

HERE = f"{__name__}:{{}}".format
CONFIG = SMALL.altered(format="E4M3", max_steps=4, eval_interval=4, diagnostic_interval=2)


class Halves:
    """Whether the sum of two numbers is positive."""

    unit = "nats"

    def model(self, config: Any) -> Any:
        return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))

    def loss(self, model: Any, batch: Any) -> Any:
        return functional.cross_entropy(model(batch[0]), batch[1])

    def data(self, config: Any, split: str) -> Any:
        x = torch.randn(60, 4, generator=torch.Generator().manual_seed(len(split)))
        return TensorDataset(x, (x[:, :2].sum(1) > 0).long())

    def classes(self, config: Any) -> int:
        return 2


class Parametrised(Halves):
    def model(self, config: Any) -> Any:
        return nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))


class NothingHeldOut(Halves):
    def data(self, config: Any, split: str) -> Any:
        return super().data(config, split) if split == "training" else None


class Numbers(Halves):
    def loss(self, model: Any, batch: Any) -> Any:
        return super().loss(model, batch), {"rows": len(batch[0]), "half": 0.5, "vector": torch.tensor([2.0])}


class ManyMetrics(Halves):
    def loss(self, model: Any, batch: Any) -> Any:
        return super().loss(model, batch), {"per_class": torch.zeros(2)}


class Detached(Halves):
    def loss(self, model: Any, batch: Any) -> Tensor:
        found: Tensor = super().loss(model, batch)
        return found.detach()


class Lazy(Halves):
    def model(self, config: Any) -> Any:
        return nn.Sequential(nn.LazyLinear(8), nn.GELU(), nn.Linear(8, 2))


class Frozen(Halves):
    def model(self, config: Any) -> Any:
        return super().model(config).requires_grad_(False)


class Two(Halves):
    def optimizer(self, model: Any, config: Any) -> Any:
        return torch.optim.Adam(model[0].parameters()), torch.optim.Adam(model[2].parameters())


class Searching(Halves):
    def optimizer(self, model: Any, config: Any) -> Any:
        return torch.optim.LBFGS(model.parameters())


class FixedRate(Halves):
    def optimizer(self, model: Any, config: Any) -> Any:
        return torch.optim.SGD(
            [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[2].parameters()}], lr=0.1
        )


class TenfoldRate(Halves):
    def optimizer(self, model: Any, config: Any) -> Any:
        return torch.optim.SGD(model.parameters(), lr=10 * config.learning_rate)


class OwnStep(Halves):
    def loss(self, model: Any, batch: Any) -> Any:
        return super().loss(model, batch), {"step": 3}


class Breaking(Halves):
    """Its disk goes after three steps."""

    def data(self, config: Any, split: str) -> Any:
        return self.batch if split == "training" else None

    def batch(self, step: int) -> Any:
        if step > 3:
            raise OSError("the disk is gone")
        return super().data(None, "training")[:4]


class Ragged(Halves):
    def data(self, config: Any, split: str) -> Any:
        return [(torch.zeros(length), 0) for length in range(1, 60)]


def test_a_model_without_a_stored_weight_is_trained(tmp_path: Path) -> None:
    """Of a layer whose weight is computed there is none to compare before and after the step."""
    run = read_run(run_format_experiment(CONFIG.altered(task=HERE("Parametrised")), tmp_path / "run").folder)
    assert run.status == "completed" and run.table("steps", ["stall_rate"])["stall_rate"].null_count == 4


def test_the_rounded_share_is_measured_where_nothing_is_held_out(tmp_path: Path) -> None:
    said: list[str] = []
    config = CONFIG.altered(task=HERE("NothingHeldOut"), on_uncovered="raise")
    run = read_run(run_format_experiment(config, tmp_path / "run", announce=said.append).folder)
    assert said == ["100.0% of the GEMM FLOPs are rounded"] and run.info["coverage"]["share"] == 1.0


def test_an_optimizer_may_multiply_the_rate_of_the_config(tmp_path: Path) -> None:
    config = CONFIG.altered(task=HERE("TenfoldRate"), warmup_steps=0, schedule="constant", learning_rate=0.02)
    trainer = Trainer(config)
    trainer.step()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


def test_a_run_that_fails_says_how_many_steps_it_trained(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        run_format_experiment(CONFIG.altered(task=HERE("Breaking")), tmp_path / "run")
    run = read_run(Folder.at(tmp_path / "run"))
    assert run.status == "failed" and run.end is not None and run.end["summary"]["steps"] == 3
    assert len(run.table("steps")) == 3


def test_no_metric_of_a_task_is_taken_for_a_word_of_ray_s() -> None:
    """Tune ends a trial whose result has a true `done`."""
    trial = Trial("a", CONFIG)
    rows = [{"step": 1.0, "loss": 0.5, "done": 1.0, "status": 2.0}]
    found = _result(trial, Report(1, 4, rows, "running", None, None, "mse"))
    assert "done" not in found and found["status"] == "running" and found["rows"] == rows and found["loss"] == 0.5


def test_plain_numbers_are_metrics(tmp_path: Path) -> None:
    run = read_run(run_format_experiment(CONFIG.altered(task=HERE("Numbers")), tmp_path / "run").folder)
    rows = run.table("own").select(["name", "value"]).to_pylist()
    expected = {"rows": CONFIG.batch_size, "half": 0.5, "vector": 2.0}
    assert {row["name"]: row["value"] for row in rows if not row["name"].startswith("validation_")} == expected


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("ManyMetrics", "the metric per_class is a tensor of shape (2,); give one real number"),
        ("OwnStep", "the metric 'step': give a name of letters, digits and _ that is none of ours"),
        ("Detached", "the loss has no gradient: it does not depend on a trained parameter"),
        ("Lazy", "model(config) has lazy layers without a size (0.weight, 0.bias); run one batch through the model"),
        ("Frozen", "no parameter that requires a gradient"),
        ("Two", "optimizer(model, config) gave a tuple; give one torch.optim.Optimizer"),
        ("Searching", "LBFGS.step() needs a closure"),
        (
            "FixedRate",
            "has the rate 0.1 whatever the config's learning_rate is; use lr=config.learning_rate, or a multiple of "
            "it, and --set learning_rate=0.1",
        ),
        ("Ragged", "data(config, 'training'): its items cannot be put into one batch (stack expects each"),
    ],
)
def test_what_cannot_be_trained_is_one_line(task: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        run_format_experiment(CONFIG.altered(task=HERE(task)), tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ((torch.zeros(4, 8), torch.zeros(4)), "Sequential.forward(input) does not take a batch with 2 entries"),
        (
            {"x": torch.zeros(4, 8), "y": torch.zeros(4)},
            "Sequential.forward(input) does not take a batch with the keys x, y",
        ),
    ],
    ids=["tuple", "dict"],
)
def test_a_model_that_cannot_be_called_with_a_batch_is_one_line_that_says_how_it_is_called(
    batch: Any, said: str, tmp_path: Path
) -> None:
    class Given:
        vocabulary = None

        def training(self, step: int) -> Any:
            return batch

        def validation(self) -> list[Any]:
            return []

        def digest(self) -> str:
            return "given"

    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        run_format_experiment(CONFIG, tmp_path / "run", model=nn.Sequential(nn.Linear(8, 1)), batches=Given())
    assert "a task with a method loss(model, batch)" in str(caught.value) and "\n" not in str(caught.value)

"""A program that calls altgrad finds its process as it was: threads, precision, compiler limits, random numbers."""

from __future__ import annotations

import inspect
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.config
import torch._functorch.config
import torch._inductor.config
from torch import Tensor, nn

from altgrad.config.recipe import Recipe
from altgrad.quantization.quantize import quantize_model
from altgrad.training import FormatExperimentRunner, TrainConfig, run_format_experiment
from altgrad.training.process_settings import full_precision_sums, room_for_graphs
from altgrad.training.trainer import Trainer
from tests.servers.polling import PATIENCE
from tests.support.runs.small_runs import COMPILED, SMALL

CONFIG = SMALL.altered(format="E4M3", max_steps=3, eval_interval=2, diagnostic_interval=2, threads=3, use_shadow=True)


def settings() -> dict[str, Any]:
    """What a process shares, as far as torch, NumPy and Python say."""
    matmul = torch.backends.cuda.matmul
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "precision": (matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision),
        "precision, old interface": (matmul.allow_tf32, torch.get_float32_matmul_precision()),
        "reduced sums": (matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction),
        "cudnn": (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "dynamo": torch._dynamo.config.get_config_copy(),
        "functorch": torch._functorch.config.get_config_copy(),
        "inductor": torch._inductor.config.get_config_copy(),
        "random": (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())),
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "folder": os.getcwd(),
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)},
        "warnings": list(warnings.filters),
    }


def experiment(folder: Path, compile: bool) -> None:
    run_format_experiment(CONFIG.altered(compile=compile), folder)


def own_loop(folder: Path, compile: bool) -> None:
    trainer = Trainer(TrainConfig(**COMPILED, format="E4M3", compile=True) if compile else CONFIG)
    for _ in range(3):
        trainer.step()
    trainer.validation_loss()


def own_model(folder: Path, compile: bool) -> None:
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(4, 4))
    quantize_model(model, Recipe(format="E4M3"))
    model(torch.ones(2, 4)).sum().backward()


@pytest.mark.parametrize(
    ("call", "compile"),
    [
        (experiment, False),
        (own_loop, False),
        pytest.param(own_loop, True, marks=pytest.mark.compiled),
        (own_model, False),
    ],
)
def test_a_call_leaves_the_process_as_it_was(call: Callable[..., None], compile: bool, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    call(tmp_path / "first", compile)  # what is only imported once, such as torch's compiler, is there from now on
    before = settings()
    assert torch.get_num_threads() == threads
    call(tmp_path / "second", compile)
    after = settings()
    assert [name for name in before if before[name] != after[name]] == []


def test_a_step_that_raises_gives_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(CONFIG)
    monkeypatch.setattr(trainer._passes, "step_loss", lambda *batch: 1 / 0)
    before = settings()
    with pytest.raises(ZeroDivisionError):
        trainer.step()
    assert settings() == before


class _Asking(nn.Module):
    """Says in each forward pass whether products of float32 are exact."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float32)
        self.seen: list[tuple[bool, str, bool]] = []

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        matmul = torch.backends.cuda.matmul
        precise = torch.get_float32_matmul_precision()
        self.seen.append((matmul.allow_tf32, precise, matmul.allow_bf16_reduced_precision_reduction))
        return self.linear(inputs).square().mean()


class _Batches:
    vocabulary = None

    def training(self, step: int) -> tuple[Tensor, Tensor]:
        return torch.ones(4, 4), torch.ones(4)

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        return [self.training(0)]

    def digest(self) -> str:
        return "ones"


def test_within_a_step_and_a_validation_products_are_exact_whatever_the_caller_asked_for() -> None:
    before = torch.get_float32_matmul_precision()
    model = _Asking()
    trainer = Trainer(CONFIG.altered(max_steps=2), model, _Batches())
    torch.set_float32_matmul_precision("medium")
    try:
        trainer.step()
        trainer.validation_loss()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(model.seen) >= 2 and set(model.seen) == {(False, "highest", False)}


_CASES = [
    "pass",
    "m.allow_tf32 = True",
    "m.fp32_precision = 'tf32'",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium')",
    "torch.backends.fp32_precision = 'tf32'",
    "m.allow_bf16_reduced_precision_reduction = True",
]
_PROGRAM = """
import os, sys, torch
from altgrad.training.process_settings import full_precision_sums
m = torch.backends.cuda.matmul
def said(ask):
    try:
        return ask()
    except RuntimeError:
        return "mixed"
def state():
    return [said(ask) for ask in (lambda: m.allow_tf32, lambda: m.fp32_precision, torch.get_float32_matmul_precision,
        lambda: torch.backends.mkldnn.matmul.fp32_precision, lambda: m.allow_bf16_reduced_precision_reduction)]
def check(case):
    exec(case)
    before = state()
    with full_precision_sums():
        within = state()
    assert (within[1], within[3], within[4]) == ("ieee", "ieee", False) and within[0] is False, (case, within)
    assert state() == before, (case, before, state())
for case in sys.argv[1:]:
    if os.fork() == 0:  # what a case sets cannot be undone
        check(case)
        os._exit(0)
    if os.wait()[1] != 0:
        sys.exit(1)
"""


def test_precision_is_exact_within_and_restored_however_it_was_set() -> None:
    command = [sys.executable, "-c", _PROGRAM, *_CASES]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr


def test_what_cannot_be_undone_is_not_even_imported_by_a_library_call() -> None:
    program = "import sys, altgrad.experiment.runner; assert 'altgrad.experiment.allocator' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], timeout=PATIENCE).returncode == 0


def test_the_compiler_s_limits_are_given_back_also_after_an_error() -> None:
    """Two calls that are compared do not see what the first one left behind for good."""

    def limits() -> tuple[int, bool]:
        functorch = torch._functorch.config
        return torch._dynamo.config.recompile_limit, functorch.autograd_cache_allow_custom_autograd_functions

    before = limits()
    with pytest.raises(ZeroDivisionError), room_for_graphs():
        assert limits()[0] > before[0] and limits()[1]
        raise ZeroDivisionError
    assert limits() == before


def test_full_precision_can_be_nested() -> None:
    before = settings()["precision"]
    with full_precision_sums():
        with full_precision_sums():
            pass
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert settings()["precision"] == before


def test_the_function_that_runs_an_experiment_shows_the_parameters_of_the_runner() -> None:
    shown = dict(inspect.signature(run_format_experiment).parameters)
    taken = dict(inspect.signature(FormatExperimentRunner).parameters)
    assert shown.keys() == taken.keys()
    assert {n: p.default for n, p in shown.items()} == {n: p.default for n, p in taken.items()}

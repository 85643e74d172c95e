"""What makes things fast, counted exactly: graphs, passes over the data, temporaries, transfers.  Nothing is timed."""

from __future__ import annotations

import copy
import itertools
import os
import platform
import re
import statistics
import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode

from altgrad.config.recipe import Recipe
from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.formats import FORMATS, find_format
from altgrad.quantization.kernel.compiled import CompiledRounding
from altgrad.quantization.kernel.random import draw_key
from altgrad.quantization.kernel.round import spec_of
from altgrad.quantization.kernel.scaled_rounding import Mode, round_site
from altgrad.quantization.quantize import quantize_model
from altgrad.training.compile.step_loss import StepLoss
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import BARE, COMPILED

pytestmark = pytest.mark.compiled


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def assert_eager(rounding: str, granularity: str | None, x: torch.Tensor) -> None:
    """With counts, compiled rounding is the eager one bit for bit, for every format; it draws the same numbers."""
    mode = Mode(rounding, "none" if granularity is None else "dynamic", granularity or "tensor", True, "1.0")
    key = draw_key(generator(), "cpu")
    for fmt in FORMATS.values():
        compiled, counts = CompiledRounding(fmt, rounding, granularity).with_counts(x, generator())
        eager, expected = round_site(x, spec_of(fmt), torch.zeros(0), key, mode)
        assert torch.equal(compiled.view(torch.int32), eager.view(torch.int32)), fmt
        assert torch.equal(counts, expected), fmt


def with_specials(*shape: int) -> torch.Tensor:
    x = torch.randn(shape, generator=generator()) * 3
    x[0, :3] = torch.tensor([float("nan"), float("inf"), 0.0])
    return x


def test_compiled_rows_and_blocks_that_fill_no_groups_are_the_eager_ones():
    assert_eager("nearest", "row", with_specials(64, 96))
    assert_eager("stochastic", "1x32", with_specials(5, 100))


def test_one_graph_serves_all_formats_and_seeds():
    counter = CompileCounterWithBackend("eager")
    mode = Mode("stochastic", "dynamic", "tensor", True, "1.0")
    compiled = torch.compile(lambda *arguments: round_site(*arguments, mode), backend=counter, dynamic=False)
    for fmt, seed in itertools.product(FORMATS.values(), range(2)):
        key = draw_key(torch.Generator().manual_seed(seed), "cpu")
        compiled(torch.randn(8, 8), spec_of(fmt), torch.zeros(0), key)
    assert counter.frame_count == 1


def inductor_code(rounding: str, granularity: str | None, counting: bool) -> str:
    """The code that Inductor writes for rounding a 512 x 512 tensor."""
    rounded = CompiledRounding(FORMATS["E4M3"], rounding, granularity)
    _, (code, *_) = run_and_get_code(rounded.with_counts if counting else rounded, with_specials(512, 512), generator())
    assert "copysign" not in code, "a library call, which spills the registers of the loop"
    return code


@pytest.mark.parametrize(("granularity", "passes"), [(None, 1), ("tensor", 2)])  # of two the first takes the amax
def test_rounding_and_counting_are_one_pass_over_the_data_and_what_eager_code_does(granularity, passes):
    for counting in (False, True):
        code = inductor_code("nearest", granularity, counting)
        assert len(re.findall(r"for\(int64_t x0=[^\n]*?(?:262144L|512L)\)", code)) == passes
    assert_eager("nearest", granularity, with_specials(512, 512))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_amax_scale_rounding_and_counts_of_blocks_are_one_loop_over_128_groups_of_64(rounding):
    code = inductor_code(rounding, "1x32", counting=True)
    assert len(re.findall(r"for\(int64_t x0=[^\n]*?\(128L\); x0\+=static_cast<int64_t>\(1L\)", code)) == 1
    assert not re.search(r"x\d<static_cast<int64_t>\((?:262144|2048|512)L\)", code), "a pass of its own"
    assert_eager(rounding, "1x32", with_specials(512, 512))


def test_compiled_rounding_allocates_its_result_and_nothing_of_its_size():
    x, rounding = torch.randn(512, 512), CompiledRounding(find_format("E4M3"))
    rounding(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        rounding(x)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert x.nbytes <= allocated < 1.1 * x.nbytes


class _Synchronisations(TorchDispatchMode):
    """Counts transfers of single values to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        if operator in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            self.number += 1
        return operator(*arguments, **(keywords or {}))


def test_a_step_reads_its_numbers_in_one_transfer(monkeypatch):
    trainer = Trainer(TrainConfig(**BARE, compile=False))
    trainer.step()
    lists = []
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: lists.append(tensor.shape) or to_list(tensor))
    with _Synchronisations() as single:
        trainer.step()
    assert len(lists) == 1 and single.number == 0


def assert_same_losses(compiled: Trainer, steps: int) -> None:
    """A compiler adds up in another order: float32's last bits, 1.2e-7 each, are all that most steps differ by.

    Where such a bit lies on the two sides of a midpoint, one value is rounded to the other neighbour: 1.5e-6 on the
    machine at hand (4 seeds), and room for more of them on others, whose vectors are of other lengths.  Left to itself
    training makes more of it, 1e-4 within five steps, so each step starts with the same weights and moments.  Other
    random numbers, or a scale from other values, would show in every step.
    """
    eager, found = Trainer(compiled.config.altered(compile=False)), []
    for _ in range(steps):
        compiled.load_state_dict(copy.deepcopy(eager.state_dict()))
        found.append(abs(compiled.step().record["loss"] / eager.step().record["loss"] - 1))
    assert statistics.median(found) < 1e-6
    assert max(found) < (1e-6 if compiled.config.format == "FP32" else 5e-5)


def test_compiled_training_has_the_losses_of_eager_training_with_one_graph_for_all_rounded_formats_and_a_shift():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for fmt, seed in itertools.product(("FP32", "E4M3", "E7M0", "BF16"), (3, 42)):
        assert_same_losses(Trainer(TrainConfig(**COMPILED, format=fmt, seed=seed, compile=True)), steps=20)
    trainer = Trainer(TrainConfig(**COMPILED, format="E5M2", seed=3, compile=True))
    trainer.step()
    for layer in trainer.layers.values():
        layer.set_format("weight", FORMATS["E6M1"])
    trainer.step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # the other is that of FP32, without rounding


def test_auto_compiles_long_runs_and_leaves_short_ones_eager():
    short = Trainer(TrainConfig(**BARE))
    assert short.compiled == "eager" and "saves" in short.compile_reason
    long = TrainConfig(**(BARE | {"max_steps": 10**6}))
    assert StepLoss(short.model, short.layers, long, short.device).how != "eager"


def test_runs_that_share_a_graph_share_its_cost():
    trainer = Trainer(TrainConfig(**BARE, compile=False))
    config = TrainConfig(**(BARE | {"max_steps": 1500, "n_head": 1}))
    assert StepLoss(trainer.model, trainer.layers, config, trainer.device).how == "eager"
    assert StepLoss(trainer.model, trainer.layers, config, trainer.device, runs_alike=100).how != "eager"


@pytest.mark.parametrize("obstacle", ["compiler", "cache"])
def test_where_compiling_is_impossible_auto_falls_back_and_true_refuses(obstacle, tmp_path, monkeypatch):
    if obstacle == "compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr("altgrad.training.compile.step_loss._said", set())
    with pytest.raises(ConfigError, match=r"^compile=true: [^\n]*$"):
        Trainer(TrainConfig(**BARE, compile=True))
    with pytest.warns(UserWarning, match="running eagerly"):
        trainer = Trainer(TrainConfig(**(BARE | {"max_steps": 10**6})))
    assert trainer.compiled == "eager"
    assert trainer.step().record["loss"] > 0


@pytest.mark.parametrize("earlier", ["whole", "blocks", "eager"])
def test_a_restored_run_is_compiled_exactly_as_it_was_before(earlier):
    config = TrainConfig(**(BARE | {"max_steps": 10**7 if earlier == "eager" else 2}))
    assert Trainer(config, compiled_before=earlier).compiled == earlier
    assert Trainer(config).compiled != earlier


def test_a_deep_model_is_compiled_by_its_block_and_a_shallow_long_run_as_one_graph():
    deep = Trainer(TrainConfig(**(BARE | {"max_steps": 4000, "n_layer": 12})))
    assert deep.compiled == "blocks"
    long = TrainConfig(**(BARE | {"max_steps": 10**6}))
    assert StepLoss(*_model(long), long, torch.device("cpu")).how == "whole"


def _model(config: TrainConfig):
    trainer = Trainer(config.altered(compile=False))
    return trainer.model, trainer.layers


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_blocks_share_one_graph_and_leave_the_model_as_it_was_and_later_runs_compile_no_sooner(backend, monkeypatch):
    """Machine code for the graphs takes a minute; what it computes is compared above, in one graph of the model."""
    if backend != "inductor":
        compile = torch.compile
        monkeypatch.setattr(torch, "compile", lambda code, options, **how: compile(code, backend=backend, **how))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    settings = BARE | {"n_layer": 4, "format": "E4M3", "rounding": "stochastic"}
    trainer = Trainer(TrainConfig(**settings, compile="blocks"))

    def chosen():
        """What `auto` decides, alone and in sweeps: eager and compiled losses differ in their last digits."""
        config = TrainConfig(**settings)
        alike = (None, 1, 3, 100)
        return [StepLoss(trainer.model, trainer.layers, config, trainer.device, number).how for number in alike]

    before = chosen()
    assert_same_losses(trainer, steps=10)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # the block's and the head's
    assert not any("forward" in vars(module) for module in trainer.model.modules())
    assert chosen() == before and before[0] == before[1] == "eager"


def test_a_model_without_repeated_blocks_refuses_to_be_compiled_by_them():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
    layers = quantize_model(model, Recipe()).layers
    config = TrainConfig(**BARE, compile="blocks")
    with pytest.raises(ValueError, match=r"^compile='blocks': the model repeats no block[^\n]*$"):
        StepLoss(model, layers, config, torch.device("cpu"))


_MAPPED = """
import ctypes, torch
from altgrad.experiment.allocator import keep_freed_memory

class Mallinfo(ctypes.Structure):
    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"  # <malloc.h>
    _fields_ = [(name, ctypes.c_int) for name in _names.split()]

mallinfo = ctypes.CDLL("libc.so.6").mallinfo
mallinfo.restype = Mallinfo
torch.empty(2**20)
for keep in (False, True):
    if keep:
        keep_freed_memory()
    before = mallinfo()
    mapped, kept = [], []
    for _ in range(5):
        large = [torch.empty(12 * 2**20) for _ in range(3)]  # 48 MiB each, above what glibc's own threshold can grow to
        mapped.append(mallinfo().hblks - before.hblks)
        del large
        kept.append(mallinfo().arena - before.arena)
    print(max(mapped), min(kept))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator's settings are glibc's")
def test_memory_freed_by_a_step_stays_in_the_process():
    """glibc's own books: without the setting each large tensor is a mapping of its own, given back when it is freed."""
    others = ("GLIBC_TUNABLES", "MALLOC_", "LD_PRELOAD")  # settings of somebody else's, or another allocator
    environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}

    output = subprocess.run(
        [sys.executable, "-c", _MAPPED], check=True, capture_output=True, text=True, env=environment
    )
    usual, own = (  # tensors of the three that are mappings of their own; bytes of heap kept when all three are freed
        [int(word) for word in line.split()] for line in output.stdout.splitlines()
    )
    assert usual[0] == 3
    assert own[0] == 0
    assert own[1] >= 2 * 48 * 2**20  # of 144 MiB; some may come from what was free before

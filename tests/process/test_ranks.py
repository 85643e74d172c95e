"""K processes on the same global batch train the run of one process and decide alike.

Real processes, gloo.  All claims about the trainer are made on one pair of processes, which trains case after case.

Tolerances.  What K changes is the order in which float32 values are added up, so that FP32 losses stay within some
ULPs.  Rounded to a format, a value that such a difference pushes over a rounding boundary moves by a whole ULP of the
format, and what follows differs by more.  At the first step nothing has had time to flip: there every case must agree
as closely as FP32; other random numbers, or a scale from half of the batch, would show there at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from altgrad.experiment.outcome import Report
from altgrad.quantization.kernel.random import uniform
from altgrad.quantization.kernel.ranks import Ranks
from altgrad.results import read_run
from altgrad.results.stop_request import request_stop
from altgrad.storage.folder import Folder
from altgrad.training import FormatExperimentRunner, TrainConfig
from altgrad.training.trainer import StepOutcome, Trainer
from tests.support.processes import spawn_ranks
from tests.support.rounding.drawn_bits import drawn_bits, largest_correlation
from tests.support.runs.small_runs import MICRO

pytestmark = pytest.mark.long

SIZE = 2
STEPS = 6
EXACT = 1e-6  # of a loss: 2 to 4 ULPs
RANKED = MICRO.altered(
    diagnostic_interval=STEPS // 3, learning_rate=3e-3, threads=None, log_stiffness=False, log_grid_alignment=False,
    log_ulp=False,
)  # fmt: skip
# nats by which losses may differ; measured within 12 steps: one ULP (5e-7) in FP32, up to 3e-4 with flips
FORMATS_OF: dict[str, tuple[dict[str, Any], float]] = {
    "fp32": ({"format": "FP32"}, 1e-5),
    "dynamic": ({"format": "E4M3"}, 3e-3),
    "unscaled": ({"format": "E5M2", "scaling": "none"}, 3e-3),
    "delayed": ({"format": "E4M3", "scaling": "delayed"}, 3e-3),
    "row": ({"format": "E4M3", "scale_granularity": "row"}, 3e-3),
    "block": ({"format": "E4M3", "scale_granularity": "block"}, 3e-3),
    "stochastic": ({"format": "E4M3", "rounding": "stochastic"}, 3e-3),
    "stored": ({"format": "E4M3", "master_weights": False, "update_rounding": "stochastic"}, 3e-3),
}
MEASURED_AT_THE_FIRST_STEP = ("clip", "dynamic", "row", "block")
CLIP = {"format": "E4M3", "amax_factor": 0.01, "enable_partition_clipping": True, "partition_clip_base": 0.1}
SHIFT = {"format": "E4M3", "enable_emergency_shift": True, "emergency_shift_nan_patience": 1, "weight_decay": 0.5}


class Regression(nn.Module):
    """Two layers, a parameter that no row reaches, and one that only some rows reach."""

    def __init__(self, branches: bool = True) -> None:
        super().__init__()
        self.branches = branches
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.idle = nn.Parameter(torch.ones(4, 4))
        self.some = nn.Parameter(torch.ones(16))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = self.body(x)
        reached = x[:, :1] > 100
        if self.branches and reached.any():
            out = out + torch.where(reached, self.some, 0.0)
        return ((out - y) ** 2).mean()


class OneBadRow:
    """Only the last row, which is the last rank's, reaches `some`; at step 3 it is NaN."""

    vocabulary = None

    def training(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(4, 16, generator=torch.Generator().manual_seed(step))
        y = x.flip(1)
        x[3, 0] = math.nan if step == 3 else 101.0
        return x, y

    def validation(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [self.training(1)]

    def digest(self) -> str:
        return "one bad row"


class GoodRows(OneBadRow):
    """No row reaches `some`."""

    def training(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(4, 16, generator=torch.Generator().manual_seed(step))
        return x, x.flip(1)


@dataclasses.dataclass
class Trained:
    """A run as one rank saw it."""

    outcomes: list[StepOutcome]
    weights: dict[str, torch.Tensor]
    batches_hash: str

    @property
    def losses(self) -> list[float]:
        return [outcome.record["loss"] for outcome in self.outcomes]

    @property
    def events(self) -> list[tuple[int, str]]:
        return [(event.step, event.kind) for outcome in self.outcomes for event in outcome.events]


def train(config: TrainConfig, *own: Any) -> Trained:
    trainer = Trainer(config, *own)
    outcomes = [trainer.step() for _ in range(config.max_steps)]
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    return Trained(outcomes, weights, trainer.batches.digest())


def cases() -> dict[str, Callable[[], Trained]]:
    """What both one process and each of several trains."""
    configs = {name: fields for name, (fields, _) in FORMATS_OF.items()} | {"clip": CLIP}
    configs |= {f"first step, {name}": configs[name] | {"max_steps": 1} for name in MEASURED_AT_THE_FIRST_STEP}
    runs = {name: lambda c=fields: train(RANKED.altered(**c)) for name, fields in configs.items()}
    return runs | {"bad_row": lambda: train(RANKED.altered(**SHIFT, max_steps=6), Regression(), OneBadRow())}


def stop_and_go_on(folder: Path) -> None:
    """A run stopped by a request after 10 of 20 steps, gone on with, and one that was not disturbed."""
    config = RANKED.altered(format="E4M3", rounding="stochastic", max_steps=20, diagnostic_interval=4, n_layer=1)
    rank = Ranks.joined().rank
    place = Folder.at(folder / ("run" if rank == 0 else "no rank but the first touches its folder"))

    def ask(news: Report) -> None:
        if news.status == "running":
            request_stop(place)

    stopped = FormatExperimentRunner(config, place, report=ask).run()
    assert (stopped.status, stopped.steps) == ("stopped", 10)
    if rank == 0:
        place.delete("end.json")
        place.delete("stop.json")
    assert FormatExperimentRunner(config, place).run().status == "completed"
    FormatExperimentRunner(config, Folder.at(folder / ("alone" if rank == 0 else "no rank"))).run()


def work(rank: int, folder: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=SIZE)
    for name, case in cases().items():
        torch.save(case(), folder / f"{name}-{rank}")
    torch.save(drawn_bits(rank), folder / f"drawn-{rank}")
    stop_and_go_on(folder)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    spawn_ranks(work, SIZE, folder)
    return folder


@pytest.fixture(scope="module")
def ranks(several: Path) -> dict[str, list[Trained]]:
    """By case what each rank saw."""
    return {n: [torch.load(several / f"{n}-{r}", weights_only=False) for r in range(SIZE)] for n in cases()}


@pytest.fixture(scope="module")
def one() -> dict[str, Trained]:
    """By case what one process saw."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {name: case() for name, case in cases().items()}
    torch.set_num_threads(threads)
    return found


# numbers


@pytest.mark.parametrize("name", FORMATS_OF)
def test_several_ranks_have_the_losses_of_one_up_to_the_order_of_sums(name, ranks, one):
    expected, found = one[name].losses, ranks[name][0].losses
    assert found[0] == pytest.approx(expected[0], abs=EXACT)
    assert found == pytest.approx(expected, abs=FORMATS_OF[name][1])
    assert ranks[name][0].batches_hash == one[name].batches_hash


@pytest.mark.parametrize("name", FORMATS_OF)
def test_the_record_is_that_of_the_global_batch(name, ranks, one):
    expected, found = one[name].outcomes[0].record, ranks[name][0].outcomes[0].record
    assert found.keys() == expected.keys()
    for metric in expected.keys() - {"elapsed_seconds", "tokens_per_second"}:
        assert found[metric] == pytest.approx(expected[metric], rel=EXACT), metric
    late, expected = ranks[name][0].outcomes[-1].record, one[name].outcomes[-1].record
    assert late["validation_loss"] == pytest.approx(expected["validation_loss"], abs=FORMATS_OF[name][1])
    assert late["shadow_loss"] == pytest.approx(expected["shadow_loss"], abs=FORMATS_OF[name][1])
    assert late["gradient_cosine_similarity"] == pytest.approx(expected["gradient_cosine_similarity"], abs=1e-3)


def test_counts_and_amax_of_each_site_are_those_of_the_global_batch(ranks, one):
    for name in MEASURED_AT_THE_FIRST_STEP:  # later ones differ by flips
        name = f"first step, {name}"
        expected, found = (sites(trained.outcomes[0]) for trained in (one[name], ranks[name][0]))
        assert expected and found.keys() == expected.keys()
        for site, row in expected.items():
            assert found[site]["scale"] == row["scale"]
            assert found[site]["amax"] == pytest.approx(row["amax"], rel=1e-4)
            assert found[site]["saturation_rate"] == pytest.approx(row["saturation_rate"], abs=1e-4)


def sites(outcome: StepOutcome) -> dict[tuple[str, str], Any]:
    return {(row["layer"], row["site"]): row for row in outcome.layers if "scale" in row}


@pytest.mark.parametrize("shape", [(8, 6), (4, 3, 5), (12,)])
def test_a_rank_draws_the_random_numbers_of_its_rows_of_the_whole(shape):
    whole = uniform(torch.tensor([5, 7], dtype=torch.int32), torch.empty(shape), salt=3)
    for rank, rows in enumerate(whole.chunk(4)):
        key = torch.tensor([5, 7, rank], dtype=torch.int32)
        assert torch.equal(uniform(key, torch.empty_like(rows), salt=3, shared=True), rows)


def test_ranks_draw_unrelated_numbers_for_their_rows_and_the_same_for_a_weight(several):
    """One scale per tensor, so that the ranks agree on each amax; the numbers of one rank's rows are not another's."""
    drawn = [torch.load(several / f"drawn-{rank}", weights_only=False) for rank in range(SIZE)]
    found = {source: bits for of_rank in drawn for source, bits in of_rank.items()}
    rows = [bits for source, bits in found.items() if source[4] in ("fprop.activation", "dgrad.gradient")]
    assert len(rows) == SIZE * 16 and largest_correlation(rows) < 5.5
    weights = [[bits for source, bits in of_rank.items() if source[4] == "fprop.weight"] for of_rank in drawn]
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True)) and largest_correlation(weights[0]) < 5.5


# decisions


def test_all_ranks_hold_the_same_weights_and_saw_the_same_numbers(ranks):
    for name, (first, second) in ranks.items():
        assert first.losses == pytest.approx(second.losses, abs=0, nan_ok=True), name
        assert first.events == second.events, name
        for weight, tensor in first.weights.items():
            assert torch.equal(tensor, second.weights[weight]), (name, weight)


def test_the_clipper_acts_at_the_steps_of_the_single_run(ranks, one):
    assert "clip" in {kind for _, kind in one["clip"].events}
    assert ranks["clip"][0].events == one["clip"].events


def test_a_bad_row_on_one_rank_makes_every_rank_skip_the_step_and_shift(ranks, one):
    for trained in (one["bad_row"], *ranks["bad_row"]):
        assert trained.events == [(3, "skip"), (3, "format_shift")]
    for trained in ranks["bad_row"]:
        assert trained.losses == pytest.approx(one["bad_row"].losses, rel=1e-4, nan_ok=True)


def test_parameters_that_few_or_no_rows_reach_move_as_in_one_process(ranks, one):
    for trained in ranks["bad_row"]:
        assert torch.equal(trained.weights["idle"], torch.ones(4, 4))  # no gradient, so no weight decay either
        assert not torch.equal(trained.weights["some"], torch.ones(16))
        assert torch.allclose(trained.weights["some"], one["bad_row"].weights["some"], atol=1e-5)


# compiled

COMPILED = RANKED.altered(format="E4M3", rounding="stochastic", compile=True, max_steps=STEPS)


def compiled(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=SIZE)
    torch.save(train(COMPILED, Regression(branches=False), GoodRows()), folder / f"compiled-{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_compiled_step_on_several_ranks_is_that_of_one_process(tmp_path):
    spawn_ranks(compiled, SIZE, tmp_path)
    first, second = (torch.load(tmp_path / f"compiled-{rank}", weights_only=False) for rank in range(SIZE))
    eager = train(COMPILED.altered(compile=False), Regression(branches=False), GoodRows())
    assert first.losses == second.losses
    assert first.losses[0] == pytest.approx(eager.losses[0], rel=EXACT)
    assert first.losses == pytest.approx(eager.losses, rel=1e-3)
    assert sites(first.outcomes[3]).keys() == sites(eager.outcomes[3]).keys()


# the run's folder


def test_the_first_rank_alone_writes_and_a_run_that_goes_on_is_bit_for_bit_the_undisturbed_one(several):
    assert not [path for path in several.iterdir() if path.name.startswith("no rank")]
    again, alone = (read_run(Folder.at(several / name)) for name in ("run", "alone"))
    assert again.info["workers"] == SIZE and again.info["attempt"] == 1
    kinds = [event["kind"] for event in again.table("events").to_pylist()]
    assert "restore" in kinds
    for metric in ("loss", "gradient_norm", "validation_loss", "underflow_rate"):
        columns = [run.table("steps", [metric])[metric].to_pylist() for run in (again, alone)]
        assert len(columns[0]) == 20 and columns[0] == columns[1]


def test_a_batch_that_does_not_divide_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^batch_size=4 does not divide among 3 workers; use a multiple of them$"):
        Ranks(0, 3).check_batch(4)

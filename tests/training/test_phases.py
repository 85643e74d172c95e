"""A schedule of casts: a run that changes its recipe is a run of the first, continued under the second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from altgrad.config.operands import Operand
from altgrad.config.recipe import Recipe
from altgrad.config.train_config import TrainConfig
from altgrad.explain.arms import Case
from altgrad.explain.cells import healing
from altgrad.quantization.quantize import quantize_model
from altgrad.quantization.quantized_model import QuantizedModel
from altgrad.report import failure_report
from altgrad.results import read_events, read_run
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from altgrad.training.branch_state import adapted
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import SMALL, untimed, weights

SWITCH, STEPS = 4, 7
FP4 = {"format": "E2M1", "scale_granularity": "1x16"}
DELAYED: dict[str, Any] = {
    "format": "E4M3", "gradient_format": "E5M2", "scaling": "delayed", "amax_history": 3, "scale_power_of_two": False,
}  # fmt: skip
REAL = {"format": "E4M3", "scale_power_of_two": False}
STORED = {"format": "E4M3", "master_weights": False}
# name -> the first recipe, what a phase changes in it, the second recipe as it would be written alone
SWITCHES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "forward pass in BF16": (
        {"recipe": "nvfp4", "layer_formats": {}, "high_last_blocks": 0},
        {"gemms": {"fprop": {"format": "BF16"}}},
        {"format": "E2M1", "scale_granularity": "1x16", "scale_power_of_two": False, "gemms": {
            "fprop": {"format": "BF16"},
            "dgrad": {"scale_format": "E4M3", "weight": {"block": "16x16"}, "gradient": {"rounding": "stochastic"}},
            "wgrad": {"scale_format": "E4M3", "hadamard": 16, "gradient": {"rounding": "stochastic"}},
        }},
    ),
    "MXFP8 backward pass": (
        {},
        {"gemms": {gemm: {"format": "E4M3", "block": "1x32"} for gemm in ("dgrad", "wgrad")}},
        {"gemms": {gemm: {"format": "E4M3", "block": "1x32"} for gemm in ("dgrad", "wgrad")}},
    ),
    "one layer, stochastic": (
        FP4, {"rounding": "stochastic", "layer_formats": {"0": "E4M3"}},
        FP4 | {"rounding": "stochastic", "layer_formats": {"0": "E4M3"}},
    ),
    "delayed scaling goes on": (
        DELAYED, {"gemms": {"wgrad": {"rounding": "stochastic"}}},
        DELAYED | {"gemms": {"wgrad": {"rounding": "stochastic"}}},
    ),
    "delayed scaling begins": (
        REAL, {"scaling": "delayed", "amax_history": 3}, REAL | {"scaling": "delayed", "amax_history": 3},
    ),
    "stored weights on another grid": (STORED, {"weight_format": "E3M4"}, STORED | {"weight_format": "E3M4"}),
    "stored stochastically": (
        STORED | {"update_rounding": "stochastic"}, {"format": "E5M2"},
        {"format": "E5M2", "master_weights": False, "update_rounding": "stochastic"},
    ),
}  # fmt: skip


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 16))


def loop(
    quantized: QuantizedModel,
    optimizer: torch.optim.Optimizer,
    steps: range,
    compiled: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Somebody's training loop; the loss of each step."""
    model = compiled or quantized.model
    for step in steps:
        quantized.begin_step(5, step)
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(32, 32, generator=generator)
        loss = (model(x) - x[:, :16].roll(1, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        quantized.after_optimizer(optimizer)
        yield loss.detach()


def started(
    recipe: Recipe, model: nn.Module | None = None, **more: Any
) -> tuple[QuantizedModel, torch.optim.Optimizer]:
    quantized = quantize_model(net() if model is None else model, recipe, **more)
    return quantized, torch.optim.AdamW(quantized.model.parameters(), lr=0.01)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("start", [{"from_step": SWITCH}, {"from_share": 0.45}], ids=["step", "share"])
def test_a_switch_continues_the_first_recipe_under_the_second_bit_for_bit(name: str, start: dict[str, Any]) -> None:
    first, change, second = SWITCHES[name]
    scheduled = started(Recipe(**first, phases=[start | change]), total_steps=STEPS)
    found = list(loop(*scheduled, range(1, STEPS + 1)))

    before = started(Recipe(**first))
    expected = list(loop(*before, range(1, SWITCH)))
    model = net()
    model.load_state_dict(before[0].model.state_dict())
    after = started(Recipe(**second), model)
    after[1].load_state_dict(before[1].state_dict())
    if name == "delayed scaling goes on":
        old = before[0].histories()
        for place, history in after[0].histories().items():
            tensor = place.rpartition(".")[2]
            history.copy_(old[f"{place.split('.')[0]}.{tensor}"])
    expected += loop(*after, range(SWITCH, STEPS + 1))

    assert [loss.item() for loss in found] == [loss.item() for loss in expected]
    assert torch.equal(weights(scheduled[0].model), weights(after[0].model))
    alone = list(loop(*started(Recipe(**first)), range(1, STEPS + 1)))
    assert found[: SWITCH - 1] == alone[: SWITCH - 1] and found != alone


def test_the_trainer_switches_at_the_step_and_says_so() -> None:
    fields: dict[str, Any] = {"recipe": "nvfp4", "high_last_blocks": 0, "n_embd": 32}
    change = {"gemms": {"fprop": {"format": "BF16"}}}
    config = SMALL.altered(**fields, max_steps=6)
    scheduled = Trainer(config.altered(phases=[{"from_share": 0.5} | change]))
    outcomes = [scheduled.step() for _ in range(6)]
    first = Trainer(config)
    expected = [first.step() for _ in range(3)]
    second = Trainer(config.altered(recipe=None, **scheduled.config.in_phase(1).model_dump(exclude={"recipe"})))
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.step_number, second.tokens = 3, first.tokens
    expected += [second.step() for _ in range(3)]
    assert [untimed(one.record) for one in outcomes[:5]] == [untimed(one.record) for one in expected[:5]]
    assert outcomes[5].record["validation_loss"] == expected[5].record["validation_loss"]
    events = [event for one in outcomes for event in one.events]
    assert [(event.kind, event.step) for event in events] == [("phase", 4)]
    assert events[0].detail == {"phase": 1, "start": "from 50% of the run"} | change


def test_what_an_intervention_and_earlier_steps_left_goes_on_in_the_next_phase() -> None:
    recipe = Recipe(**DELAYED, phases=[{"from_step": 3, "gemms": {"wgrad": {"format": "E3M4"}}}])
    quantized, optimizer = started(recipe)
    list(loop(quantized, optimizer, range(1, 3)))
    layer = quantized.layers["0"]
    layer.set_format("gradient", layer.phases[0].by_name["weight"].format)  # a shift from E5M2 to E4M3
    kept = layer.sites["activation"].history.clone()
    assert kept.count_nonzero() == 2
    quantized.begin_step(5, 3)
    names = {name: site.format.name for name, site in layer.sites.items()}
    assert names == {
        "weight": "E4M3", "fprop.activation": "E4M3", "wgrad.activation": "E3M4", "dgrad.gradient": "E4M3",
        "wgrad.gradient": "E3M4",
    }  # fmt: skip
    assert all(torch.equal(layer.sites[f"{gemm}.activation"].history, kept) for gemm in ("fprop", "wgrad"))
    saved = quantized.state_dict()
    again, _ = started(recipe)
    again.load_state_dict(saved)
    assert again.phase == 1 and {n: s.format.name for n, s in again.layers["0"].sites.items()} == names
    with pytest.raises(ValueError, match=r"^quantised state: phases: 1, here 0; it must be of the same model[^\n]*$"):
        started(Recipe(**DELAYED))[0].load_state_dict(saved)


def test_a_loop_of_ones_own_says_how_long_it_is_where_a_share_is_meant() -> None:
    share = Recipe(format="E4M3", phases=[{"from_share": 0.9, "format": "BF16"}])
    with pytest.raises(ValueError, match=r"^phases\[0\].from_share=0.9: a share of an unknown number[^\n]*total_steps"):
        quantize_model(net(), share)
    with pytest.raises(ValueError, match=r"^phases\[0\].from_step=9 never starts: the run has 8 steps$"):
        quantize_model(net(), Recipe(format="E4M3", phases=[{"from_step": 9, "format": "BF16"}]), total_steps=8)
    with pytest.raises(ValueError, match=r"layer_formats: 'head' matches no layer"):
        quantize_model(net(), Recipe(phases=[{"from_step": 9, "layer_formats": {"head": "E4M3"}}]))
    quantized = quantize_model(net(), share, total_steps=500)
    phases = []
    for step in (1, 450, 451, 500):
        quantized.begin_step(5, step)
        phases.append(quantized.phase)
    assert phases == [0, 0, 1, 1]


def test_the_switch_is_in_the_folder_and_in_the_report_of_a_failure(tmp_path: Path) -> None:
    config = SMALL.altered(
        format="E4M3", phases=[{"from_step": 2, "format": "E2M1"}], learning_rate=1e30, gradient_clip=0.0,
        non_finite_patience=2, checkpoint_interval=2,
    )  # fmt: skip
    folder = Folder.at(tmp_path / "run")
    result = run_format_experiment(config, folder)
    run = read_run(folder)
    assert result.status == "collapsed" and result.verdict is not None and result.verdict.step > 2
    (event,) = [event for event in read_events(run) if event.kind == "phase"]
    assert event.step == 2 and event.detail == {"phase": 1, "start": "from step 2", "format": "E2M1"}
    text = failure_report(run)
    assert "| phase of the recipe | 1 |  | 2 | phase 1, start from step 2, format E2M1 |" in text
    assert "(from step 2 format E2M1)" in text and "phase 1" in text.split("## ")[2]


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("change", "graphs"),
    [({"format": "E5M2"}, 1), ({"gemms": {"wgrad": {"rounding": "toward_zero"}}}, 2)],
    ids=["formats are data", "another structure"],
)
def test_a_switch_compiles_a_graph_for_another_structure_and_no_graph_per_step(change: Any, graphs: int) -> None:
    torch._dynamo.reset()
    phases = [{"from_step": 3} | change, {"from_step": 5, "format": "E3M4", "gemms": {"wgrad": {}}}]
    quantized, optimizer = started(Recipe(format="E4M3", phases=phases), nn.Sequential(nn.Linear(32, 16)))
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(quantized.model, backend=counter, fullgraph=True)
    list(loop(quantized, optimizer, range(1, 8), compiled))
    assert quantized.phase == 2 and counter.frame_count == graphs


def test_phases_of_published_recipes_begin_where_their_papers_say() -> None:
    assert TrainConfig(recipe="fp4_all_the_way", max_steps=1040).phase_starts == (1000,)
    late = TrainConfig(recipe="nvfp4_late_bf16", max_steps=1000)
    assert late.phase_starts == (821,)
    plain = TrainConfig(recipe="nvfp4")
    assert late.in_phase(0).casts_at() == plain.casts_at()
    changed = {o for o, cast in late.in_phase(1).casts_at().items() if cast != plain.casts_at()[o]}
    assert changed == {Operand("fprop", "activation"), Operand("fprop", "weight")}


def test_a_branch_goes_on_in_the_phase_of_its_step() -> None:
    phases = [{"from_step": 3, "gemms": {"wgrad": {"format": "E3M4"}}}, {"from_step": 7, "format": "E5M2"}]
    before = SMALL.altered(**DELAYED, phases=phases, max_steps=8, eval_interval=8)
    trunk = Trainer(before)
    for _ in range(4):
        trunk.step()
    state = trunk.state_dict()
    for change in ({"amax_history": 5}, {"amax_history": 2}, {"phases": phases[:1]}):
        after = before.altered(**change)
        branch = Trainer(after)
        branch.load_state_dict(adapted(state, branch.state_dict(), before, after))
        branch.begin_branch(before)
        assert branch.quantized.phase == 1
        kept, ours = trunk.quantized.histories(), branch.quantized.histories()
        common = min(after.amax_history, before.amax_history)
        assert kept.keys() == ours.keys() and all(torch.equal(ours[n][:common], kept[n][:common]) for n in kept)
        assert not [event for event in branch.step().events if event.kind == "phase"]
    assert [trunk.step().events for _ in range(4)][2][0].kind == "phase"  # at step 7
    plain = Trainer(before.altered(phases=[]))
    plain.load_state_dict(adapted(state, plain.state_dict(), before, plain.config))
    plain.begin_branch(before)
    assert plain.quantized.phase == 0 and not plain.step().events


def test_what_is_healed_stays_healed_in_every_phase_and_all_that_some_phase_rounds_can_be() -> None:
    layers = ("h.0.attn.qkv", "lm_head")
    phases = [
        {"from_step": 5, "gemms": {"wgrad": {"format": "E2M1"}}},
        {"from_step": 9, "layer_gemms": {"*": {"wgrad": {"format": "E4M3"}}}},
    ]
    config = TrainConfig(max_steps=20, phases=phases)
    assert Case(config, layers, 0, 4).cells == []
    case = Case(config, layers, 0, 10)
    assert {cell.operand.gemm for cell in case.cells} == {"wgrad"} and len(case.cells) == 4
    healed = config.altered(**healing(config, case.everything, layers))
    for number in range(3):
        for layer in layers:
            assert all(cast.format == "BF16" for cast in healed.in_phase(number).casts_at(layer).values())

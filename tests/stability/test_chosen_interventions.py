"""Which interventions a config has, in which order they act, and what each is given to work on."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from altgrad.config.train_config import TrainConfig
from altgrad.quantization.quantize import quantize_model
from altgrad.stability.interventions import chosen_interventions, intervention_names
from tests.support.runs.restored_runs import EVERYTHING, KAHAN, SCHEDULED, Net

SWITCHES = {
    "enable_emergency_shift": ("shift", "EmergencyShift"),
    "enable_rescue_ladder": ("ladder", "RescueLadder"),
    "enable_partition_clipping": ("clip", "PartitionClipper"),
}


@pytest.mark.parametrize("on", list(itertools.product((False, True), repeat=3)), ids=str)
def test_a_run_has_the_guard_and_then_what_its_config_enables(on: tuple[bool, ...]) -> None:
    config = EVERYTHING.altered(**dict(zip(SWITCHES, on, strict=True)))
    model = Net()
    quantized = quantize_model(model, config)
    optimizer = torch.optim.AdamW(model.parameters())
    wanted = [("guard", "NonFiniteGuard"), *itertools.compress(SWITCHES.values(), on)]
    assert intervention_names(config) == [name for name, _ in wanted]
    guard, *others = chosen_interventions(config, model, quantized, optimizer, 256)
    assert [type(one).__name__ for one in (guard, *others)] == [kind for _, kind in wanted]
    assert guard._interval == config.diagnostic_interval == 3 and guard._snapshot._optimizer is optimizer
    for one in others:
        assert one._layers is quantized.layers
        assert getattr(one, "_config", config) is config
        assert getattr(one, "_write_back", quantized.write_back) is quantized.write_back is not None
        assert getattr(one, "_optimizer", optimizer) is optimizer


@pytest.mark.parametrize(
    ("config", "histories", "compensations"), [(KAHAN, 6, 3), (EVERYTHING, 6, 0), (SCHEDULED, 6 + 12 + 6, 0)]
)
def test_guard_and_ladder_keep_what_depends_on_earlier_weights(
    config: TrainConfig, histories: int, compensations: int
) -> None:
    """Running mean and variance, but neither their count nor a buffer without values; histories; compensations.

    Activation and gradient of three layers have a history, in the second phase once more for `wgrad`; weights rest on
    their grid.
    """
    model = Net()
    model.register_buffer("empty", torch.zeros(0))
    quantized = quantize_model(model, config, total_steps=24)
    optimizer = torch.optim.AdamW(model.parameters())
    config = config.altered(enable_rescue_ladder=True)
    guard, _, ladder, _ = chosen_interventions(config, model, quantized, optimizer, 256)
    norm = model.body[1]
    assert isinstance(norm, nn.BatchNorm1d)
    kept = guard._companions
    assert kept[0] is norm.running_mean and kept[1] is norm.running_var
    assert all(one.numel() and one.is_floating_point() for one in kept)
    assert [id(one) for one in kept[2 + histories :]] == [id(one) for one in quantized.compensations().values()]
    assert len(kept) == 2 + histories + compensations
    assert guard._snapshot._companions is ladder._healthy._companions is kept

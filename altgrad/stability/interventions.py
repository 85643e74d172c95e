"""Builds the interventions of a config, in the order in which they act on a step."""

from __future__ import annotations

import torch

from altgrad.config.train_config import TrainConfig
from altgrad.quantization.quantized_model import QuantizedModel
from altgrad.stability.clipper import PartitionClipper
from altgrad.stability.guard import NonFiniteGuard
from altgrad.stability.ladder import RescueLadder
from altgrad.stability.protocol import Intervention
from altgrad.stability.shift import EmergencyShift


def intervention_names(config: TrainConfig) -> list[str]:
    """Names of the interventions that `chosen_interventions` builds, in its order."""
    chosen = {
        "guard": True,
        "shift": config.enable_emergency_shift,
        "ladder": config.enable_rescue_ladder,
        "clip": config.enable_partition_clipping,
    }
    return [name for name, wanted in chosen.items() if wanted]


def chosen_interventions(
    config: TrainConfig,
    model: torch.nn.Module,
    quantized: QuantizedModel,
    optimizer: torch.optim.Optimizer,
    vocabulary: int | None,
) -> list[Intervention]:
    """The guard, which every run has, then those that the config enables; `vocabulary`: see `CollapseDetector`.

    The guard also keeps what depends on earlier weights: the model's buffers, amax histories, and compensations.
    """
    past = [buffer for buffer in model.buffers() if buffer.is_floating_point() and buffer.numel()]
    past += quantized.histories_of_all_phases()
    past += quantized.compensations().values()
    chosen: list[Intervention] = [NonFiniteGuard(optimizer, config.diagnostic_interval, past)]
    if config.enable_emergency_shift:
        chosen.append(EmergencyShift(config, quantized.layers, quantized.write_back))
    if config.enable_rescue_ladder:
        chosen.append(RescueLadder(config, quantized.layers, optimizer, vocabulary, quantized.write_back, past))
    if config.enable_partition_clipping:
        chosen.append(PartitionClipper(config, quantized.layers))
    return chosen

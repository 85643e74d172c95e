"""What can be known not to train is refused before anything is created: device, text, names of layers."""

from __future__ import annotations

from collections.abc import Sequence

from altgrad.config.train_config import ConfigError, TrainConfig
from tune.plan.machine import Machine
from tune.plan.trial import Trial

_TEXT_FIELDS = set(TrainConfig.of_kind("model", "data"))  # what decides whether a text can be trained on


def check_inputs(trials: Sequence[Trial], machine: Machine) -> list[str]:
    """A sentence for each text about what was taken from it.  Raises ConfigError."""
    from altgrad.training.data import TextBatches, load_corpus

    checked: dict[str, TextBatches] = {}
    for trial in trials:
        config = trial.config
        if config.device.startswith("cuda") and not machine.gpus:
            raise ConfigError(f"{trial.run}: device={config.device!r}: {machine.gpu_note}; use device=cpu or auto")
        key = config.model_dump_json(include=_TEXT_FIELDS)
        if key not in checked:
            checked[key] = TextBatches(load_corpus(config), config, config.shape.block_size)
        vocabulary = checked[key].vocabulary
        if config.layer_formats and vocabulary is not None:
            _check_layers(trial, vocabulary)
    return list(dict.fromkeys(batches.source.sentence() for batches in checked.values()))


def _check_layers(trial: Trial, vocabulary: int) -> None:
    """Refuse a glob of `layer_formats` that matches no layer of the model, which is made without its weights."""
    import torch

    from altgrad.quantization.quantized_model import quantize_model
    from altgrad.training.model import build_gpt

    try:
        with torch.device("meta"):
            quantize_model(build_gpt(trial.config, vocabulary), trial.config.altered(native_fp8=False))
    except ValueError as error:
        raise ConfigError(f"{trial.run}: {error}") from error

"""Checks trials before anything is created: the device exists, the text can be read, layer globs match a layer."""

from __future__ import annotations

from collections.abc import Sequence

from altgrad.config.train_config import ConfigError, TrainConfig
from tune.plan.machine import Machine
from tune.plan.trial import Trial

_TEXT_FIELDS = set(TrainConfig.of_kind("model", "data"))  # fields that decide whether a text can be used


def check_inputs(trials: Sequence[Trial], machine: Machine) -> list[str]:
    """Check all trials; return one sentence per text about the data read from it.  Raises ConfigError."""
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
        if (config.layer_formats or config.layer_gemms) and vocabulary is not None:
            _check_layers(trial, vocabulary)
    return list(dict.fromkeys(batches.source.sentence() for batches in checked.values()))


def _check_layers(trial: Trial, vocabulary: int) -> None:
    """Raise ConfigError if a glob over layer names matches no layer; the model is made on `meta`, without weights."""
    import torch

    from altgrad.quantization.quantized_model import quantize_model
    from altgrad.training.model import build_gpt

    try:
        with torch.device("meta"):
            quantize_model(build_gpt(trial.config, vocabulary), trial.config.altered(native_fp8=False))
    except ValueError as error:
        raise ConfigError(f"{trial.run}: {error}") from error

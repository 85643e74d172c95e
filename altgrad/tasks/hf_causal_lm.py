"""A causal language model of transformers on the config's text or token ids: any architecture, or a local checkpoint.

    python tune/sweep.py --task hf_causal_lm --task-arg model=llama num_hidden_layers=4 hidden_size=256 \\
        intermediate_size=688 num_attention_heads=4 num_key_value_heads=4 --data corpus/ --formats E4M3 E7M0
    python tune/sweep.py --task hf_causal_lm --task-arg model=path/to/checkpoint --data tokens/ --formats E4M3 BF16

Nothing is downloaded.  A folder with weights is started from, one with a config alone is initialised.  Without a folder
the vocabulary is that of the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.text.error_hints import cut, did_you_mean, shown
from altgrad.training.task.gpt import NextToken

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")


class HFCausalLM(NextToken):
    """The task.

    model: an architecture's name in transformers (`gpt2`, `llama`, `qwen3`, ...), or a local folder with config.json.
    settings: fields of the model's config, which replace its own.
    """

    def __init__(self, model: str = "gpt2", **settings: Any) -> None:
        super().__init__()
        if find_spec("transformers") is None:
            raise ConfigError("needs transformers, which is not installed: pip install transformers")
        self._folder = Path(model).expanduser()
        self._name, self._settings = model, settings

    def model(self, config: TrainConfig) -> nn.Module:
        """The model in float32, with the checkpoint's weights if there are any.  Raises ConfigError."""
        import transformers

        found = self._config(config)
        block, longest = config.shape.block_size, getattr(found, "max_position_embeddings", None)
        if longest is not None and block > longest:
            raise ConfigError(
                f"block_size={block}: {self._name} takes at most {longest} tokens; use a smaller block_size"
            )
        make: Any = transformers.AutoModelForCausalLM
        if self._has_weights:
            made = make.from_pretrained(self._folder, config=found, dtype=torch.float32, local_files_only=True)
        else:
            made = make.from_config(found, dtype=torch.float32)
        assert isinstance(made, nn.Module)
        return made

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The cross-entropy of the next token in nats."""
        tokens, targets = batch  # the targets are shifted already, which the model would do with `labels`
        logits = model(input_ids=tokens, use_cache=False).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def classes(self, config: TrainConfig) -> int:
        """Size of the model's vocabulary, which is at least that of the data."""
        return int(self._config(config).vocab_size)

    @property
    def _has_weights(self) -> bool:
        return any(any(self._folder.glob(pattern)) for pattern in _WEIGHTS)

    def _config(self, config: TrainConfig) -> Any:
        """The model's config with the settings.  Raises ConfigError if there is none, or if the data do not fit it."""
        import transformers

        data = super().classes(config)
        settings: Mapping[str, Any] = self._settings
        auto: Any = transformers.AutoConfig
        try:
            if self._folder.is_dir():
                found = auto.from_pretrained(self._folder, local_files_only=True, **settings)
            else:
                found = auto.for_model(self._name, **({"vocab_size": data} | dict(settings)))
        except (ValueError, KeyError, OSError) as error:
            near = did_you_mean(self._name, transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES)
            raise ConfigError(
                f"model={shown(self._name)}: no architecture of transformers, and no folder with a config.json"
                f"{near or f' ({cut(str(error))})'}"
            ) from error
        if data is not None and data > found.vocab_size:
            raise ConfigError(
                f"data={shown(config.data)}: {data} ids, but {self._name} has a vocabulary of {found.vocab_size}; "
                "tokenise the data with the model's tokenizer"
            )
        return found


task = HFCausalLM

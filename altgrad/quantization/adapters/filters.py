"""Choices of layers for `quantize_model(..., filter_fn=)`: a function of (module, name), false for what stays plain.

LoRA (as peft builds it) adds two small linear layers to each chosen one: `lora_A` and `lora_B` beside `base_layer`.
Without a filter base and adapters are both rounded.
"""

from __future__ import annotations

from torch import nn

_ADAPTERS = ("lora_A", "lora_B")


def lora_adapters(module: nn.Module, name: str) -> bool:
    """Round the layers of LoRA's adapters alone."""
    return any(part in _ADAPTERS for part in name.split("."))


def lora_base(module: nn.Module, name: str) -> bool:
    """Round all layers but those of LoRA's adapters."""
    return not lora_adapters(module, name)

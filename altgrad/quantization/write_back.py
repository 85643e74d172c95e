"""Training without master weights: the stored weight is rounded back to its grid after every optimizer step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from altgrad.config.recipe import Recipe
from altgrad.quantization.kernel.random import derived_words, fill_key
from altgrad.quantization.kernel.scaled_rounding import round_site
from altgrad.quantization.layers import QuantizedLinear

_ORIGIN = 0x57  # separates the keys of a step's further write-backs from other derived keys


class WriteBack:
    """Rounds each layer's weight back to its grid; a weight that several layers share is rounded once.

    `corrections[layer]`, (out, in), accumulates rounded minus intended weight, from which the update that the optimizer
    intended can be computed; `counts[layer]` are the counts of the last rounding.
    """

    def __init__(self, layers: Mapping[str, QuantizedLinear], recipe: Recipe) -> None:
        """Raises ValueError for a weight whose dtype cannot hold the values of its grid."""
        self._layers: dict[str, QuantizedLinear] = {}
        for name, layer in layers.items():
            if not any(layer.weight is other.weight for other in self._layers.values()):
                self._layers[name] = layer
        for layer in self._layers.values():
            _check_dtype(layer, recipe)
        self._rounding = recipe.update_rounding
        self._keys: dict[torch.device, Tensor] = {}
        self._step, self._done = (0, 0), 0
        self.corrections = {
            name: torch.zeros_like(layer.weight, dtype=torch.float32, requires_grad=False)
            for name, layer in self._layers.items()
        }
        self.counts: dict[str, Tensor] = {}

    def begin_step(self, seed: int, step: int) -> None:
        """Draw the random numbers of this step from now on; a further write-back in the same step draws new ones."""
        self._step, self._done = (seed, step), 0

    @torch.no_grad()
    def __call__(self) -> None:
        """Round all weights in place."""
        words = self._step if self._done == 0 else derived_words(*self._step, _ORIGIN, self._done)
        self._done += 1
        filled = set()
        for name, layer in self._layers.items():
            weight, site = layer.weight.float(), layer.site("weight")
            device = weight.device
            key = self._keys.setdefault(device, layer.key.new_zeros(2))
            if self._rounding == "stochastic" and device not in filled:
                fill_key(key, *words)
                filled.add(device)
            mode = site.mode._replace(rounding=self._rounding, at_rest=True)
            rounded, self.counts[name] = round_site(weight, site.spec, site.history, key, mode)
            self._correction(name, device).add_(rounded - weight)
            layer.weight.copy_(rounded)

    def _correction(self, name: str, device: torch.device) -> Tensor:
        """The accumulated correction of a layer, moved to `device` if the model has moved."""
        kept = self.corrections[name]
        if kept.device != device:
            self.corrections[name] = torch.zeros_like(kept, device=device) if kept.is_meta else kept.to(device)
        return self.corrections[name]

    def forget(self) -> None:
        """Zero the corrections, after the rounding of the initial weights, which belongs to no step."""
        for correction in self.corrections.values():
            correction.zero_()
        self.counts.clear()


def _check_dtype(layer: QuantizedLinear, recipe: Recipe) -> None:
    """Raise ValueError if the parameter's dtype cannot hold every value of the grid exactly."""
    fmt, dtype = layer.format_of("weight"), layer.weight.dtype
    if dtype in (torch.float32, torch.float64):
        return
    kept = {torch.bfloat16: 7, torch.float16: 10}.get(dtype)
    if kept is None:
        reason = "formats are simulated in float32"
    elif fmt.mantissa_bits > kept:
        reason = f"{fmt} has {fmt.mantissa_bits} mantissa bits, {dtype} has {kept}"
    elif (recipe.scaling == "none" or fmt.exponent_bits == 8) and fmt.max > torch.finfo(dtype).max:
        reason = f"without a scale {fmt} reaches {fmt.max:.5g}, {dtype} {torch.finfo(dtype).max:.5g}"
    else:
        return
    raise ValueError(
        f"master_weights=False: layer {layer.name} has a weight of {dtype}, which cannot hold {fmt} exactly "
        f"({reason}); use a float32 model, master_weights=True or a narrower weight_format"
    )

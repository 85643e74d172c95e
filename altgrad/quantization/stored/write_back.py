"""Training without master weights: the stored weight is rounded back to its grid after every optimizer step.

The rounding error is dropped (nearest; stochastic, where its mean is zero), stored beside the weight and added to the
next update (kahan), or added to the optimizer's momentum (eco, see `error_feedback`).  Kahan's compensation is stored
in BF16, two bytes per weight: it is at most half a ULP of the weight, so that the 8 significant bits of BF16 extend the
precision of the weight (Zamirai et al., arXiv 2010.06192, who also store the weights in BF16).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from altgrad.config.recipe import Recipe
from altgrad.formats import FORMATS
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm
from altgrad.quantization.gemms.sharded import own_part
from altgrad.quantization.kernel.compiled import round_stored_compiled
from altgrad.quantization.kernel.random import derived_words, fill_key
from altgrad.quantization.kernel.round import Rounding, round_to_format, spec_of
from altgrad.quantization.kernel.scaled_rounding import Mode
from altgrad.quantization.kernel.site import Site
from altgrad.quantization.stored.error_feedback import Feedback
from altgrad.quantization.stored.stored_dtype import dtype_obstacle

_UNSCALED = Mode("nearest", "none", "tensor", True, "1.0")  # of compensations
_LARGEST = 1.0  # the magnitude of a usual layer's largest weights, in powers of two
_ORIGIN = 0x57  # separates the keys of a step's further write-backs from other derived keys


class WriteBack:
    """Rounds each layer's weight back to its grid; a weight that several layers share is rounded once.

    Of a weight that is divided among processes (FSDP2, tensor parallelism) each rounds its part, with the scale of the
    whole; its tensors below are of that part.
    `corrections[layer]`, (out, in), accumulates rounded minus intended weight, from which the update that the optimizer
    intended can be computed; `counts[layer]` are the counts of the last rounding.  `compensations[layer]`, (out, in),
    only with `update_rounding: kahan`: the part of the intended weight that the stored one lacks, on the BF16 grid.
    `compiled`: whether the rounding is compiled, which changes no weight.
    """

    compiled = False

    def __init__(self, layers: Mapping[str, RoundedGemm], recipe: Recipe) -> None:
        """Raises ValueError for a weight whose dtype cannot hold the values of its grid."""
        self._layers: dict[str, RoundedGemm] = {}
        for name, layer in layers.items():
            if not any(layer.weight is other.weight for other in self._layers.values()):
                self._layers[name] = layer
        for layer in self._layers.values():
            _check_stored(layer)
            for phase in layer.phases:
                _check_dtype(layer, recipe, phase.by_tensor["weight"][0])
        self._rounding: Rounding = "stochastic" if "stochastic" in recipe.update_rounding else "nearest"
        self.feeds_back = recipe.update_rounding.startswith("eco")
        self._keys: dict[torch.device, Tensor] = {}
        self._step, self._done = (0, 0), 0
        self.corrections = self._zeros()
        self.compensations = self._zeros() if recipe.update_rounding == "kahan" else {}
        self.counts: dict[str, Tensor] = {}

    def begin_step(self, seed: int, step: int) -> None:
        """Draw the random numbers of this step from now on; a further write-back in the same step draws new ones."""
        self._step, self._done = (seed, step), 0

    def _zeros(self) -> dict[str, Tensor]:
        return {
            name: torch.zeros_like(own_part(layer.weight), dtype=torch.float32, requires_grad=False)
            for name, layer in self._layers.items()
        }

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer | None = None) -> None:
        """Round all weights in place; with eco, add the rounding errors to the momentum of `optimizer`.

        optimizer: None if the rounding does not follow an optimizer step (initial weights, a change of formats).
        """
        feedback = Feedback(optimizer) if self.feeds_back and optimizer is not None else None
        words = self._step if self._done == 0 else derived_words(*self._step, _ORIGIN, self._done)
        self._done += 1
        filled = set()
        for name, layer in self._layers.items():
            if feedback is not None and not feedback.takes(layer.weight):
                continue  # its own optimizer's call rounds it: here its error would be lost
            stored = own_part(layer.weight)
            weight = stored.float()
            device = weight.device
            key = self._keys.setdefault(device, layer.key.new_zeros(3))
            if self._rounding == "stochastic" and device not in filled:
                fill_key(key, *words)
                filled.add(device)
            wanted = weight
            if self.compensations:
                compensation = _on(device, self.compensations, name)
                wanted = weight + compensation
            rounded, self.counts[name] = layer.rounded_at_rest(wanted, key, self._rounding, self.compiled)
            if self.compensations:
                compensation.copy_(self._in_bf16(wanted - rounded))
            if feedback is not None:
                feedback.add(layer.weight, weight - rounded)
            _on(device, self.corrections, name).add_(rounded - weight)
            stored.copy_(rounded)

    def _in_bf16(self, lacking: Tensor) -> Tensor:
        if not self.compiled:
            return round_to_format(lacking, FORMATS["BF16"])
        spec, none = spec_of(FORMATS["BF16"], device=lacking.device), lacking.new_zeros(0)
        return round_stored_compiled(lacking, spec, none, self._keys[lacking.device], _UNSCALED)[0]

    def forget(self) -> None:
        """Zero corrections and compensations, after the rounding of the initial weights, which belongs to no step."""
        for kept in (*self.corrections.values(), *self.compensations.values()):
            kept.zero_()
        self.counts.clear()


def _on(device: torch.device, tensors: dict[str, Tensor], name: str) -> Tensor:
    """The tensor of that name, moved to `device` if the model has moved."""
    kept = tensors[name]
    if kept.device != device:
        tensors[name] = torch.zeros_like(kept, device=device) if kept.is_meta else kept.to(device)
    return tensors[name]


def _check_stored(layer: RoundedGemm) -> None:
    """Raise ValueError if the weight is computed in every forward pass, so that it cannot be stored rounded."""
    if not isinstance(layer.weight, nn.Parameter):
        raise ValueError(
            f"master_weights=False: layer {layer.name} computes its weight from other parameters (weight norm or "
            "another parametrisation), so that none is stored; use master_weights=True, or leave the layer out"
        )


def _check_dtype(layer: RoundedGemm, recipe: Recipe, site: Site) -> None:
    """Raise ValueError if the parameter's dtype cannot hold every value of a weight's grid exactly."""
    dtype = layer.weight.dtype
    if dtype in (torch.float32, torch.float64):
        return
    if recipe.update_rounding not in ("nearest", "stochastic"):
        raise ValueError(
            f"update_rounding={recipe.update_rounding!r}: layer {layer.name} has a weight of {dtype}, in which the "
            "error that is to be kept is lost before it is measured; use a float32 model"
        )
    reason = dtype_obstacle(dtype, site.rounded.cast, _LARGEST)
    if reason is not None:
        raise ValueError(
            f"master_weights=False: layer {layer.name} has a weight of {dtype}, which cannot hold {site.format} "
            f"exactly ({reason}); use a float32 model, master_weights=True or a narrower weight_format"
        )

"""Optimizer moments in few bits: after every optimizer step they are rounded in place, as if stored in the format.

The tensors stay float32 but hold only values of the scaled grid, so that the result equals that of an optimizer which
packs its moments after a step and unpacks them before the next.  Moments of all matrices are rounded (weights of linear
layers, embeddings); those of vectors (norms, biases), which are few and sensitive, stay in FP32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from altgrad.config.optimizer_states import MOMENTS, Moment, MomentCast
from altgrad.quantization.kernel.expansion import expanded
from altgrad.quantization.kernel.random import derived_words, fill_key
from altgrad.quantization.kernel.scaled_rounding import mode_of, rounded_values, spec_for

_ORIGIN = 0x4D  # separates the keys of moments from those of weights and operands
# Names of the moments in the state of torch's optimizers: Adam and its variants, SGD with momentum.
_NAMES: Mapping[Moment, tuple[str, ...]] = {
    "first_moment": ("exp_avg", "momentum_buffer"),
    "second_moment": ("exp_avg_sq",),
}


class OptimizerStates:
    """Rounds the moments for which a recipe has casts.  It needs no checkpoint: the optimizer holds the moments.

    Stochastic rounding draws independent numbers for each (seed, step, parameter, moment).
    """

    def __init__(self, casts: Mapping[Moment, MomentCast]) -> None:
        self._casts = casts
        self._words = (0, 0)
        self._keys: dict[torch.device, Tensor] = {}
        self._specs: dict[tuple[Moment, int, torch.device], Tensor] = {}

    @property
    def stochastic(self) -> bool:
        """Whether a moment is rounded stochastically, so that `begin_step` is needed."""
        return any(moment.cast.rounding == "stochastic" for moment in self._casts.values())

    def begin_step(self, seed: int, step: int) -> None:
        """Draw the random numbers of this step from now on."""
        self._words = derived_words(seed, step, _ORIGIN)

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer) -> None:
        """Round the moments of all matrices in place; a parameter that has had no gradient yet has none.

        Raises ValueError if the optimizer has no such moment.
        """
        matrices = [p for group in optimizer.param_groups for p in group["params"] if p.ndim >= 2]
        filled: set[torch.device] = set()
        for place, parameter in enumerate(matrices):
            state = optimizer.state.get(parameter)
            if not state:
                continue
            for moment, how in self._casts.items():
                kept = _kept(state, moment, optimizer)
                key = self._key(kept.device, filled)
                kept.copy_(self._rounded(kept.float().flatten(), moment, how, place, key).view_as(kept))

    def _rounded(self, x: Tensor, moment: Moment, how: MomentCast, place: int, key: Tensor) -> Tensor:
        spec = self._spec(moment, how, place, x.device)
        mode = mode_of(how.cast, "last")
        history = spec.new_zeros(0, dtype=torch.float32)
        if not how.range_expansion:
            return rounded_values(x, spec, history, key, mode)
        spread = expanded(x, how.cast.number_format, how.cast.block)
        return spread.contracted(rounded_values(spread.values, spec, history, key, mode))

    def _key(self, device: torch.device, filled: set[torch.device]) -> Tensor:
        key = self._keys.get(device)
        if key is None:
            key = self._keys[device] = torch.zeros(2, dtype=torch.int32, device=device)
        if self.stochastic and device not in filled:
            fill_key(key, *self._words)
            filled.add(device)
        return key

    def _spec(self, moment: Moment, how: MomentCast, place: int, device: torch.device) -> Tensor:
        spec = self._specs.get((moment, place, device))
        if spec is None:
            salt = place * len(MOMENTS) + MOMENTS.index(moment)
            spec = spec_for(how.cast, how.cast.number_format, salt, device)
            self._specs[moment, place, device] = spec
        return spec


def _kept(state: Mapping[str, Tensor], moment: Moment, optimizer: Optimizer) -> Tensor:
    for name in _NAMES[moment]:
        if state.get(name) is not None:
            return state[name]
    raise ValueError(
        f"{moment}: {type(optimizer).__name__} keeps no {' or '.join(_NAMES[moment])}; use AdamW, or leave {moment} out"
    )

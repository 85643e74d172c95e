"""Optimizer moments in few bits: after every optimizer step they are rounded in place, as if stored in the format.

The tensors stay float32 but hold only values of the scaled grid, so that the result equals that of an optimizer which
packs its moments after a step and unpacks them before the next.  Moments of all matrices are rounded (weights of linear
layers, embeddings); those of vectors (norms, biases), which are few and sensitive, stay in FP32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from altgrad import torch_private
from altgrad.config.optimizer_states import MOMENTS, Moment, MomentCast
from altgrad.quantization.gemms.sharded import is_sharded
from altgrad.quantization.kernel.compiled import round_each_compiled
from altgrad.quantization.kernel.random import derived_words, fill_key
from altgrad.quantization.kernel.scaled_rounding import mode_of, rounded_each, spec_for
from altgrad.quantization.stored.expansion import expanded
from altgrad.quantization.stored.stored_dtype import dtype_obstacle

_ORIGIN = 0x4D  # separates the keys of moments from those of weights and operands
# Names of the moments in the state of torch's optimizers: Adam and its variants, SGD with momentum.
_NAMES: Mapping[Moment, tuple[str, ...]] = {
    "first_moment": ("exp_avg", "momentum_buffer"),
    "second_moment": ("exp_avg_sq",),
}


_AT_ONCE = 1 << 20  # values in one pass: 4 MiB, so that small matrices share a pass and large ones need no copies


class OptimizerStates:
    """Rounds the moments for which a recipe has casts.  It needs no checkpoint: the optimizer holds the moments.

    Moments of matrices of one size are rounded in one pass (see `rounded_each`), because a step of a small model would
    otherwise consist of the overhead of its operations.  Stochastic rounding draws independent numbers for each (seed,
    step, parameter, moment).  `compiled`: whether the pass is compiled, which changes no value.
    """

    compiled = False

    def __init__(self, casts: Mapping[Moment, MomentCast]) -> None:
        self._casts = casts
        self._step, self._done = (0, 0), 0
        self._words = (0, 0)
        self._keys: dict[torch.device, Tensor] = {}
        self._specs: dict[tuple[Moment, torch.device], Tensor] = {}
        self._salts: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    @property
    def stochastic(self) -> bool:
        """Whether a moment is rounded stochastically, so that `begin_step` is needed."""
        return any(moment.cast.rounding == "stochastic" for moment in self._casts.values())

    def begin_step(self, seed: int, step: int) -> None:
        """Draw the random numbers of this step from now on; the step's next optimizer draws others."""
        self._step, self._done = (seed, step), 0

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer) -> None:
        """Round the moments of all matrices in place; a parameter that has had no gradient yet has none.

        Raises ValueError if the optimizer has no such moment, has it divided among processes, or keeps it in a dtype
        that cannot hold the grid.
        """
        again = (self._done,) if self._done else ()
        self._words, self._done = derived_words(*self._step, _ORIGIN, *again), self._done + 1
        matrices = [p for group in optimizer.param_groups for p in group["params"] if p.ndim >= 2]
        filled: set[torch.device] = set()
        for moment, how in self._casts.items():
            alike: dict[tuple[int, torch.device, torch.dtype], list[tuple[int, Tensor]]] = {}
            for place, parameter in enumerate(matrices):
                if state := optimizer.state.get(parameter):
                    kept = _kept(state, moment, optimizer)
                    if is_sharded(kept):
                        raise ValueError(f"{moment}: moments of parameters that are divided among processes stay FP32")
                    _check_dtype(moment, how, kept.dtype)
                    if kept.numel():
                        salt = place * len(MOMENTS) + MOMENTS.index(moment)
                        alike.setdefault((kept.numel(), kept.device, kept.dtype), []).append((salt, kept))
            for (values, device, _), found in alike.items():
                key = self._key(device, filled)
                most = max(1, _AT_ONCE // values)
                for start in range(0, len(found), most):
                    self._round(moment, how, found[start : start + most], key)

    def _round(self, moment: Moment, how: MomentCast, found: Sequence[tuple[int, Tensor]], key: Tensor) -> None:
        """Round moments of one size, each with its salt, in one pass."""
        kept = [one for _, one in found]
        alone = len(kept) == 1 and kept[0].is_contiguous() and kept[0].dtype == torch.float32
        x = kept[0].view(1, -1) if alone else torch.stack([one.reshape(-1) for one in kept]).float()
        spec = self._spec(moment, how, x.device)
        salts = self._salts_of(tuple(salt for salt, _ in found), x.device)
        mode = mode_of(how.cast, "last")
        if mode.granularity == "tensor":
            mode = mode._replace(granularity="row")  # of the stack: a row is a whole moment
        if not how.cast.number_format.scaled:
            mode = mode._replace(scaling="none")  # the scale would be 1, and its amax a pass of its own
        if how.range_expansion:
            spread = expanded(x, how.cast.number_format, mode.granularity)
            rounded = spread.contracted(rounded_each(spread.values, spec, salts, key, mode))
        elif self.compiled:
            round_each_compiled(x, spec, salts, key, mode)
            rounded = x
        else:
            rounded = rounded_each(x, spec, salts, key, mode)
        if not (alone and rounded is x):
            torch_private.copy_each(kept, [row.view_as(one) for row, one in zip(rounded, kept, strict=True)])

    def _key(self, device: torch.device, filled: set[torch.device]) -> Tensor:
        key = self._keys.get(device)
        if key is None:
            key = self._keys[device] = torch.zeros(2, dtype=torch.int32, device=device)
        if self.stochastic and device not in filled:
            fill_key(key, *self._words)
            filled.add(device)
        return key

    def _spec(self, moment: Moment, how: MomentCast, device: torch.device) -> Tensor:
        spec = self._specs.get((moment, device))
        if spec is None:
            spec = self._specs[moment, device] = spec_for(how.cast, how.cast.number_format, 0, device)
        return spec

    def _salts_of(self, salts: tuple[int, ...], device: torch.device) -> Tensor:
        """The salts on the device, kept from step to step: a copy from the host would synchronise."""
        found = self._salts.get((salts, device))
        if found is None:
            found = self._salts[salts, device] = torch.tensor(salts, dtype=torch.int32, device=device)
        return found


def _kept(state: Mapping[str, Tensor], moment: Moment, optimizer: Optimizer) -> Tensor:
    for name in _NAMES[moment]:
        if state.get(name) is not None:
            return state[name]
    raise ValueError(
        f"{moment}: {type(optimizer).__name__} keeps no {' or '.join(_NAMES[moment])}; use AdamW, or leave {moment} out"
    )


def _check_dtype(moment: Moment, how: MomentCast, dtype: torch.dtype) -> None:
    """Raise ValueError if a moment's dtype would round its values a second time."""
    if dtype in (torch.float32, torch.float64):
        return
    reason = dtype_obstacle(dtype, how.cast, None)
    if reason is None and how.range_expansion:
        reason = "its expanded values are no powers of two times those of a format"
    if reason is not None:
        raise ValueError(
            f"{moment}: the optimizer keeps it in {dtype}, which cannot hold {how} exactly ({reason}); use a float32 "
            f"model, or leave {moment} out"
        )

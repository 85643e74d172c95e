"""Warns once if a training loop omits `begin_step` or `after_optimizer`, which would silently give wrong numbers.

A hook on `optimizer.step()`, which every loop calls, checks it.  It reads no tensor, does not synchronise with a device
and is part of no compiled graph.  Optimizers that do not derive from torch's are not noticed.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from altgrad.quantization.gemms.rounded_gemm import RoundedGemm


class Reminder:
    """Warns at the second step of an optimizer of these layers if a needed call did not happen in between."""

    def __init__(self, layers: Iterable[RoundedGemm], *, begin_step: bool, after_optimizer: bool) -> None:
        self._weights = {id(parameter) for layer in layers for parameter in layer.trained()}
        self._needs = {"begin_step": begin_step, "after_optimizer": after_optimizer}
        self._stepped: dict[str, set[int]] = {call: set() for call, needed in self._needs.items() if needed}
        listener = weakref.ref(self)

        def heard(optimizer: Optimizer, *_: Any) -> None:
            reminder = listener()
            if reminder is not None:
                reminder._heard(optimizer)

        if self._stepped:
            weakref.finalize(self, register_optimizer_step_post_hook(heard).remove)

    def stop(self) -> None:
        """Warn no more."""
        self._stepped.clear()

    def step_begun(self) -> None:
        """Note that `begin_step` was called."""
        self._stepped.get("begin_step", set()).clear()

    def written(self) -> None:
        """Note that `after_optimizer` was called."""
        self._stepped.get("after_optimizer", set()).clear()

    def _heard(self, optimizer: Optimizer) -> None:
        if not any(id(p) in self._weights for group in optimizer.param_groups for p in group["params"]):
            return
        for call, stepped in list(self._stepped.items()):
            if id(optimizer) in stepped:
                del self._stepped[call]
                warnings.warn(_FORGOTTEN[call], stacklevel=4)
            stepped.add(id(optimizer))


_FORGOTTEN = {
    "begin_step": "optimizer.step() a second time without quantized.begin_step(seed, step) in between: the random "
    "numbers of stochastic rounding are not those of the step, and the run cannot be repeated",
    "after_optimizer": "optimizer.step() a second time without quantized.after_optimizer(optimizer) in between: "
    "weights without masters and rounded moments leave their grids, and delayed scaling never learns an amax",
}

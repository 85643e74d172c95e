"""How counts of an output gradient leave a compiled backward pass: as gradients of dummy inputs.

A compiled graph has no side effects in its backward pass, so that counts come out as the gradient of an input that
nothing else depends on.  Autograd adds up what several uses of one input give, but of amax and scale the largest is
wanted: each use of a layer in a graph gets an input of its own, and what one backward call left there is folded into
the site's counts before the next one could be added to it.  Eager backward passes hand their counts over directly.
"""

from __future__ import annotations

import weakref
from typing import Protocol

import torch
from torch import Tensor

from altgrad.quantization.kernel.counters import COUNTERS, SUMS


class Counter(Protocol):
    """What collects the counts of a rounding (a `Site`)."""

    spec: Tensor
    slots: Slots

    def add_counts(self, counts: Tensor) -> None: ...


MOST_USES = 32  # of one layer in one compiled graph


class Slots:
    """The dummy inputs of one site: `of(use)`, (len(COUNTERS),) float32."""

    def __init__(self, site: Counter) -> None:
        device, self._site = site.spec.device, weakref.ref(site)
        self.first = torch.zeros(len(COUNTERS), dtype=torch.float32, device=device, requires_grad=True)
        shape = MOST_USES - 1, len(COUNTERS)
        self.further = torch.zeros(shape, dtype=torch.float32, device=device, requires_grad=True)
        self.used = 0
        for slot in (self.first, self.further):
            slot.register_post_accumulate_grad_hook(_Fold(self._site))

    def next(self) -> Tensor:
        """The slot of the next use in this graph.  Raises ValueError where a graph has more uses than slots."""
        use, self.used = self.used, self.used + 1
        if use == 0:
            return self.first
        if use >= MOST_USES:
            raise ValueError(
                f"a rounded layer is used more than {MOST_USES} times in one compiled graph; do not compile this "
                "model, or quantise it with counting=False"
            )
        return self.further[use - 1]


class _Fold:
    """After a backward call: moves a slot's gradient into the counts of its site."""

    def __init__(self, site: weakref.ref[Counter]) -> None:
        self._site = site

    def __call__(self, slot: Tensor) -> None:
        site, counts, slot.grad = self._site(), slot.grad, None
        if site is None or counts is None:
            return
        site.slots.used = 0
        if counts.ndim == 2:
            counts = torch.cat([counts[:, :SUMS].sum(0), counts[:, SUMS:].amax(0)])
        site.add_counts(counts)

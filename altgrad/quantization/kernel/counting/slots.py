"""Counts of an output gradient leave a compiled backward pass as gradients of dummy inputs, the slots.

The backward pass of a compiled graph can have no side effects.  The rounding of an output gradient therefore returns
its counts as the gradient of an input on which no other result depends.

Autograd adds up the gradients of several uses of one input.  For an overflow count that is right (3 + 4 = 7); of amax
and scale the largest is wanted (amaxes of 5.0 and 2.0 give 5.0, not 7.0).  So each use of a layer within one graph
gets its own slot, and a hook folds the gradient of a slot into the site's counts after every backward call, before
the next call can add to it.  An eager backward pass adds its counts to the site directly.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from altgrad.quantization.kernel.counting.counters import COUNTERS, SUMS


class Counter(Protocol):
    """The part of a `Site` that slots need: it collects the counts of a rounding."""

    spec: Tensor
    slots: Slots

    def add_counts(self, counts: Tensor) -> None:
        """Add the counts of one pass, (len(COUNTERS),) float32."""


Collector = TypeVar("Collector", bound=Counter)
MOST_USES = 32  # of one layer in one compiled graph


class Slots:
    """The dummy inputs of one site, one per use within a graph, each (len(COUNTERS),) float32 (see `next`)."""

    def __init__(self, site: Counter) -> None:
        device, self._site = site.spec.device, weakref.ref(site)
        self.first = torch.zeros(len(COUNTERS), dtype=torch.float32, device=device, requires_grad=True)
        shape = MOST_USES - 1, len(COUNTERS)
        self.further = torch.zeros(shape, dtype=torch.float32, device=device, requires_grad=True)
        self.used = 0
        for slot in (self.first, self.further):
            slot.register_post_accumulate_grad_hook(_Fold(self._site))

    def next(self) -> Tensor:
        """The slot of the next use in this graph.  Raises ValueError if a graph has more than MOST_USES uses."""
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
    """A hook that moves a slot's gradient into the counts of its site after each backward call."""

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


def counted_in_backward(sites: Sequence[Collector]) -> tuple[list[Tensor], list[Collector] | None]:
    """(slots, sites) for the counts of roundings in a backward pass: if the sites are None, the slots take them."""
    if torch.compiler.is_compiling():
        return [site.slots.next() for site in sites], None
    return [site.slots.first for site in sites], list(sites)

"""Which random numbers a recomputed forward pass repeats: those of the forward pass, whatever has begun since.

Activation checkpointing (torch.utils.checkpoint) computes a forward pass again within the backward pass, and tells
nobody which one.  With pipelined micro-batches other keys were set in between: forward 1, forward 2, backward 1.  The
running node of autograd tells it: nodes are numbered in the order in which they were made, so that a node was made
under the key that was set last before its number.  A reentrant checkpoint runs a backward pass of its own within the
recomputation, whose nodes were made there; a recomputation within it (nested checkpoints) repeats the outer one's key.
"""

from __future__ import annotations

import bisect
import threading
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from altgrad import torch_private

KEPT = 1024  # keys, of the latest micro-batches: more than a pipeline is long


class SetKey(NamedTuple):
    """A key that was set: the number of the first node that may belong to it, its place among all, and its values."""

    first_node: int
    order: int
    on: Mapping[torch.device, Tensor]


class PastKeys:
    """The latest keys of a model's layers, by the autograd nodes that were made under them."""

    def __init__(self) -> None:
        self._set = [SetKey(torch_private.next_node_number(), 0, {})]
        self._thread: int | None = threading.get_ident()  # whose nodes the numbers count; None: several threads'
        self._running: list[_Backward] = []  # each within a recomputation of the one before it

    @property
    def order(self) -> int:
        """Place of the present key among all that were set."""
        return self._set[-1].order

    def note(self, on: Mapping[torch.device, Tensor]) -> None:
        """Note that these keys, one per device, are those of forward passes from now on."""
        self._set.append(SetKey(torch_private.next_node_number(), self.order + 1, on))
        del self._set[:-KEPT]
        self._thread = threading.get_ident()

    def note_use(self) -> None:
        """Note a forward pass: its nodes are counted by its thread."""
        if self._thread != threading.get_ident():
            self._thread = None

    def of_recomputation(self, layer: str) -> SetKey:
        """The key of the forward pass that is being recomputed.  Raises ValueError if it is no longer known."""
        number = torch_private.backward_pass_number()
        alive = [one for one in self._running if one.lives()]
        self._running = alive[: next((n + 1 for n, one in enumerate(alive) if one.number == number), None)]
        if not self._running or self._running[-1].number != number:
            outer = self._running[-1].key if self._running else self._of_node(layer)
            self._running.append(_Backward(number, outer))
        elif len(self._running) == 1:
            self._running[0].key = self._of_node(layer)
        return self._running[-1].key

    def _of_node(self, layer: str) -> SetKey:
        node = torch_private.running_node_number()
        if len(self._set) == 1 or node is None:
            return self._set[-1]
        place = bisect.bisect_right([one.first_node for one in self._set], node) - 1
        if place < 0 or self._thread is None:
            why = "by several threads" if self._thread is None else f"more than {KEPT} calls of begin_step ago"
            raise ValueError(
                f"layer {layer}: activation checkpointing recomputes a forward pass that was made {why}, whose random "
                "numbers are no longer known; use rounding='nearest', or no checkpointing"
            )
        return self._set[place]

    def __getstate__(self) -> dict[str, Any]:
        """State for a copy or a pickle: no backward pass runs in it."""
        return {**vars(self), "_running": []}


class _Backward:
    """A backward pass in which forward passes are recomputed, and the key of the latest one."""

    def __init__(self, number: int, key: SetKey) -> None:
        token = _Token()
        torch_private.keep_until_backward_ends(token)
        self.number, self.key, self.lives = number, key, weakref.ref(token)


class _Token:
    """Held by a backward pass alone, so that it ends with it, also by an error."""

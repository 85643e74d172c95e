"""Finds the smallest set of cells whose healing prevents a collapse, with few replays.

A truth is a function from a set of healed cells to whether the collapse is prevented; healing more never does harm
(what is known of a set therefore decides its subsets or its supersets without a replay).  The search first assumes that
a single cell is guilty: it halves the operands (gradients or not, then activations or weights, then the GEMM), then the
layers.  A half that is not shown guilty is not shown innocent: the other half is only the better guess.  So the
last cell is healed alone, and only this replay names it.  With 24 cells, that is at most 1 (all healed) + 3 (operands)
+ 2 (four layers) + 1 replays besides the control.

If that fails, several cells are needed together: the smallest set of operands in all layers is found by bisecting for
one necessary operand after the other, then that of layers, then that of cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from altgrad.config.operands import Operand
from altgrad.explain.cells import Cell, Cells

T = TypeVar("T")
Truth = Callable[[Cells], bool]
_MOST_OPERANDS, _MOST_LAYERS, _MOST_CELLS = 3, 2, 4  # a larger smallest set is reported as "no single one"


class Needed(Exception):
    """The search cannot go on without the result of healing these cells."""

    def __init__(self, cells: Cells) -> None:
        super().__init__(f"{len(cells)} cells")
        self.cells = cells


def known_truth(results: Mapping[Cells, bool]) -> Truth:
    """The truth as far as replays have shown it; raises Needed for a set of which they say nothing."""

    def prevents(cells: Cells) -> bool:
        if any(prevented and healed <= cells for healed, prevented in results.items()):
            return True
        if any(not prevented and cells <= healed for healed, prevented in results.items()):
            return False
        raise Needed(cells)

    return prevents


@dataclass(frozen=True)
class Guilty:
    """Cells whose healing alone prevents the collapse; `smallest`: no smaller set does.  No cell: no set does."""

    cells: Cells
    smallest: bool


def find_guilty(cells: Sequence[Cell], prevents: Truth) -> Guilty:
    """The smallest guilty set among `cells`.  Raises Needed where the truth is not known."""
    every = frozenset(cells)
    if not every or not prevents(every):
        return Guilty(frozenset(), True)
    single = _single(cells, prevents)
    if single is not None:
        return Guilty(single, True)
    operands = _smallest(
        _operands_of(cells), lambda chosen: prevents(frozenset(c for c in cells if c.operand in chosen)), _MOST_OPERANDS
    )
    if operands is None:
        return Guilty(every, False)
    within = [cell for cell in cells if cell.operand in operands]
    layers = _smallest(
        _layers_of(within), lambda chosen: prevents(frozenset(c for c in within if c.layer in chosen)), _MOST_LAYERS
    )
    if layers is None:
        return Guilty(frozenset(within), False)
    last = [cell for cell in within if cell.layer in layers]
    found = _smallest(last, lambda chosen: prevents(frozenset(chosen)), _MOST_CELLS)
    return Guilty(frozenset(last if found is None else found), found is not None)


def _single(cells: Sequence[Cell], prevents: Truth) -> Cells | None:
    """The one guilty cell, if a single one is; None if it is not, maybe only after some replays."""
    chosen = list(cells)
    while len(operands := _operands_of(chosen)) > 1:
        first = _first_part(operands)
        part = [cell for cell in chosen if cell.operand in first]
        chosen = part if prevents(frozenset(part)) else [cell for cell in chosen if cell.operand not in first]
    doubts = 0  # halvings since the chosen cells were last shown to suffice
    while len(chosen) > 1:
        middle = len(chosen) // 2
        if prevents(frozenset(chosen[:middle])):
            chosen, doubts = chosen[:middle], 0
            continue
        chosen, doubts = chosen[middle:], doubts + 1
        if doubts == 2 and len(chosen) > 1:
            if not prevents(frozenset(chosen)):
                return None
            doubts = 0
    return frozenset(chosen) if prevents(frozenset(chosen)) else None


def _first_part(operands: Sequence[Operand]) -> set[Operand]:
    """The part of several operands to try first: the gradients, else the activations, else the first of a tensor."""
    for site in ("gradient", "activation"):
        part = {operand for operand in operands if operand.site == site}
        if part and len(part) < len(operands):
            return part
    return {operands[0]}


def _smallest(items: Sequence[T], suffices: Callable[[set[T]], bool], most: int) -> list[T] | None:
    """A smallest sufficient subset, if all items suffice together; None if it has more than `most` items.

    The last item of the shortest sufficient beginning is necessary in it; it is kept, and the items before are searched
    again.
    """
    found: list[T] = []
    rest = list(items)
    while not (found and suffices(set(found))):
        if len(found) == most:
            return None
        low, high = 0, len(rest)  # with the first `high` it suffices, with the first `low` it does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if suffices({*found, *rest[:middle]}) else (middle, high)
        if not high:
            return None
        found.append(rest[high - 1])
        rest = rest[: high - 1]
    return found


def _operands_of(cells: Sequence[Cell]) -> list[Operand]:
    """Gradients first, then activations, then weights."""
    order = ("gradient", "activation", "weight")
    return sorted(dict.fromkeys(cell.operand for cell in cells), key=lambda operand: order.index(operand.site))


def _layers_of(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.layer for cell in cells))

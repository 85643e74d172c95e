"""The graphs whose kernels are examined: one rounding each, and several roundings."""

from __future__ import annotations

from typing import NamedTuple

from altgrad.formats import FORMATS
from altgrad.quantization.kernel.round import spec_of
from altgrad.quantization.kernel.scaled_rounding import Mode

SPEC_LENGTH = len(spec_of(FORMATS["E4M3"], 0))
_KINDS = {
    "nearest": Mode("nearest", "none", "tensor", True, "1.0"),
    "stochastic": Mode("stochastic", "none", "tensor", True, "1.0"),
    "tensor": Mode("nearest", "dynamic", "tensor", True, "1.0"),
    "row": Mode("nearest", "dynamic", "row", False, "1.0"),
    "1x32": Mode("nearest", "dynamic", "1x32", True, "1.0"),
    "1x32 first": Mode("nearest", "dynamic", "1x32", True, "1.0", last=False),
}


class Case(NamedTuple):
    """A graph: tensors of these shapes are rounded in these modes, and counted or not.

    `interpreted`: none where the graph with counts is interpreted, which rounds by the same arithmetic.
    """

    modes: tuple[Mode, ...]
    counting: bool
    compiled_for: tuple[tuple[int, int], ...] = ((4096, 4096),)
    interpreted: tuple[tuple[int, int], ...] = ((33, 160),)


CASES = {name: Case((mode,), False, interpreted=()) for name, mode in _KINDS.items()}
CASES["nearest"] = Case((_KINDS["nearest"],), False)
CASES |= {f"{name}, counts": Case((mode,), True) for name, mode in _KINDS.items()}
CASES["tensor by columns"] = Case((_KINDS["tensor"]._replace(by_columns=True),), False)
# The counts of the first and the last are reduced from more than 2048 numbers, which is a long reduction.
_SEVERAL = tuple(_KINDS[name] for name in ("nearest", "nearest", "tensor", "row", "1x32"))
_SHAPES = (4096, 256), (512, 256), (512, 512), (96, 512), (160, 1024)
_SMALL = (2100, 4), (5, 40), (7, 64), (33, 70), (40, 70)
CASES["several"] = Case(_SEVERAL, False, _SHAPES, interpreted=())
CASES["several, counts"] = Case(_SEVERAL, True, _SHAPES, _SMALL)

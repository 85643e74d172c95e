"""Measures the share of a model's matrix products that is rounded, and lists the products that are not.

Layers of the kinds in `adapters.registry` are rounded.  A model that also multiplies elsewhere (by hand, in a layer
of its own kind, in the products inside attention) is rounded in part, and a format that trains it well may have been
used for a small part of the work only.

One batch is run forward and backward without rounding, and the FLOPs of every product are counted (2 per
multiply-add).  A product of the backward pass is attributed to the module whose forward pass made its autograd node.
"""

from altgrad.quantization.coverage.measuring import measure_coverage
from altgrad.quantization.coverage.share import CHOSEN, Coverage, LeftOut

__all__ = ["CHOSEN", "Coverage", "LeftOut", "measure_coverage"]

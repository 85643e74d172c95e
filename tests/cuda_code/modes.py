"""The rounding modes whose kernels are examined."""

from altgrad.formats import FORMATS
from altgrad.quantization.kernel.round import spec_of
from altgrad.quantization.kernel.scaled_rounding import Mode

SPEC_LENGTH = len(spec_of(FORMATS["E4M3"], 0))
_KINDS = {
    "nearest": Mode("nearest", "none", "tensor", True, 1.0),
    "stochastic": Mode("stochastic", "none", "tensor", True, 1.0),
    "tensor": Mode("nearest", "dynamic", "tensor", True, 1.0),
    "row": Mode("nearest", "dynamic", "row", False, 1.0),
    "1x32": Mode("nearest", "dynamic", "1x32", True, 1.0),
    "1x32 first": Mode("nearest", "dynamic", "1x32", True, 1.0, last=False),
}
MODES = {name: (mode, False) for name, mode in _KINDS.items()}
MODES |= {f"{name}, counts": (mode, True) for name, mode in _KINDS.items()}
MODES["tensor by columns"] = (_KINDS["tensor"]._replace(by_columns=True), False)

"""altgrad trains one model per number format: which formats train, where the others collapse, why, and what helps.

The package imports neither Ray nor Streamlit.  `import altgrad` loads no other module; the modules that read results
(`formats`, `metrics`, `results`, `collapse`, `compare`, `report`) work on a machine without torch.  The names that a
training loop of one's own begins with are here too, and are imported when they are first used:

    quantized = altgrad.quantize_(model, "mxfp8")      # or altgrad.Recipe(format="E4M3", rounding="stochastic")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from altgrad.config.recipe import Recipe as Recipe
    from altgrad.quantization.fake_quantize import fake_quantize as fake_quantize
    from altgrad.quantization.quantize import quantize_ as quantize_
    from altgrad.quantization.quantized_model import QuantizedModel as QuantizedModel

__version__ = "0.2.0"

_HOMES = {
    "Recipe": "altgrad.config.recipe",
    "QuantizedModel": "altgrad.quantization.quantized_model",
    "fake_quantize": "altgrad.quantization.fake_quantize",
    "quantize_": "altgrad.quantization.quantize",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'altgrad' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]

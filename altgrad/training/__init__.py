"""Training under a number format.  Names load on first use, so that configs can be read without torch."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "TrainConfig": "altgrad.config.train_config",
    "FormatExperimentRunner": "altgrad.experiment.runner",
    "ExperimentResult": "altgrad.experiment.outcome",
    "run_format_experiment": "altgrad.experiment.runner",
    "DiagnosticSnapshot": "altgrad.diagnostics.protocol",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)

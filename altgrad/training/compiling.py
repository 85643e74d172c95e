"""Whether and how the forward and backward pass is compiled.

A compiled step is two to three times faster than an eager one, but compiling costs seconds to minutes: it pays when the
run saves more than that.  What was compiled once on a machine is found again in Inductor's cache on disk, and within a
process it is kept, so that of a sweep's runs only the first of each shape pays the full price.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from altgrad.quantization.compiled import INDUCTOR_OPTIONS
from altgrad.quantization.layers import QuantizedLinear
from altgrad.training.config import TrainConfig
from altgrad.training.ranks import ALONE, Ranks

# Seconds on one core (2026, 4 GHz), measured with the built-in GPT; per linear layer and for the model as a whole.
_COLD_PER_LAYER, _COLD = 3.0, 8.0  # nothing in the cache
_WARM_PER_LAYER, _WARM = 0.15, 4.0  # tracing, and importing the compiler
# What a step saves: three sites of some 40 small operations per layer, and 20 passes over each value instead of 2.
_SAVED_PER_LAYER, _SAVED_PER_VALUE = 0.6e-3, 4e-9

_compiled_here: set[str] = set()  # signatures whose graph this process holds
_said: set[str] = set()


class StepLoss:
    """The model's loss, compiled or not: call it with (inputs, targets).  `compiled`, and `reason` in one line."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, QuantizedLinear],
        config: TrainConfig,
        device: torch.device,
        runs_alike: int = 1,
        earlier: bool | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """`runs_alike`: how many runs of this process will share what is compiled.

        `earlier`: whether an earlier attempt of this run was compiled; `auto` then does the same again, because the
        two differ within float32 rounding and a restored run is to repeat every number.

        `ranks`: all compile or none does; the two would wait for each other's collectives in different orders.

        `compile: true` raises RuntimeError where compiling is not possible; `auto` falls back and says so once.
        """
        self._model = model
        self._signature = _signature(model, layers, config, ranks.size)
        self._marker = cache_folder() / f"altgrad-{self._signature}"
        self._required = config.compile is True
        self.compiled, self.reason = self._decide(layers, config, device, runs_alike, earlier)
        if not all(ranks.of_all(self.compiled)) and self.compiled:
            self.compiled, self.reason = False, f"compile={config.compile}: another rank runs eagerly"
        self._function: Callable[[Tensor, Tensor], Tensor] = _compile(model) if self.compiled else model

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        if not self.compiled or self._signature in _compiled_here:
            return self._function(inputs, targets)
        try:
            loss = self._function(inputs, targets)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            self._refuse(f"the compiler failed ({_first_line(error)})")
            return self(inputs, targets)
        _compiled_here.add(self._signature)
        self._marker.touch()
        return loss

    def _decide(
        self,
        layers: Mapping[str, QuantizedLinear],
        config: TrainConfig,
        device: torch.device,
        runs_alike: int,
        earlier: bool | None,
    ) -> tuple[bool, str]:
        if config.compile is False:
            return False, "compile=false"
        if config.compile == "auto" and earlier is not None:
            estimate = "as in the earlier attempt"
            if not earlier:
                return False, f"compile=auto: {estimate}"
        elif config.compile == "auto":
            cost, saved = self._cost(len(layers), runs_alike), config.max_steps * _saved_per_step(layers, config)
            estimate = f"compiling costs about {cost:.0f} s and saves about {saved:.0f} s"
            if device.type == "cpu" and saved < cost:
                return False, f"compile=auto: {estimate}"
        else:
            estimate = "compile=true"
        obstacle = _obstacle(device)
        if obstacle is None:
            return True, estimate if self._required else f"compile=auto: {estimate}"
        self._refuse(obstacle)
        return False, self.reason

    def _cost(self, layers: int, runs_alike: int) -> float:
        """Seconds until the first compiled step, as this run's share."""
        if self._signature in _compiled_here:
            return 0.0
        warm = _WARM + _WARM_PER_LAYER * layers
        return warm if self._marker.exists() else warm + (_COLD + _COLD_PER_LAYER * layers) / runs_alike

    def _refuse(self, obstacle: str) -> None:
        """Raise where compiling was asked for; else go on eagerly and say so once."""
        if self._required:
            raise RuntimeError(f"compile=true: {obstacle}; remove the cause, or use compile=auto or false")
        self.compiled, self._function = False, self._model
        self.reason = f"compile=auto: {obstacle}"
        if obstacle not in _said:
            _said.add(obstacle)
            warnings.warn(f"{self.reason}; running eagerly", stacklevel=2)


def cache_folder() -> Path:
    """Where Inductor keeps what it compiled; importing it to ask takes two seconds."""
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return Path(given) if given else Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"


def _compile(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    import torch._functorch.config  # not before it is needed: half a second

    # Ours are pure functions of their arguments, so that graphs with them may be kept on disk.
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    return cast("Callable[[Tensor, Tensor], Tensor]", torch.compile(model, dynamic=False, options=INDUCTOR_OPTIONS))


def _obstacle(device: torch.device) -> str | None:
    """Why compiling is not possible here, in one line; None where it is."""
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}) found"
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_folder()):
            pass
    except OSError as error:
        return f"the compile cache cannot be written ({error})"
    return None


def _saved_per_step(layers: Mapping[str, QuantizedLinear], config: TrainConfig) -> float:
    """Seconds that a compiled step is shorter on one core."""
    tokens = config.batch_size * config.shape.block_size  # a guess for a model of your own
    values = sum(layer.weight.numel() + tokens * (layer.in_features + layer.out_features) for layer in layers.values())
    return _SAVED_PER_LAYER * len(layers) + _SAVED_PER_VALUE * values


def _signature(model: nn.Module, layers: Mapping[str, QuantizedLinear], config: TrainConfig, ranks: int) -> str:
    """What decides which graph is compiled: the model's structure, the rounding modes and the batch."""
    shapes = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    modes = [layer.site(site).mode for layer in layers.values() for site in ("weight", "activation", "gradient")]
    parts = (type(model).__qualname__, shapes, modes, config.batch_size // ranks, config.block_size, torch.__version__)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

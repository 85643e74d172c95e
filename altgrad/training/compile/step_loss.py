"""Runs the forward and backward pass: eagerly, as one compiled graph, or compiled block by block.

A compiled step is two to three times faster than an eager one, but compiling takes seconds to minutes.  One graph gives
the fastest step.  One graph per repeated block gives a step that is a few percent slower, but its compile time does not
depend on the depth of the model.  Inductor caches compiled code on disk, and a process keeps its graphs, so that of the
runs of a sweep only the first of each shape pays the full compile time.
"""

from __future__ import annotations

import getpass
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from altgrad import torch_private
from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.quantization.adapters.rounded_module import RoundedModule
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm
from altgrad.quantization.kernel.compiled import inductor_options
from altgrad.quantization.kernel.ranks import ALONE, Ranks
from altgrad.training.compile.policy import How, Payoff, cost_of, saved_by, stored_saves
from altgrad.training.compile.repeated_blocks import RegionalCall, regions
from altgrad.training.process_settings import room_for_graphs
from altgrad.training.task.found_task import FoundTask, call_model
from altgrad.training.task.loss_value import read_loss
from altgrad.training.task.protocol import Batch

_said: set[str] = set()


class StepLoss:
    """The task's loss, compiled or not: call it with the entries of a batch, or with a batch that is no tuple.

    `how`: the way in which it runs; `reason`: why, in one line.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, RoundedGemm],
        config: TrainConfig,
        device: torch.device,
        runs_alike: int | None = None,
        compiled_before: How | None = None,
        ranks: Ranks = ALONE,
        task: FoundTask | None = None,
        metrics: Callable[[Mapping[str, Tensor]], None] = lambda found: None,
    ) -> None:
        """`task`: None if the model returns the loss.  `metrics`: called with the task's metrics of each batch.

        `runs_alike`: number of runs, in one process of a sweep, that share compiled graphs; None: a single run.

        `compile: auto` decides by this number and not by the state of the caches: eager and compiled losses differ
        within float32 rounding, and the same run must give the same numbers a second time, when its graphs are there.

        `compiled_before`: how an earlier attempt of this run was computed; `auto` then repeats it, because compiled and
        eager losses differ within float32 rounding and a restored run must repeat every number.

        `ranks`: all ranks follow the decision of the first; if one cannot compile, none does.  Ranks with different
        graphs would wait for different collectives.

        `compile: true` and `compile: blocks` raise ConfigError if they are not possible; `auto` falls back to eager and
        warns once.  `cuda_graphs: true` implies one compiled graph, and raises ConfigError without a CUDA device.
        """
        self._model = model
        self._config = config
        self._task, self._metrics = task, metrics
        self._layers = layers
        self._has_run: set[int] = set()  # phases of the recipe's schedule whose graphs have been compiled
        if config.cuda_graphs and device.type != "cuda":
            raise ConfigError(f"cuda_graphs=true: the device is {device}; use a CUDA device or cuda_graphs=false")
        self._regions = regions(model, layers)
        self._options = inductor_options(device)
        decided = self._decide(layers, device, runs_alike, compiled_before)
        self.how, self.reason = ranks.from_first(lambda: decided)
        obstacle = None if self.how == "eager" else _obstacle(device)
        if obstacle is not None:
            self._refuse(obstacle)
        if len(set(ranks.of_all(self.how))) > 1:
            self.how, self.reason = "eager", "compile=auto: another rank cannot compile"
        self._function = self._build()

    def __call__(self, *batch: Any) -> Tensor:
        """The loss (0-d).  With CUDA graphs the next call overwrites the loss, the counts and the gradients."""
        if self._config.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        whole = batch[0] if len(batch) == 1 else batch
        if self.how == "eager":
            found = self._function(whole)
        else:
            with room_for_graphs():
                found = self._compiled(whole)
        loss, metrics = read_loss(found)
        if metrics:
            self._metrics(metrics)
        return loss

    def compiles_stored(self, values: int) -> bool:
        """Whether the rounding of so many stored values, after each optimizer step, is worth compiling, too."""
        return self.how != "eager" and (self._config.compile is True or stored_saves(values, self._config.max_steps))

    def _compiled(self, batch: Batch) -> Any:
        phase = next(iter(self._layers.values())).phase
        if phase in self._has_run:
            return self._function(batch)
        try:
            found = self._function(batch)
        except torch_private.compiler_failure() as error:
            self._refuse(f"the compiler failed ({_first_line(error)})")
            self._function = self._build()
            return self._function(batch) if self.how == "eager" else self._compiled(batch)
        self._has_run.add(phase)
        return found

    def _decide(
        self,
        layers: Mapping[str, RoundedGemm],
        device: torch.device,
        runs_alike: int | None,
        compiled_before: How | None,
    ) -> tuple[How, str]:
        config = self._config
        if config.compile is False:
            return "eager", "compile=false"
        if config.compile is True or config.cuda_graphs:
            return "whole", "cuda_graphs=true" if config.cuda_graphs else "compile=true"
        if config.compile == "blocks":
            if not self._regions:
                raise ConfigError("compile='blocks': the model repeats no block; use compile=true, auto or false")
            return "blocks", "compile=blocks"
        if compiled_before is not None:
            return compiled_before, f"compile=auto: {compiled_before}, as in the earlier attempt"
        phases = 1 + len(config.phases)  # each may have graphs of its own
        payoffs: dict[How, Payoff] = {"whole": self._payoff("whole", phases * len(layers), 1, layers, runs_alike)}
        if self._regions:
            distinct = [group[0] for group in self._regions]
            inside = sum(isinstance(part, RoundedModule) for first in distinct for part in first.modules())
            calls = sum(len(group) for group in self._regions)
            payoffs["blocks"] = self._payoff("blocks", phases * inside, calls, layers, runs_alike)
        how = max(payoffs, key=lambda how: payoffs[how].gain)
        said = f"compile=auto: {payoffs[how].sentence()}"
        return ("eager" if device.type == "cpu" and payoffs[how].gain < 0 else how), said

    def _payoff(
        self, how: How, compiled: int, calls: int, layers: Mapping[str, RoundedGemm], runs_alike: int | None
    ) -> Payoff:
        """`compiled`: number of rounded layers in the graphs to be compiled; `calls`: graphs entered per step."""
        return Payoff(cost_of(compiled, runs_alike or 1), saved_by(layers, self._config, calls))

    def _build(self) -> Callable[[Batch], Any]:
        """What a batch is given to; it returns what the task's loss or the model does."""
        if self.how == "eager":
            return self._plain
        if self.how == "blocks":
            return RegionalCall(self._plain, self._regions, dynamic=False, options=self._options)
        options = self._options | {"triton.cudagraphs": self._config.cuda_graphs}
        if self._task is None or self._task.model_has_loss:
            compiled = torch.compile(self._model, dynamic=False, options=options)
            return lambda batch: call_model(compiled, batch)
        return torch.compile(self._plain, dynamic=False, options=options)

    def _plain(self, batch: Batch) -> Any:
        return call_model(self._model, batch) if self._task is None else self._task.loss(self._model, batch)

    def _refuse(self, obstacle: str) -> None:
        """Raise ConfigError if the config demands compiling; with `auto` fall back to eager and warn once."""
        asked = self._config.compile
        if asked != "auto" or self._config.cuda_graphs:
            said = "cuda_graphs=true" if self._config.cuda_graphs else f"compile={str(asked).lower()}"
            raise ConfigError(f"{said}: {obstacle}; remove the cause, or use compile=auto or false")
        self.how, self.reason = "eager", f"compile=auto: {obstacle}"
        if obstacle not in _said:
            _said.add(obstacle)
            warnings.warn(f"{self.reason}; running eagerly", stacklevel=2)


def cache_folder() -> Path:
    """Inductor's cache folder, derived here because importing Inductor takes two seconds."""
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return Path(given) if given else Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"


def _obstacle(device: torch.device) -> str | None:
    """Why compiling is not possible here, in one line; None if it is possible."""
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


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

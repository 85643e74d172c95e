"""Emergency shift: replace a failing format by a safer one while the run goes on.

The run keeps its name and its config; the event records both formats, the step and the trigger.  A high stall rate
triggers only together with a low realised displacement: with FP32 masters or stochastic rounding a stall rate of 95 %
per step is normal.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from altgrad.config.train_config import TrainConfig
from altgrad.format_relations import FALLBACKS
from altgrad.formats import find_format
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm
from altgrad.quantization.stored.write_back import WriteBack
from altgrad.stability.protocol import StepState


class EmergencyShift:
    """Replaces the format of every site by its entry in `FALLBACKS` after enough consecutive non-finite steps, or
    enough consecutive frozen diagnostic windows.
    """

    def __init__(
        self, config: TrainConfig, layers: Mapping[str, RoundedGemm], write_back: WriteBack | None = None
    ) -> None:
        self._config = config
        self._layers = layers
        self._write_back = write_back
        self._non_finite_steps = 0
        self._frozen_windows = 0
        self._exhausted = False

    def on_gradients(self, state: StepState) -> None:
        """Shift the formats after enough non-finite steps in a row; a shift is a `format_shift` event."""
        self._non_finite_steps = 0 if state.finite else self._non_finite_steps + 1
        if self._non_finite_steps >= self._config.emergency_shift_nan_patience:
            self._shift(state, f"{self._non_finite_steps} non-finite steps")

    def after_step(self, state: StepState) -> None:
        """Shift the formats after enough frozen windows in a row."""
        stall, displacement = state.measured.get("stall_rate"), state.measured.get("realised_displacement")
        if stall is None or displacement is None:
            return
        frozen = (
            stall > self._config.emergency_shift_stall_threshold
            and displacement < self._config.emergency_shift_displacement
        )
        self._frozen_windows = self._frozen_windows + 1 if frozen else 0
        if self._frozen_windows >= self._config.emergency_shift_stall_windows:
            trigger = f"stall rate {stall:.3f}, realised displacement {displacement:.3f}"
            self._shift(state, f"{trigger} over {self._frozen_windows} windows")

    def _shift(self, state: StepState, trigger: str) -> None:
        self._non_finite_steps = self._frozen_windows = 0
        shifted: Counter[tuple[str, str]] = Counter()
        for layer in self._layers.values():
            for name, site in layer.sites.items():
                fallback = FALLBACKS.get(site.format.name)
                if fallback is not None:
                    shifted[site.format.name, fallback] += 1
                    layer.set_format(name, dataclasses.replace(find_format(fallback), overflow=site.format.overflow))
        if self._write_back is not None and shifted:
            self._write_back()
        for (old, new), sites in shifted.items():
            state.event(
                "format_shift", **{"from": old, "to": new, "step": state.step, "trigger": trigger, "sites": sites}
            )
        if shifted:
            state.rescued()
        elif not self._exhausted:
            self._exhausted = True
            state.event("shift_unavailable", trigger=trigger)

    def state_dict(self) -> dict[str, Any]:
        """The counts of steps and windows, and whether it has said that nothing is left to shift."""
        return {"counters": [self._non_finite_steps, self._frozen_windows, int(self._exhausted)]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        self._non_finite_steps, self._frozen_windows, exhausted = state["counters"]
        self._exhausted = bool(exhausted)

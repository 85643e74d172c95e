"""Realised displacement: the share of the update intended over many steps that the stored weights have made.

A stall rate describes one step; stochastic rounding stalls most weights in every step and still moves each of them as
intended on average.  Therefore changes are summed over a window of steps before they are compared.  If the optimizer
intended -0.01 in each of 10 steps for one weight and the stored value moved once by -0.08, the value is
0.08 x 0.1 / 0.1^2 = 0.8.  A sum of changes is the difference between the ends of the window, so that only its start is
kept, and without master weights the sum of the corrections that the write-backs made.  Values are compared, not grid
positions, so that the scale may change within a window.  Of a rotated weight they are those after the rotation is
undone, Q(W R) R^T: R is orthogonal and changes no inner product, and a window may see the rotation begin or end.

A change by an intervention (a rollback, a format shift's rounding) is neither intended by the optimizer nor a response
to it: code that detects such a change calls `restart`, and the window begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from altgrad.diagnostics.protocol import Diagnostic, LayerStep, Measured
from altgrad.diagnostics.value_statistics import total
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm


class Displacement(Diagnostic):
    """<sum of stored changes, sum of intended updates> / |sum of intended updates|^2 since the last measurement.

    `corrections`: without master weights, by layer, the sum of Q(w') - w' over the write-backs of the window; this
    class sets it to zero when a window ends.  None with master weights.
    """

    of_grid = True

    def __init__(self, layers: Mapping[str, RoundedGemm], corrections: Mapping[str, Tensor] | None) -> None:
        self._layers = layers
        self._corrections = corrections
        self._stored = {name: layer.rounded_weight() for name, layer in layers.items()}
        masters = layers if corrections is None else {}
        self._weight = {name: layer.weight.detach().float().clone() for name, layer in masters.items()}

    def restart(self) -> None:
        """Begin a new window at the present weights; earlier changes do not count."""
        for name, layer in self._layers.items():
            self._stored[name].copy_(layer.rounded_weight())
            if name in self._weight:
                self._weight[name].copy_(layer.weight.detach())
        for correction in (self._corrections or {}).values():
            correction.zero_()

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        parts = {}
        for step in steps:
            if self._corrections is not None and step.name not in self._corrections:
                continue  # shares another layer's weight
            stored = step.layer.as_weight(step.stored_after)
            change = stored - self._stored[step.name]
            intent = self._intent(step, change)
            parts[step.name] = total(change * intent), total(intent * intent)
            self._stored[step.name].copy_(stored)
        found = Measured()
        found.add_ratio("realised_displacement", parts)
        return found

    def _intent(self, step: LayerStep, change: Tensor) -> Tensor:
        """Sum of the updates that the optimizer intended in the window; ends the window."""
        if self._corrections is None:
            intent = step.intended - self._weight[step.name]
            self._weight[step.name].copy_(step.intended)
        else:
            intent = change - self._corrections[step.name]
            self._corrections[step.name].zero_()
        return intent

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The weights at the start of the window, by layer."""
        return {"weight": self._weight, "stored": self._stored}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue the window of a state of `state_dict`."""
        for kept, loaded in ((self._weight, state["weight"]), (self._stored, state["stored"])):
            for name, tensor in kept.items():
                tensor.copy_(loaded[name])

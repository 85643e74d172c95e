"""Recurrent layers (`nn.RNN`, `nn.LSTM`, `nn.GRU`), of whose products torch's fused kernels show nothing.

The forward pass here is a loop.  W_ih multiplies the inputs of all times in one GEMM, W_hh the state once for each time
(as does W_hr, the projection of an LSTM): a scale covers all times of the input, and one time of a state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from altgrad.quantization.adapters.rounded_module import RoundedModule
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm
from altgrad.quantization.layers import OwnedGemm


class RoundedRecurrent(RoundedModule):
    """Rounds every `weight_*` of an `nn.RNNBase`; all options of it, packed sequences included."""

    @classmethod
    def weights_of(cls, module: nn.Module) -> list[str]:
        return [name for name, _ in module.named_parameters(recurse=False) if name.startswith("weight")]

    def made_gemms(self) -> dict[str, RoundedGemm]:
        names = self.weights_of(self)
        self.owned = {name: OwnedGemm(self, name) for name in names}
        return self.owned

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """As the plain layer's."""
        plain: Any = self
        if self.plain:
            found: tuple[Any, Any] = super().forward(input, hx)
            return found
        packed = input if isinstance(input, PackedSequence) else None
        single = False
        if packed is not None:
            data, sizes = packed.data, packed.batch_sizes.tolist()
        else:
            assert isinstance(input, Tensor)
            single = input.ndim == 2
            steps = input.unsqueeze(1) if single else input.transpose(0, 1) if plain.batch_first else input
            data, sizes = steps.flatten(0, 1), [steps.shape[1]] * steps.shape[0]
        states = self._states(hx, sizes[0], data, single, None if packed is None else packed.sorted_indices)
        ends: list[tuple[Tensor, ...]] = []
        directions = ("", "_reverse") if plain.bidirectional else ("",)
        for layer in range(plain.num_layers):
            outputs = []
            for place, direction in enumerate(directions):
                start = tuple(state[layer * len(directions) + place] for state in states)
                output, end = self._pass(f"_l{layer}{direction}", data, sizes, start, bool(direction))
                outputs.append(output)
                ends.append(end)
            data = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
            if plain.dropout and layer < plain.num_layers - 1:
                data = functional.dropout(data, plain.dropout, plain.training)
        last = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
        if packed is not None:
            if packed.unsorted_indices is not None:
                last = tuple(state.index_select(1, packed.unsorted_indices) for state in last)
            output_of_all: Any = PackedSequence(
                data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
            )
        else:
            output_of_all = data.unflatten(0, (len(sizes), -1))
            if single:
                output_of_all, last = output_of_all.squeeze(1), tuple(state.squeeze(1) for state in last)
            elif plain.batch_first:
                output_of_all = output_of_all.transpose(0, 1)
        return output_of_all, last if plain.mode == "LSTM" else last[0]

    def _states(self, hx: Any, batch: int, data: Tensor, single: bool, order: Tensor | None) -> tuple[Tensor, ...]:
        """The states at the start, each (layers x directions, batch, width), in the order of a packed sequence."""
        plain: Any = self
        count = plain.num_layers * (2 if plain.bidirectional else 1)
        if hx is None:
            zeros = data.new_zeros(count, batch, plain.proj_size or plain.hidden_size)
            return (zeros, data.new_zeros(count, batch, plain.hidden_size)) if plain.mode == "LSTM" else (zeros,)
        states = tuple(hx) if plain.mode == "LSTM" else (hx,)
        if single:
            return tuple(state.unsqueeze(1) for state in states)
        return states if order is None else tuple(state.index_select(1, order) for state in states)

    def _pass(
        self, place: str, data: Tensor, sizes: list[int], start: tuple[Tensor, ...], backwards: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(outputs, states at the end) of one layer in one direction.

        data (sum of sizes, in): the inputs of the first time, then those of the second, ...; at a time only the first
        `size` sequences go on.
        """
        inputs = self._times("weight_ih" + place, data, "bias_ih" + place).split(sizes)
        states, outputs = start, []
        for gates in reversed(inputs) if backwards else inputs:
            size = gates.shape[0]
            going = tuple(state[:size] for state in states)
            recurrent = self._times("weight_hh" + place, going[0], "bias_hh" + place)
            stepped = self._cell(gates, recurrent, going)
            if "weight_hr" + place in self.owned:
                stepped = (self._times("weight_hr" + place, stepped[0], ""), *stepped[1:])
            outputs.append(stepped[0])
            states = tuple(
                new if new.shape[0] == old.shape[0] else torch.cat([new, old[size:]])
                for new, old in zip(stepped, states, strict=True)
            )
        return torch.cat(outputs[::-1] if backwards else outputs), states

    def _times(self, weight: str, x: Tensor, bias: str) -> Tensor:
        return self.owned[weight].multiply(x, self.owned[weight].weight, getattr(self, bias, None))

    def _cell(self, gates: Tensor, recurrent: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The next states, from both products; the first of them is the output."""
        mode = getattr(self, "mode", "")
        if mode == "LSTM":
            let_in, forget, new, out = (gates + recurrent).chunk(4, -1)
            cell = torch.sigmoid(forget) * states[1] + torch.sigmoid(let_in) * torch.tanh(new)
            return torch.sigmoid(out) * torch.tanh(cell), cell
        if mode == "GRU":
            (r, z, n), (again_r, again_z, again_n) = gates.chunk(3, -1), recurrent.chunk(3, -1)
            update = torch.sigmoid(z + again_z)
            new = torch.tanh(n + torch.sigmoid(r + again_r) * again_n)
            return (new + update * (states[0] - new),)
        return (torch.tanh(gates + recurrent) if mode == "RNN_TANH" else torch.relu(gates + recurrent),)

"""Shadow: the gradient of the same weights on the same batch without any rounding, compared with the real one.

It shows whether rounding has changed the gradients of a run that fails.  A second model trained without rounding would
soon have other weights, and the difference of the gradients would not be due to rounding alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from altgrad.diagnostics.protocol import Diagnostic, LayerStep, Measured, MeasuredStep
from altgrad.quantization.layers import gemms_of, unrounded


class _Agreement(NamedTuple):
    """Inner products of a gradient g and its shadow s, in float64."""

    gg: Tensor
    ss: Tensor
    gs: Tensor
    noise: Tensor  # |g - s|^2

    @classmethod
    def of(cls, gradient: Tensor, shadow: Tensor) -> _Agreement:
        g, s = (x.to(torch.float64, copy=True).flatten() for x in (gradient, shadow))
        products = torch.dot(g, g), torch.dot(s, s), torch.dot(g, s)
        noise = g.sub_(s)  # in place, to save memory: there are two float64 copies of each gradient already
        return cls(*products, torch.dot(noise, noise))

    @property
    def cosine(self) -> Tensor:
        return self.gs / (self.gg * self.ss).sqrt()

    @property
    def snr_db(self) -> Tensor:
        return 10 * torch.log10(self.ss / self.noise)


class Shadow(Diagnostic):
    """Cosine similarity and SNR (dB; inf if they are equal) of the gradient and its shadow, and the shadow's loss.

    Per layer they are taken over its weight, for the whole model over all parameters with a gradient.  `.grad`, random
    state and buffers are left unchanged.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._found = Measured()

    def before_step(self, context: MeasuredStep) -> None:
        parameters = [p for p in self._model.parameters() if p.grad is not None]
        with unrounded(gemms_of(self._model)), _undisturbed(self._model, parameters):
            loss = context.loss_of()
            shadows: Sequence[Tensor | None] = torch.autograd.grad(
                loss, parameters, context.ranks.weight(loss), allow_unused=True
            )
        if not context.ranks.alone:
            shadows, _ = context.ranks.add_up(shadows, parameters)
        agreements: dict[Tensor, _Agreement] = {
            p: _Agreement.of(p.grad, shadow)
            for p, shadow in zip(parameters, shadows, strict=True)
            if p.grad is not None and shadow is not None
        }
        whole = _Agreement(*(torch.stack(part).sum() for part in zip(*agreements.values(), strict=True)))
        by_layer = {
            name: agreements[layer.weight] for name, layer in context.layers.items() if layer.weight in agreements
        }
        self._found = Measured(step={"shadow_loss": context.ranks.mean(loss.detach())})
        self._found.add("gradient_cosine_similarity", {name: a.cosine for name, a in by_layer.items()}, whole.cosine)
        self._found.add("gradient_snr_db", {name: a.snr_db for name, a in by_layer.items()}, whole.snr_db)

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        return self._found


@contextmanager
def _undisturbed(model: nn.Module, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Context that restores the random state and all buffers (running statistics) on exit."""
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    devices = sorted({p.device.index for p in parameters if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        yield
    with torch.no_grad():
        for buffer, kept in buffers.items():
            buffer.copy_(kept)

"""The first 60 of 200 steps of nanoGPT's character model, beside the same model and optimizer written out as formulas.

The formulas are computed in float64, so that what is compared is ours.  docs/own_model.md has the losses on
nanoGPT's own text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from altgrad.config.train_config import TrainConfig
from altgrad.training.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]  # 120 steps of four layers

LAYERS, HEADS, WIDTH, STEPS, WARMUP, SEEN = 4, 4, 96, 200, 20, 60
PEAK, LEAST, DECAY, BETA1, BETA2, EPSILON, CLIP = 1e-3, 1e-4, 0.1, 0.9, 0.99, 1e-8, 1.0
CONFIG = TrainConfig(
    task="nanogpt", n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, block_size=64, batch_size=12, max_steps=STEPS,
    warmup_steps=WARMUP, learning_rate=PEAK, min_learning_rate_ratio=LEAST / PEAK, weight_decay=DECAY, beta1=BETA1,
    beta2=BETA2, adam_epsilon=EPSILON, gradient_clip=CLIP, format="FP32", compile=False, eval_interval=STEPS,
    eval_batches=1, diagnostic_interval=STEPS, threads=1,
)  # fmt: skip


def normed(x: Tensor, gain: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return gain * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def attended(x: Tensor, weights: Mapping[str, Tensor], block: str) -> Tensor:
    q, k, v = ((x @ part.T) for part in weights[f"{block}.attn.c_attn.weight"].chunk(3))
    time, each = x.shape[1], WIDTH // HEADS
    later = torch.ones(time, time).triu(1).bool()
    heads = []
    for number in range(HEADS):
        own = slice(number * each, (number + 1) * each)
        scores = q[..., own] @ k[..., own].transpose(1, 2) / math.sqrt(each)
        exponentials = scores.masked_fill(later, -math.inf).exp()
        heads.append(exponentials / exponentials.sum(-1, keepdim=True) @ v[..., own])
    return torch.cat(heads, -1) @ weights[f"{block}.attn.c_proj.weight"].T


def loss_of(weights: Mapping[str, Tensor], tokens: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy (0-d) of a pre-norm transformer without biases whose head is the token embedding."""
    table = weights["transformer.wte.weight"]
    x = table[tokens] + weights["transformer.wpe.weight"][: tokens.shape[1]]
    for number in range(LAYERS):
        block = f"transformer.h.{number}"
        x = x + attended(normed(x, weights[f"{block}.ln_1.weight"]), weights, block)
        hidden = normed(x, weights[f"{block}.ln_2.weight"]) @ weights[f"{block}.mlp.c_fc.weight"].T
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + hidden @ weights[f"{block}.mlp.c_proj.weight"].T
    logits = normed(x, weights["transformer.ln_f.weight"]) @ table.T
    return (logits.exp().sum(-1).log() - logits.gather(-1, targets[..., None])[..., 0]).mean()


def rate(step: int) -> float:
    if step <= WARMUP:
        return PEAK * step / WARMUP
    return LEAST + (PEAK - LEAST) * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def expected_losses(trainer: Trainer) -> list[float]:
    start = trainer.model.state_dict()
    weights = {name: start[name].double().clone().requires_grad_() for name in start if name != "lm_head.weight"}
    moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in weights.items()}
    found = []
    for step in range(1, SEEN + 1):
        tokens, targets = trainer.batches.training(step)
        loss = loss_of(weights, tokens, targets)
        found.append(loss.item())
        gradients = torch.autograd.grad(loss, list(weights.values()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                gradient = gradient * min(1.0, CLIP / (norm + 1e-6))
                first, second = moments[name]
                first.mul_(BETA1).add_((1 - BETA1) * gradient)
                second.mul_(BETA2).add_((1 - BETA2) * gradient.square())
                weight *= 1 - rate(step) * DECAY * (weight.ndim == 2)
                change = first / (1 - BETA1**step) / ((second / (1 - BETA2**step)).sqrt() + EPSILON)
                weight -= rate(step) * change
    return found


def test_nanogpt_trains_as_its_formulas_say() -> None:
    trainer = Trainer(CONFIG)
    expected = expected_losses(trainer)  # before the trainer's first step: it starts from the same weights
    found = [trainer.step().record["loss"] for _ in range(SEEN)]
    assert expected[0] == pytest.approx(math.log(256), abs=0.1) and expected[-1] < 3.0
    assert found == pytest.approx(expected, abs=2e-5)  # float32 was within 2e-6

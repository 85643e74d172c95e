"""The training loop against plain torch loops and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from altgrad.stability.protocol import StepState
from altgrad.training.config import TrainConfig
from altgrad.training.data import TextBatches, load_corpus
from altgrad.training.model import build_gpt
from altgrad.training.trainer import Trainer
from tests.small_runs import SMALL


def plain_losses(config: TrainConfig) -> tuple[list[float], float]:
    """(training losses, last validation loss) of the config's model in a loop that uses torch alone."""
    model = build_gpt(config, 256)
    batches = TextBatches(load_corpus(config), config, config.shape.block_size)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    betas = config.beta1, config.beta2
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=config.adam_epsilon, fused=True)
    losses = []
    for step in range(1, config.max_steps + 1):
        peak, warm = config.learning_rate, config.warmup_steps
        turn = (step - warm) / (config.max_steps - warm)
        rate = peak * step / warm if step <= warm else peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * turn)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(*batches.training(step))
        optimizer.zero_grad()
        loss.backward()
        if config.gradient_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        held_out = [(model(x, y), len(x)) for x, y in batches.validation()]
    total = sum(loss * rows for loss, rows in held_out)
    return losses, (total / sum(rows for _, rows in held_out)).item()


@pytest.mark.parametrize("clip", [0.3, 2.0, 0.0])
@pytest.mark.parametrize("seed", [1, 2, 42])
def test_fifty_steps_in_fp32_are_bitwise_those_of_a_plain_torch_loop(seed, clip):
    config = SMALL.altered(
        format="FP32", seed=seed, gradient_clip=clip, max_steps=50, eval_interval=50, warmup_steps=5,
        learning_rate=3e-3, eval_batches=3,
    )  # fmt: skip
    trainer = Trainer(config)
    records = [trainer.step().record for _ in range(50)]
    losses, validation = plain_losses(config)
    assert [record["loss"] for record in records] == losses
    assert records[-1]["validation_loss"] == validation


def state_with(*gradients: torch.Tensor) -> StepState:
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    norm = torch.nn.utils.get_total_norm(list(gradients))
    return StepState(1, 1.0, float(norm), parameters, {}, norm)


@pytest.mark.parametrize("limit", [1e-5, 0.1, 4.999, 5.0, 5.000001, 5.1, 1e4])
def test_limiting_the_norm_is_torchs_clipping_bit_for_bit_and_the_norm_is_the_limit_afterwards(limit):
    gradients = torch.tensor([3.0, 0.0]), torch.tensor([[4.0], [0.0]])  # a norm of 5
    state, plain = state_with(*gradients), state_with(*gradients)
    state.limit_norm(limit)
    torch.nn.utils.clip_grad_norm_(plain.parameters, limit)
    for ours, theirs in zip(state.parameters, plain.parameters, strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    norm = math.hypot(float(state.parameters[0].grad[0]), float(state.parameters[1].grad[0]))
    assert norm == pytest.approx(min(limit, 5.0), rel=1e-6)
    assert state.gradient_norm == pytest.approx(norm, rel=1e-6) and float(state.norm) == pytest.approx(norm, rel=1e-6)


def test_two_limits_after_another_leave_the_smaller():
    state = state_with(torch.tensor([3.0, 4.0]))
    for limit in (2.0, 3.0, 0.5):
        state.limit_norm(limit)
    assert float(state.parameters[0].grad.norm()) == pytest.approx(0.5, rel=1e-5)

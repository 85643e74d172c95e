"""Weights without masters: what each write-back rule does with its rounding errors, against closed forms.

The grid is that of E0M7 without a scale: steps of 1/128 everywhere.  Gradients are set by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from altgrad.config.recipe import Recipe
from altgrad.config.train_config import TrainConfig
from altgrad.formats import find_format
from altgrad.quantization.quantize import quantize_model
from altgrad.quantization.quantized_model import QuantizedModel

STEP = 1 / 128  # of the grid
RULES = ("nearest", "stochastic", "kahan", "eco", "eco_stochastic")
Optimizer = torch.optim.Optimizer


def stored(rule: str, start: float = 0.0, size: int = 100, **fields: Any) -> tuple[QuantizedModel, nn.Parameter]:
    """size x size weights on the grid, all alike."""
    layer = nn.Linear(size, size, bias=False)
    nn.init.constant_(layer.weight, start)
    recipe = {"format": "E0M7", "scaling": "none", "master_weights": False, "update_rounding": rule} | fields
    quantized = quantize_model(nn.Sequential(layer), Recipe(**recipe))
    return quantized, layer.weight


def momentum(weight: nn.Parameter, rate: float, beta: float) -> torch.optim.SGD:
    """m = b m + (1 - b) g and w -= rate x m, from m = 0."""
    optimizer = torch.optim.SGD([weight], lr=rate, momentum=beta, dampening=beta)
    optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def train(
    quantized: QuantizedModel, weight: nn.Parameter, optimizer: Optimizer, steps: int, gradient: Callable[[int], Any]
) -> None:
    for step in range(1, steps + 1):
        quantized.begin_step(1, step)
        weight.grad = gradient(step)
        optimizer.step()
        quantized.after_optimizer(optimizer)


def normal(step: int, like: torch.Tensor) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("rule", RULES)
def test_updates_of_a_tenth_of_a_step_add_up_as_the_rule_s_closed_form_says(rule):
    """N equal updates u: nearest 0, kahan within half a step of N u, stochastic N u on average, variance N u (d - u);
    eco N u up to what its momentum still holds, at most a few steps."""
    quantized, weight = stored(rule)
    steps, update = 200, 0.1 * STEP
    train(quantized, weight, momentum(weight, 1.0, 0.5), steps, lambda _: torch.full_like(weight, -update))
    total = steps * update - update  # the momentum holds back b / (1 - b) updates
    off, count = weight.detach().double() - total, weight.numel()
    variance = steps * update * (STEP - update)
    if rule == "nearest":
        assert not weight.any()
    elif rule == "stochastic":
        assert abs(off.mean()) < 5 * math.sqrt(variance / count) + update / 100
        assert float(off.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / count) + 0.02)
    elif rule == "kahan":
        assert off.abs().max() <= STEP / 2 * 1.02
    else:
        assert off.abs().max() <= 4 * STEP and abs(off.mean()) < STEP


@pytest.mark.parametrize("beta", [0.5, 0.9])
@pytest.mark.parametrize("rule", ["eco", "eco_stochastic"])
def test_eco_loses_nothing_of_the_gradients(rule, beta):
    """s = w - h b / (1 - b) m moves by -h g in every step, with rounding or without: what is not in w is in m."""
    quantized, weight = stored(rule, start=0.25, size=64)
    rate = 0.3
    optimizer = momentum(weight, rate, beta)
    total = torch.zeros(64, 64, dtype=torch.float64)
    for step in range(1, 101):
        gradient = 0.01 * normal(step, weight)
        total += gradient.double()
        quantized.begin_step(1, step)
        weight.grad = gradient
        optimizer.step()
        quantized.after_optimizer(optimizer)
        held = rate * beta / (1 - beta) * optimizer.state[weight]["momentum_buffer"].double()
        assert torch.allclose(weight.detach().double() - held, 0.25 - rate * total, rtol=0, atol=2e-6)
    assert torch.equal(weight.detach() * 128, (weight.detach() * 128).round())


def test_kahan_keeps_the_exact_sum_of_updates_in_weight_and_compensation():
    quantized, weight = stored("kahan", start=0.25, size=64)
    total = torch.full((64, 64), 0.25, dtype=torch.float64)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for step in range(1, 101):
        quantized.begin_step(1, step)
        weight.grad = 0.2 * STEP * normal(step, weight)
        total -= weight.grad.double()
        optimizer.step()
        quantized.after_optimizer(optimizer)
        kept = quantized.compensations()["0"]
        assert kept.abs().max() <= STEP / 2
        assert torch.equal(kept, kept.bfloat16().float())
        # each step's error of at most half a step is rounded to 8 significant bits
        assert (weight.detach().double() + kept - total).abs().max() <= step * STEP / 2 * 2**-8


def steady_variance(
    pull: float, beta: float, noise: float, rate: float, feedback: float, rounded: bool = True
) -> float:
    """Variance of x = w - w* in the steady state under stochastic rounding of a weight that lies on a grid of steps d.

    M = b m + (1 - b)(h x + s xi), u = rate M, x = x - u - e, m = M + c e: the covariance of (x, m) is the fixed point
    of C = A C A^T + noise.  Rounding x - u up or down leaves errors of mean 0 and variance |u| (d - |u|); with u normal
    that is sqrt(2/pi) d sd(u) - var(u), and C and it are found together.
    """
    a = np.array([[1 - rate * (1 - beta) * pull, -rate * beta], [(1 - beta) * pull, beta]])
    by_noise = np.array([-rate * (1 - beta), 1 - beta]) * noise
    error = STEP**2 / 6 if rounded else 0.0
    for _ in range(500):
        by_error = np.array([-1.0, feedback]) * math.sqrt(error)
        both = np.outer(by_noise, by_noise) + np.outer(by_error, by_error)
        c = np.linalg.solve(np.eye(4) - np.kron(a, a), both.flatten()).reshape(2, 2)
        update = rate**2 * float(a[1] @ c @ a[1] + by_noise[1] ** 2)
        error = math.sqrt(2 / math.pi * update) * STEP - update if rounded else 0.0
    return float(c[0, 0])


@pytest.mark.parametrize("rule", RULES)
def test_the_noisy_quadratic_ends_at_its_minimum_with_the_variance_of_the_closed_form(rule):
    """h/2 (w - w*)^2 with gradient noise, w* between two grid values, started 4 steps of the grid away.

    Every update is below half a step: nearest never moves.  Stochastic errors add up until the gradient pulls back;
    fed into the momentum they are taken back sooner.  Where nothing is lost what remains is the variance that the
    gradient noise gives unrounded weights, and that of rounding them once, d^2/12.
    """
    minimum, pull, beta, rate, noise = 0.4 * STEP, 1.0, 0.8, 0.02, 10 * STEP
    quantized, weight = stored(rule, start=4 * STEP, size=128)
    optimizer = momentum(weight, rate, beta)
    squares, means = [], []
    for step in range(1, 551):
        quantized.begin_step(1, step)
        weight.grad = pull * (weight.detach() - minimum) + noise * normal(step, weight)
        optimizer.step()
        quantized.after_optimizer(optimizer)
        if step > 300 and step % 25 == 0:
            off = weight.detach().double() - minimum
            squares.append(float((off**2).mean()))
            means.append(float(off.mean()))
    if rule == "nearest":
        assert bool((weight == 4 * STEP).all())
        return
    mean, square = np.mean(means), np.mean(squares)
    unrounded = steady_variance(pull, beta, noise, rate, 0.0, rounded=False)
    plain = steady_variance(pull, beta, noise, rate, 0.0)
    fed = steady_variance(pull, beta, noise, rate, (1 - 1 / beta) / rate)
    assert abs(mean) < 0.05 * STEP
    if rule in ("stochastic", "eco_stochastic"):
        assert square == pytest.approx(plain if rule == "stochastic" else fed, rel=0.04)
    else:
        assert square == pytest.approx(unrounded + STEP**2 / 12, rel=0.08)
    assert unrounded < fed < 0.8 * plain


@pytest.mark.parametrize("rule", ["nearest", "stochastic", "kahan"])
def test_zero_mean_noise_shrinks_powers_of_two_under_nearest_rounding_only(rule):
    """E7M0, updates r |w| xi: the value above is twice as far as that below, so that 1/4 |w| is enough to halve one
    and 1/2 |w| is needed to double it.  The mean falls by the factor 1 - p/2 + q in every step.
    That of Kahan's is the mean of weight and compensation."""
    r, steps = 0.15, 50
    quantized, weight = stored(rule, start=1.0, size=256, format="E7M0")
    train(
        quantized,
        weight,
        torch.optim.SGD([weight], lr=1.0),
        steps,
        lambda step: r * weight.detach() * normal(step, weight),
    )
    exact = weight.detach().double() + quantized.compensations().get("0", 0.0)
    mean = float(exact.mean())
    down, up = (math.erfc(limit / r / math.sqrt(2)) / 2 for limit in (0.25, 0.5))
    if rule == "nearest":
        assert mean == pytest.approx((1 - down / 2 + up) ** steps, rel=0.03) and mean < 0.32
    else:
        assert mean == pytest.approx(1.0, abs=5 * float(exact.std()) / 256)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("rule", ["eco", "eco_stochastic"])
def test_eco_feeds_adam_s_momentum_as_published(rule, fused):
    """Algorithm 3 of the paper in float64: m += (1 - b1^t)/h (1 - 1/b1) (sqrt(v/(1 - b2^t)) + eps) e."""
    quantized, weight = stored(rule, start=0.25, size=32, format="E4M3", scaling="dynamic")
    rate, (beta1, beta2), eps = 3e-3, (0.9, 0.95), 1e-6
    optimizer = torch.optim.AdamW([weight], lr=rate, betas=(beta1, beta2), eps=eps, weight_decay=0.1, fused=fused)
    fed = 0
    for step in range(1, 6):
        quantized.begin_step(1, step)
        weight.grad = normal(step, weight)
        optimizer.step()
        state = optimizer.state[weight]
        wanted, m, v = (t.detach().double().clone() for t in (weight, state["exp_avg"], state["exp_avg_sq"]))
        quantized.after_optimizer(optimizer)
        error = wanted - weight.detach().double()
        size = (v / (1 - beta2**step)).sqrt() + eps
        expected = m + (1 - beta1**step) / rate * (1 - 1 / beta1) * size * error
        assert torch.allclose(state["exp_avg"].double(), expected, rtol=2e-5, atol=1e-7)
        assert torch.equal(state["exp_avg_sq"].double(), v)
        fed += int((error != 0).sum())
    assert fed > 1000


def test_a_rule_of_rounding_alone_leaves_momentum_and_state_as_they_were():
    for rule in ("nearest", "stochastic", "kahan"):
        quantized, weight = stored(rule, start=0.25, size=8)
        optimizer = torch.optim.AdamW([weight], lr=1e-3)
        weight.grad = normal(1, weight)
        quantized.begin_step(1, 1)
        optimizer.step()
        before = {name: value.clone() for name, value in optimizer.state[weight].items()}
        quantized.after_optimizer(optimizer)
        assert all(torch.equal(value, before[name]) for name, value in optimizer.state[weight].items())
        assert ("compensations" in quantized.state_dict()) == (rule == "kahan")


@pytest.mark.parametrize("rule", ["eco", "kahan"])
def test_a_change_of_format_is_no_error_of_the_optimizer_s(rule):
    """ECO's momentum stays as it is; Kahan's compensation takes up what the coarser grid cannot hold."""
    quantized, weight = stored(rule, start=0.3125 + STEP, size=8)  # 41/128
    optimizer = momentum(weight, 1.0, 0.5)
    train(quantized, weight, optimizer, 1, lambda _: torch.zeros_like(weight))
    quantized.layers["0"].set_format("weight", find_format("E4M3"))
    assert quantized.write_back is not None
    quantized.write_back()
    assert set(weight.flatten().tolist()) == {0.3125}
    if rule == "eco":
        assert not optimizer.state[weight]["momentum_buffer"].any()
    else:
        assert set(quantized.compensations()["0"].flatten().tolist()) == {STEP}


@pytest.mark.parametrize(
    "make",
    [
        lambda weight: torch.optim.SGD([weight], lr=0.1),
        lambda weight: torch.optim.SGD([weight], lr=0.1, momentum=0.9, nesterov=True),
        lambda weight: torch.optim.AdamW([weight], betas=(0.0, 0.9)),
        lambda weight: torch.optim.Adagrad([weight]),
    ],
    ids=["no momentum", "nesterov", "beta1 0", "Adagrad"],
)
def test_an_optimizer_without_a_momentum_for_the_error_is_refused(make):
    quantized, weight = stored("eco")
    before = weight.detach().clone()
    with pytest.raises(ValueError, match=r"^update_rounding='eco': \w+ as it is set up has no momentum[^\n]*$"):
        quantized.after_optimizer(make(weight))
    assert torch.equal(weight, before)


def test_what_the_rules_need_and_did_not_get_is_said_in_one_line():
    quantized, _ = stored("eco")
    with pytest.raises(ValueError, match=r"^after_optimizer\(\): [^\n]*call after_optimizer\(optimizer\)$"):
        quantized.after_optimizer()
    for rule in ("kahan", "eco", "eco_stochastic"):
        recipe = Recipe(format="E4M3", master_weights=False, update_rounding=rule)
        with pytest.raises(
            ValueError, match=rf"^update_rounding='{rule}': layer 0 has a weight of torch.bfloat16[^\n]*$"
        ):
            quantize_model(nn.Sequential(nn.Linear(4, 4)).bfloat16(), recipe)
    with pytest.raises(ValueError, match=r"^update_rounding='eco' with beta1=0: [^\n]*$"):
        TrainConfig(master_weights=False, update_rounding="eco", beta1=0.0)
    assert TrainConfig(update_rounding="eco", beta1=0.0).master_weights

"""Hand-written loss curves of a tiny byte-level GPT, as records, and the detector's verdict on them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

from altgrad.collapse import CollapseDetector
from altgrad.config.train_config import TrainConfig
from altgrad.results import Verdict

VOCABULARY = 256
CAP = math.log(VOCABULARY)  # 5.545
STEPS = 500
INTERVAL = 50
CONFIG = TrainConfig(max_steps=STEPS, warmup_steps=50, diagnostic_interval=INTERVAL)
Record = dict[str, float]


def healthy(step: int) -> float:
    """A tiny byte-level GPT without noise: 5.55 at the start, about 3.3 at 40, 2.5 at 200, 2.2 at 500."""
    return 2.15 + 2.5 * math.exp(-step / 18) + 0.9 * math.exp(-step / 180)


def records(loss: Callable[[int], float], steps: int = STEPS, **metrics: Callable[[int], float]) -> list[Record]:
    """One record per step from 1; the metrics only where a diagnostic measures, the gap at every step."""
    rows = []
    for step in range(1, steps + 1):
        row: Record = {"step": step, "loss": loss(step)}
        for name, curve in metrics.items():
            if step % INTERVAL == 0 or name in ("gap_to_baseline", "non_finite_gradients"):
                row[name] = curve(step)
        rows.append(row)
    return rows


def judge(
    rows: Iterable[Record],
    config: TrainConfig = CONFIG,
    vocabulary: int | None = VOCABULARY,
    unigram_entropy: float | None = None,
) -> Verdict | None:
    detector = CollapseDetector(config, vocabulary, unigram_entropy)
    for row in rows:
        detector.update(row)
    return detector.verdict


def heavy_tailed(rng: random.Random, scale: float) -> float:
    """Student t with 2.5 degrees of freedom: infinite kurtosis, outliers of many sigma."""
    return scale * rng.gauss(0, 1) / math.sqrt(rng.gammavariate(1.25, 1 / 1.25))


def noisy(curve: Callable[[int], float], seed: int, scale: float = 0.12) -> Callable[[int], float]:
    """The curve with heavy-tailed noise; a loss is never below 0."""
    rng = random.Random(seed)
    return lambda step: max(0.0, curve(step) + heavy_tailed(rng, scale))


def spiked(start: int, length: int, top: float, heal: float = 8.0) -> Callable[[int], float]:
    """Healthy, but at `top` for `length` steps, then falling back with time constant `heal`."""

    def loss(step: int) -> float:
        if step < start:
            return healthy(step)
        if step < start + length:
            return top
        return healthy(step) + (top - healthy(step)) * math.exp(-(step - start - length + 1) / heal)

    return loss


def cosine_tail(step: int) -> float:
    """Converged: exactly flat for the second half."""
    return healthy(min(step, 250))


def diverging(step: int) -> float:
    return healthy(step) if step < 200 else min(CAP, healthy(200) + 0.1 * (step - 200))


def bumps(step: int) -> float:
    """Warm restarts of the learning rate: every 120 steps 0.7 nats up, falling back over 30 steps."""
    return healthy(step) + (0.7 * math.exp(-(step % 120) / 30) if step >= 120 else 0.0)


def plateau_then_drop(step: int) -> float:
    return 5.54 - 2.2 * min(step, 40) / 40 if step < 400 else 3.34 - 1.2 * (1 - math.exp(-(step - 400) / 20))


def late_start(step: int) -> float:
    """Stays at its start for 35 % of the run, then learns."""
    return 5.545 if step < 175 else healthy(step - 174)


HEALTHY_CURVES = {
    "healthy": healthy,
    "bumps": bumps,
    "plateau_then_drop": plateau_then_drop,
    "late_start": late_start,
    "flat_tail": cosine_tail,
    "spike_of_1": spiked(200, 1, 9.0),
    "spike_of_1_without_bound": lambda step: 1e30 if step == 200 else healthy(step),
    "spike_of_20": spiked(200, 20, CAP),
    "spike_of_50": spiked(200, 50, CAP),
    "spike_of_50_slow_to_heal": spiked(200, 50, CAP, heal=60.0),
    "spike_at_the_start": spiked(30, 20, 8.0),
    "two_spikes": lambda step: max(spiked(150, 30, CAP)(step), spiked(300, 40, CAP)(step)),
    "slow_from_the_cap": lambda step: CAP - 0.004 * step,
    "start_far_above_the_cap": lambda step: healthy(step) + 300 * math.exp(-step / 10),
}

"""The runs of the benchmark: scenarios x seeds, with numbers drawn anew for each seed.

Every scenario says what is changed against its twin, the run of the same seed with nothing planted, and from which step
on.  Seeds 1, 4, 7, ... are the tune split, the others the test split.  The model is `micro` with one block, in FP32
where the scenario is about no format, and nothing is compiled: a run then costs a few seconds on one core.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from altgrad.config.train_config import TrainConfig

STEPS = 260
SEEDS = 6
FORMAT_SEEDS = 3  # of the scenarios about formats, whose runs cost four times as much as the others
RATE = 3e-3
INTERVAL = 20  # steps between diagnostics, and between held-out losses
BASE: Mapping[str, Any] = {
    "format": "FP32", "model": "micro", "n_layer": 1, "max_steps": STEPS, "learning_rate": RATE, "warmup_steps": 30,
    "eval_interval": STEPS, "eval_batches": 3, "batch_size": 8, "diagnostic_interval": INTERVAL, "log_stiffness": True,
    "log_grid_alignment": True, "log_ulp": True, "use_shadow": True, "stop_on_collapse": False, "threads": 1,
    "device": "cpu", "compile": False,
}  # fmt: skip
_REGRESSION: Mapping[str, Any] = {
    "task": "bench.detectors.faults:Scaled",
    "format": "BF16",
    "batch_size": 64,
    "learning_rate": 1e-2,
}
Drawn = tuple[Mapping[str, Any], list[Mapping[str, Any]], int]  # config fields, faults, onset


@dataclass(frozen=True)
class Plan:
    """One run.  fields: what differs from `BASE`.  faults: see `faults`.  onset: the first step that is not the twin's.

    twin: the scenario of the run by whose outcome this one is judged.  baseline: the scenario whose losses give
    `gap_to_baseline`, as a sweep would pair them; None where the sweep's BF16 run would share what is planted: another
    rate, other data or another schedule from the first step on.  A fault that begins later hits one run alone.
    """

    scenario: str
    seed: int
    fields: Mapping[str, Any]
    faults: list[Mapping[str, Any]] = field(default_factory=list)
    onset: int = 1
    twin: str = "plain"
    baseline: str | None = None

    @property
    def name(self) -> str:
        return f"{self.scenario}-s{self.seed}"

    @property
    def is_test(self) -> bool:
        return self.seed % 3 != 1

    def config(self) -> TrainConfig:
        return TrainConfig(**{**BASE, **self.fields, "seed": self.seed})


def _late(rng: random.Random) -> int:
    return rng.randrange(60, 110)


def _fields(**fields: Any) -> Callable[[random.Random], Drawn]:
    return lambda rng: (fields, [], 1)


def _rate(factor: float, **fields: Any) -> Callable[[random.Random], Drawn]:
    return lambda rng: ({"learning_rate": factor * RATE * rng.uniform(0.8, 1.25), **fields}, [], 1)


def _phase(**casts: Any) -> Callable[[random.Random], Drawn]:
    def drawn(rng: random.Random) -> Drawn:
        start = _late(rng)
        return {"format": "E4M3", "phases": [{"from_step": start, **casts}]}, [], start

    return drawn


def _frozen(rng: random.Random) -> Drawn:
    """A scale that stays where it is from a step on: values beyond it saturate, or those below it vanish."""
    start, power = _late(rng), rng.choice([-14, -12, -10, -8, -4, 0, 4])
    cast = {"format": "E4M3", "scaling": "static", "static_scale": 2.0**power}
    gemm, operand = rng.choice([("fprop", "activation"), ("fprop", "weight"), ("dgrad", "gradient")])
    gemms = {gemm: {operand: cast}}
    return {"format": "E4M3", "phases": [{"from_step": start, "gemms": gemms}]}, [], start


def _faulty(kind: str, length: tuple[int, int] | None, **numbers: Any) -> Callable[[random.Random], Drawn]:
    """A fault from a drawn step on, for a drawn number of steps; None: to the end.  Pairs of numbers are ranges."""

    def drawn(rng: random.Random) -> Drawn:
        start = _late(rng)
        fault: dict[str, Any] = {"kind": kind, "from": start}
        if length is not None:
            fault["to"] = start + rng.randrange(*length) - 1
        for name, value in numbers.items():
            if isinstance(value, tuple):
                value = rng.randrange(*value) if isinstance(value[0], int) else rng.uniform(*value)
            fault[name] = value
        return {}, [fault], start

    return drawn


def _always(kind: str, **numbers: Any) -> Callable[[random.Random], Drawn]:
    def drawn(rng: random.Random) -> Drawn:
        _, [fault], _ = _faulty(kind, None, **numbers)(rng)
        return {}, [{**fault, "from": 1}], 1

    return drawn


def _layer(rng: random.Random) -> Drawn:
    layer = rng.choice(["h.0.attn.qkv", "h.0.attn.proj", "h.0.mlp.up", "h.0.mlp.down", "lm_head"])
    return {"format": "E4M3", "update_rounding": "stochastic", "master_weights": False,
            "layer_formats": {layer: "E7M0"}}, [], 1  # fmt: skip


def _moment(rng: random.Random) -> Drawn:
    """The second moment underflows to 0, and epsilon is too small to bound the update then."""
    return {"second_moment": {"format": rng.choice(["E4M3", "E5M2", "E3M4"])},
            "adam_epsilon": 10.0 ** rng.randint(-12, -8)}, [], 1  # fmt: skip


def _regression(**fields: Any) -> Callable[[random.Random], Drawn]:
    def drawn(rng: random.Random) -> Drawn:
        rate = _REGRESSION["learning_rate"] * fields.get("rate", 1)
        rest = {name: value for name, value in fields.items() if name != "rate"}
        scaled = {**_REGRESSION, "task_args": {"factor": 10.0 ** rng.randint(-4, 4)}, "learning_rate": rate, **rest}
        return scaled, [], 1

    return drawn


def _regression_fault(kind: str, length: tuple[int, int] | None, **numbers: Any) -> Callable[[random.Random], Drawn]:
    def drawn(rng: random.Random) -> Drawn:
        fields, _, _ = _regression()(rng)
        _, faults, start = _faulty(kind, length, **numbers)(rng)
        return fields, faults, start

    return drawn


_FORMATS = {
    "healthy": _fields(format="BF16"),
    "e4m3": _fields(format="E4M3"),
    "e5m2": _fields(format="E5M2"),
    "e3m4": _fields(format="E3M4"),
    "e7m0": _fields(format="E7M0"),
    "e0m7": _fields(format="E0M7"),
    "e4m3_stored": _fields(format="E4M3", master_weights=False),
    "e3m4_stored": _fields(format="E3M4", master_weights=False),
    "e7m0_stored": _fields(format="E7M0", master_weights=False),
    "e5m2_stored": _fields(format="E5M2", master_weights=False),
    "e4m3_stored_stochastic": _fields(format="E4M3", master_weights=False, update_rounding="stochastic"),
    "bf16_stored": _fields(format="BF16", master_weights=False),
    "e0m7_unscaled": _fields(format="E0M7", scaling="none"),
    "e7m0_layer": _layer,
    "scale_frozen": _frozen,
    "unscaled_late": _phase(format="E0M7", scaling="none"),
}
_OTHERS: Mapping[str, Callable[[random.Random], Drawn]] = {
    "small_epsilon": _moment,
    "rate_x2": _rate(2),
    "rate_x4": _rate(4),
    "rate_x8": _rate(8),
    "rate_x16": _rate(16),
    "rate_x32": _rate(32),
    "rate_x64": _rate(64),
    "rate_x16_unclipped": _rate(16, gradient_clip=0.0),
    "rate_x64_e4m3": _rate(64, format="E4M3", gradient_clip=0.0),
    "rate_quarter": _rate(0.25),
    "stuck_loader": _faulty("stuck", None, of=(1, 5)),
    "stuck_loader_heals": _faulty("stuck", (10, 40), of=(1, 5)),
    "heavy_tailed_batches": _always("garbage", scale=(0.3, 1.5)),
    "garbage_burst": _faulty("garbage", (2, 12), scale=(20.0, 60.0)),
    "label_noise": _always("labels", share=(0.05, 0.4)),
    "labels_lost": _faulty("labels", None, share=(0.9, 1.0)),
    "fast_spike": _faulty("rate", (1, 4), factor=(10.0, 40.0)),
    "slow_spike": _faulty("weights", (1, 2), size=(0.3, 1.0)),
    "rate_jump": _faulty("rate", None, factor=(20.0, 80.0)),
    "plateau": _faulty("rate", (40, 90), factor=1e-4),
    "plateau_at_start": lambda rng: (
        {},
        [{"kind": "rate", "from": 1, "to": rng.randrange(50, 100), "factor": 3e-3}],
        1,
    ),
    "frozen_for_good": _faulty("rate", None, factor=1e-5),
    "warm_restarts": lambda rng: (
        {},
        [{"kind": "restarts", "from": 1, "period": rng.randrange(50, 100), "low": 0.05, "high": rng.uniform(2, 5)}],
        1,
    ),
    "nan_burst": _faulty("nan", (1, 4)),
    "nan_for_good": _faulty("nan", None),
}
_LOSSES = {
    "regression": _regression(),
    "regression_e7m0_stored": _regression(format="E7M0", master_weights=False),
    "regression_rate_x100": _regression(rate=100, gradient_clip=0.0),
    "regression_rate_x10": _regression(rate=10, gradient_clip=0.0),
    "regression_rate_jump": _regression_fault("rate", None, factor=(100.0, 300.0)),
    "regression_spike": _regression_fault("rate", (1, 4), factor=(5.0, 15.0)),
    "regression_noise": _regression_fault("labels", (1, 400), share=(0.3, 1.5)),
    "regression_nan": _regression_fault("nan", None),
}


def plans(seeds: int = SEEDS) -> Iterator[Plan]:
    """All runs, seed by seed; the twins come first."""
    for seed in range(1, seeds + 1):
        yield _plan("plain", _fields(), seed)
        yield _plan("regression", _LOSSES["regression"], seed, twin="regression")
        for scenario, drawn in _FORMATS.items() if seed <= FORMAT_SEEDS else ():
            yield _plan(scenario, drawn, seed, twin="healthy", paired=True)
        for scenario, drawn in _OTHERS.items():
            yield _plan(scenario, drawn, seed)
        for scenario, drawn in _LOSSES.items():
            if scenario != "regression":
                yield _plan(scenario, drawn, seed, twin="regression", paired="stored" in scenario)


def _plan(
    scenario: str, drawn: Callable[[random.Random], Drawn], seed: int, twin: str = "plain", paired: bool = False
) -> Plan:
    """paired: a sweep trains the twin beside the run; it also does where the two differ from a later step on."""
    fields, faults, onset = drawn(random.Random(zlib.crc32(f"{scenario}-{seed}".encode())))
    if twin == "regression":  # one scale of the loss per seed, so that a run and its twin can be compared
        factor = 10.0 ** random.Random(seed).randint(-4, 4)
        fields = {**fields, "task_args": {"factor": factor}}
    is_paired = scenario != twin and (paired or onset > 1)
    return Plan(scenario, seed, fields, faults, onset, twin, twin if is_paired else None)

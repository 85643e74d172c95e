"""Studies: each answers one question by training, and writes its results into docs/results/.

    python -m bench.studies axis        along which dimension do blocks of 32 have to run?
    python -m bench.studies gemms       which of the three GEMMs does the harm in FP4?
    python -m bench.studies axis --seeds 2 --steps 50 --out DIR     smaller, elsewhere

Every run of a study trains `micro` (2 layers, 32 wide) on the built-in text, from the same weights and on the same
batches as the BF16 run of its seed.  Intervals are t intervals over the differences of paired seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from altgrad.compare.statistics import interval
from altgrad.config.cast import GEMMS, Gemm
from altgrad.config.train_config import TrainConfig
from altgrad.training.trainer import Trainer
from bench.record import machine

Arms = Mapping[str, Mapping[str, Any]]
_OUT = Path(__file__).parents[2] / "docs" / "results"
_BASE = {"model": "micro", "compile": False, "threads": 1, "device": "cpu", "eval_batches": 16, "learning_rate": 2e-3}


def axis_arms() -> Arms:
    """Blocks of 32 along the contraction dimension of each GEMM, as on hardware, and along the last dimension."""
    return {
        f"{fmt}, {axis}": {"format": fmt, "scale_granularity": "1x32", "block_axis": axis}
        for fmt in ("E0M7", "E2M5", "E2M3", "E2M1", "E4M3")
        for axis in ("contraction", "last")
    }


def gemm_arms() -> Arms:
    """All combinations of E2M1 in blocks of 32 and FP32 over the three GEMMs."""
    arms: dict[str, Mapping[str, Any]] = {}
    for narrow in _combinations():
        high = {gemm: {"format": "FP32"} for gemm in GEMMS if gemm not in narrow}
        narrow_arm = {"format": "E2M1", "scale_granularity": "1x32", "gemms": high}
        arms[_gemm_arm(narrow)] = narrow_arm if narrow else {"format": "FP32"}
    return arms


def _combinations() -> list[tuple[Gemm, ...]]:
    """All subsets of the three GEMMs: none, wgrad, dgrad, ..., all."""
    chosen = itertools.product((False, True), repeat=len(GEMMS))
    return [tuple(itertools.compress(GEMMS, mask)) for mask in chosen]


def _gemm_arm(narrow: Sequence[Gemm]) -> str:
    return "E2M1 in " + ", ".join(narrow) if narrow else "FP32 in all three"


def gemm_effects(losses: Mapping[str, Sequence[float]]) -> dict[tuple[Gemm, ...], list[float]]:
    """Effect of E2M1 in each GEMM, and interaction of each set of GEMMs, in nats, seed by seed.

    losses: of the arms of `gemm_arms`.  An effect is the difference with and without E2M1 in that GEMM, averaged over
    what the other two are.  An interaction of two is how much larger the effect of one is where the other one is E2M1
    too, averaged over the third; that of all three, how much larger such an interaction is with the third.
    """
    effects = {}
    for members in itertools.chain.from_iterable(itertools.combinations(GEMMS, size) for size in (1, 2, 3)):
        others = 2 ** (len(GEMMS) - len(members))
        signed = [
            [(-1) ** (len(members) - len(set(members) & set(narrow))) * loss for loss in losses[_gemm_arm(narrow)]]
            for narrow in _combinations()
        ]
        effects[members] = [sum(seed) / others for seed in zip(*signed, strict=True)]
    return effects


STUDIES: Mapping[str, tuple[str, Arms]] = {
    "axis": ("Along which dimension do blocks of 32 have to run?", axis_arms()),
    "gemms": ("Which of the three GEMMs does the harm in FP4?", gemm_arms()),
}


def main(words: Sequence[str] | None = None) -> None:
    """Run a study and write its table as markdown and JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.studies", description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds (default: 5)")
    parser.add_argument("--steps", type=int, default=400, help="steps of every run (default: 400)")
    parser.add_argument("--out", type=Path, default=_OUT, help="folder to write into (default: docs/results)")
    options = parser.parse_args(words)
    question, arms = STUDIES[options.study]
    losses = {name: [] for name in ("BF16", *arms)}
    for seed in range(1, options.seeds + 1):
        for name, fields in (("BF16", {"format": "BF16"}), *arms.items()):
            losses[name].append(_validation_loss({**fields, "seed": seed, "max_steps": options.steps}))
            print(f"seed {seed}  {name:32} {losses[name][-1]:.4f}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    command = f"python -m bench.studies {options.study} --seeds {options.seeds} --steps {options.steps}"
    record = {"question": question, "command": command, "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    file = options.out / f"study_{options.study}"
    file.with_suffix(".json").write_text(json.dumps(record | {"validation_loss": losses}, indent=1) + "\n")
    file.with_suffix(".md").write_text(page(record, losses))


def _validation_loss(fields: Mapping[str, Any]) -> float:
    torch.set_num_threads(1)
    config = TrainConfig(**(_BASE | {"eval_interval": fields["max_steps"], "diagnostic_interval": 10**6} | fields))
    trainer = Trainer(config)
    for _ in range(config.max_steps - 1):
        trainer.step()
    return trainer.step().record["validation_loss"]


def page(record: Mapping[str, Any], losses: Mapping[str, Sequence[float]]) -> str:
    """A study's results as markdown.  record: question, command, date, machine; losses: by arm, one per seed."""
    baseline = losses["BF16"]
    lines = [
        f"# {record['question']}",
        "",
        f"`{record['command']}`, {record['date']}, {record['machine']['processor']}, "
        f"torch {record['machine']['torch']}. Validation loss of `micro` in nats; gap to the seed's BF16 run, "
        f"mean and 95 % t interval over {len(baseline)} paired seeds.",
        "",
        "| run | validation loss | gap to BF16 |",
        "| --- | ---: | ---: |",
        f"| BF16 | {mean(baseline):.4f} | baseline |",
    ]
    for name, values in losses.items():
        if name != "BF16":
            lines.append(f"| {name} | {mean(values):.4f} | {_interval(values, baseline)} |")
    if "axis" in record["command"]:
        lines += ["", "The wrong dimension against the right one, seed by seed:", "", "| format | last - contraction |"]
        lines.append("| --- | ---: |")
        for name, values in losses.items():
            if name.endswith(", last"):
                fmt = name.removesuffix(", last")
                lines.append(f"| {fmt} | {_interval(values, losses[f'{fmt}, contraction'])} |")
    if "gemms" in record["command"]:
        lines += [
            "",
            "Effects of E2M1 in one GEMM, averaged over what the other two are, and interactions (x), how much more "
            "they cost together than each by itself:",
            "",
            "| E2M1 in | nats |",
            "| --- | ---: |",
        ]
        for members, values in gemm_effects(losses).items():
            lines.append(f"| {' x '.join(members)} | {_interval(values, [0.0] * len(values))} |")
    return "\n".join(lines) + "\n"


def _interval(values: Sequence[float], others: Sequence[float]) -> str:
    differences = [a - b for a, b in zip(values, others, strict=True)]
    middle, low, high = interval(differences)
    return f"{middle:+.4f}" if low is None else f"{middle:+.4f} [{low:+.4f}, {high:+.4f}]"

"""How often an explanation names a planted fault, with how many replays, and how often it blames a cell falsely.

    python -m bench.explain [--plants 60] [--others 20] [--seed 0] [--jobs N]

A plant is a run of one small block whose 24 cells (4 layers x 6 operands) are cast to E4M3, but one of them with a
fault: a frozen scale under which it overflows, E0M7 without a scale, or a biased rounding of two bits.  Cells, faults
and seeds are drawn in turn.  A plant that does not collapse is no plant; it is counted and replaced.  The others have
no guilty cell: healthy runs, runs with 32 times the learning rate, runs whose format fails everywhere.  The head stays
in BF16.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from altgrad.config.train_config import TrainConfig
from altgrad.explain.cells import Cell, rounded_cells
from altgrad.results import read_run
from altgrad.storage.folder import Folder

LAYERS = ("h.0.attn.qkv", "h.0.attn.proj", "h.0.mlp.up", "h.0.mlp.down")
BASE = TrainConfig(
    model="micro", n_layer=1, format="E4M3", layer_formats={"lm_head": "BF16"}, batch_size=8, max_steps=100,
    learning_rate=3e-3, warmup_steps=10, eval_interval=100, eval_batches=1, diagnostic_interval=10,
    checkpoint_interval=20, gap_limit=0.03, gap_patience=25, compile=False, threads=1,
)  # fmt: skip
FAULTS: Mapping[str, Mapping[str, Any]] = {
    "frozen scale": {"format": "E5M2", "scaling": "static", "static_scale": 2.0**-30, "overflow": "inf"},
    "no scale": {"format": "E0M7", "scaling": "none"},
    "biased rounding": {"format": "E2M1", "rounding": "toward_zero"},
}
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "healthy": {},
    "rate x 32": {"learning_rate": 32 * BASE.learning_rate, "gradient_clip": 0.0},
    "format": {"format": "E0M7", "scaling": "none"},
    "stored": {"format": "E7M0", "master_weights": False},
}
NAMING = math.floor(math.log2(len(LAYERS) * 6)) + 4
_BUDGET = 30


@dataclass(frozen=True)
class Outcome:
    """What became of one run: rule and cells of the conclusion, replays of the search; rule "healthy": no collapse."""

    kind: str
    guilty: Cell | None
    rule: str
    blamed: tuple[Cell, ...] = ()
    replays: int = 0
    confidence: str = ""

    @property
    def is_named(self) -> bool:
        """Whether exactly the planted cell was blamed, within the number of replays that is promised."""
        return self.guilty is not None and self.blamed == (self.guilty,) and self.replays <= NAMING

    @property
    def is_false(self) -> bool:
        """Whether single cells were blamed that hold no fault."""
        return self.rule == "operands" and any(cell != self.guilty for cell in self.blamed)


def explained(kind: str, config: TrainConfig, guilty: Cell | None) -> Outcome:
    """Train a run and its baseline, and explain it if it collapsed."""
    import torch

    from altgrad.training import run_format_experiment
    from tune.replay.arm_run import train_arm
    from tune.replay.case_of_run import replayed
    from tune.replay.explaining import Explanation

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="altgrad-explain-") as place:
        sweep = Folder.at(place)
        plain = BASE.altered(format="BF16", layer_formats={}, seed=config.seed, learning_rate=config.learning_rate)
        plain = plain.altered(gradient_clip=config.gradient_clip)
        run_format_experiment(plain, sweep / "bf16")
        losses = {row["step"]: row["loss"] for row in read_run(sweep / "bf16").table("steps", ["loss"]).to_pylist()}
        result = run_format_experiment(config, sweep / "run", baseline=losses)
        if result.verdict is None:
            return Outcome(kind, guilty, "healthy")
        runs = [
            {"run": "bf16", "config": plain.model_dump()},
            {"run": "run", "config": config.model_dump(), "baseline": "bf16"},
        ]
        sweep.write_json("sweep.json", {"schema": 1, "runs": runs})
        explanation, replays = Explanation(replayed(read_run(sweep / "run"), None, replays=1), _BUDGET), 0
        explanation.begin()
        while (arm := explanation.next_arm()) is not None:
            replays += arm.kind in ("control", "heal")
            explanation.take(arm, train_arm(explanation.job_of(arm, "bench")))
        found = explanation.conclusion
        return Outcome(kind, guilty, found.rule, tuple(sorted(found.cells)), replays, found.confidence)


def plants(seed: int) -> Iterator[tuple[str, TrainConfig, Cell]]:
    """Runs with one planted fault, without end: cells in random order, faults in turn."""
    rng, cells = random.Random(seed), rounded_cells(BASE, LAYERS)
    number = 0
    while True:
        rng.shuffle(cells)
        for cell in cells:
            fault = list(FAULTS)[number % len(FAULTS)]
            planted = {cell.layer: {cell.gemm: {cell.site: dict(FAULTS[fault])}}}
            yield fault, BASE.altered(layer_gemms=planted, seed=number), cell
            number += 1


def main() -> None:
    """Run the plants and the others, and print what was named and what was blamed falsely."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plants", type=int, default=60)
    parser.add_argument("--others", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    done: list[Outcome] = []
    source = plants(options.seed)
    with ProcessPoolExecutor(options.jobs) as pool:
        while (missing := options.plants - len([one for one in done if one.rule != "healthy"])) > 0:
            jobs = [pool.submit(explained, *next(source)) for _ in range(min(missing, 2 * options.jobs))]
            for job in jobs:
                done.append(job.result())
                print(_line(done[-1]), flush=True)
        kinds = [list(OTHERS)[number % len(OTHERS)] for number in range(options.others)]
        configs = [BASE.altered(**OTHERS[kind], seed=1000 + place) for place, kind in enumerate(kinds)]
        others = [pool.submit(explained, kind, config, None) for kind, config in zip(kinds, configs, strict=True)]
        for job in others:
            done.append(job.result())
            print(_line(done[-1]), flush=True)
    _summary(done)


def _line(one: Outcome) -> str:
    said = (
        f"{one.kind:16} {one.guilty or 'no guilty cell'!s:34} {one.rule:15} {one.confidence:7} {one.replays:3} replays"
    )
    return f"{said}  {'; '.join(map(str, one.blamed[:3]))}".rstrip()


def _summary(done: list[Outcome]) -> None:
    planted = [one for one in done if one.guilty is not None and one.rule != "healthy"]
    others = [one for one in done if one.guilty is None]
    without = sum(one.guilty is not None and one.rule == "healthy" for one in done)
    print(f"\nplants: {len(planted)} ({without} more did not collapse)")
    if planted:
        named = sum(one.is_named for one in planted)
        print(f"named with at most {NAMING} replays: {named} of {len(planted)} ({named / len(planted):.0%})")
        print("conclusions:", dict(Counter(one.rule for one in planted)))
        print("replays of the search, most:", max(one.replays for one in planted))
    print(f"others: {len(others)}; conclusions: {dict(Counter(one.rule for one in others))}")
    false = sum(one.is_false for one in done)
    print(f"false blame: {false} of {len(planted) + len(others)} runs")


if __name__ == "__main__":
    main()

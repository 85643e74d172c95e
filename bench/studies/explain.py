"""How often an explanation names a planted fault, with how many replays, and how often it blames a cell falsely.

    python -m bench.studies.explain [--plants 60] [--others 20] [--seed 0] [--jobs N] [--out docs/results]

A plant is a run of a small perceptron (the task `regression`: four linear layers one after another, so that each
matters) whose 24 cells (4 layers x 6 operands) are cast to E4M3, but one of them with a fault: a frozen scale under
which it overflows, E0M2 without a scale, or a biased rounding: toward zero, to powers of two above half of the amax.
(E7M0 without a scale is no fault here: its range needs none.)  There are as many plants of each fault; cells are drawn
in random order.  A plant that does not collapse is no plant; it is counted and replaced.  Gradients are rarely spoiled
by a lost scale or a bias, because the optimizer's steps do not depend on their size, and two of the cells, dgrad's in
the first layer, are never computed.  The others have no guilty cell: healthy runs, runs with 32 times the learning
rate, runs whose format or whose storage fails everywhere.  Each outcome is written when it is there, and the same
command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from altgrad.config.train_config import TrainConfig
from altgrad.explain import Case
from altgrad.explain.cells import Cell
from altgrad.explain.harm import MOST_LEFT
from altgrad.results import read_run
from altgrad.storage.folder import Folder
from bench.studies.explain_record import Outcome, Recorded, summary

LAYERS = ("layers.0", "layers.2", "layers.4", "layers.6")
BASE = TrainConfig(
    task="regression", task_args={"inputs": 3, "functions": 2, "width": 32, "depth": 3}, format="E4M3", batch_size=64,
    max_steps=100, learning_rate=1.6e-2, warmup_steps=10, eval_interval=100, eval_batches=1, diagnostic_interval=10,
    checkpoint_interval=20, gap_limit=0.1, gap_patience=15, compile=False, threads=1,
)  # fmt: skip
FAULTS: Mapping[str, Mapping[str, Any]] = {
    "frozen scale": {"format": "E5M2", "scaling": "static", "static_scale": 2.0**-30, "overflow": "inf"},
    "no scale": {"format": "E0M2", "scaling": "none"},
    "biased rounding": {"format": "E2M0", "rounding": "toward_zero", "amax_factor": 2.0},
}
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "healthy": {},
    "rate x 32": {"learning_rate": 32 * BASE.learning_rate, "gradient_clip": 0.0},
    "format": {"format": "E2M0", "rounding": "toward_zero"},
    "stored": {"format": "E7M0", "master_weights": False},
}
_BUDGET = 30
_A_MILLION = 1_000_000  # so far apart are the runs of two seeds of the study: no run is in both


def explained(what: str, number: int, kind: str, config: TrainConfig, guilty: Cell | None) -> Outcome:
    """Train a run and its baseline, and explain it if it collapsed."""
    import torch

    from altgrad.training import run_format_experiment
    from tune.replay.arm_run import train_arm
    from tune.replay.case_of_run import replayed
    from tune.replay.explaining import Explanation

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="altgrad-explain-") as place:
        sweep = Folder.at(place)
        plain = BASE.altered(format="BF16", seed=config.seed)
        run_format_experiment(plain, sweep / "bf16")
        losses = {row["step"]: row["loss"] for row in read_run(sweep / "bf16").table("steps", ["loss"]).to_pylist()}
        result = run_format_experiment(config, sweep / "run", baseline=losses)
        if result.verdict is None:
            return Outcome(what, number, kind, guilty, "healthy")
        runs = [
            {"run": "bf16", "config": plain.model_dump()},
            {"run": "run", "config": config.model_dump(), "baseline": "bf16"},
        ]
        sweep.write_json("sweep.json", {"schema": 1, "runs": runs})
        explanation, search = Explanation(replayed(read_run(sweep / "run"), None, replays=1), _BUDGET), 0
        explanation.begin()
        arms = 0
        while (arm := explanation.next_arm()) is not None:
            arms += 1
            search += arm.kind in ("control", "heal") and not arm.replay
            explanation.take(arm, train_arm(explanation.job_of(arm, "bench")))
        found = explanation.conclusion
        return Outcome(
            what, number, kind, guilty, found.rule, tuple(sorted(found.cells)), search, arms, found.confidence
        )


def plants(seed: int, fault: str) -> Iterator[tuple[str, TrainConfig, Cell]]:
    """Runs with that fault planted, without end, the cells in random order."""
    place = list(FAULTS).index(fault)
    rng, cells = random.Random(f"{seed} {fault}"), list(Case(BASE, LAYERS, 0, BASE.max_steps).cells)
    number = 0
    while True:
        rng.shuffle(cells)
        for cell in cells:
            planted = {cell.layer: {cell.gemm: {cell.site: dict(FAULTS[fault])}}}
            yield fault, BASE.altered(layer_gemms=planted, seed=_A_MILLION * seed + 1000 * place + number), cell
            number += 1


def others(seed: int) -> Iterator[tuple[str, TrainConfig, None]]:
    """Runs without a guilty cell, without end, their kinds in turn."""
    number = 0
    while True:
        kind = list(OTHERS)[number % len(OTHERS)]
        yield kind, BASE.altered(**OTHERS[kind], seed=_A_MILLION * seed + 10_000 + number), None
        number += 1


def main() -> None:
    """Run the plants and the others, three to one, and write what was named and what was blamed falsely."""
    parser = argparse.ArgumentParser(prog="python -m bench.studies.explain", description=__doc__.splitlines()[0])
    parser.add_argument("--plants", type=int, default=60)
    parser.add_argument("--others", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "docs" / "results")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings = {
        "seed": options.seed, "base": BASE.model_dump(mode="json"), "faults": FAULTS, "others": OTHERS,
        "most_harm_left": MOST_LEFT,
    }  # fmt: skip
    command = (
        f"python -m bench.studies.explain --plants {options.plants} --others {options.others} --seed {options.seed}"
    )
    try:
        recorded = Recorded(options.out, command, settings)
    except ValueError as error:
        sys.exit(f"python -m bench.studies.explain: {error}")
    with ProcessPoolExecutor(options.jobs) as pool:
        _fill(recorded, pool, options)
    print("\n".join(["", *summary(recorded.outcomes)]))


def _fill(recorded: Recorded, pool: ProcessPoolExecutor, options: argparse.Namespace) -> None:
    """Explain what is not recorded yet, until there are as many plants that collapsed and others as asked for."""
    running: dict[Future[Outcome], None] = {}
    sources: dict[str, Iterator[tuple[str, TrainConfig, Cell | None]]] = {
        fault: plants(options.seed, fault) for fault in FAULTS
    }
    sources["other"] = others(options.seed)
    asked = {fault: (options.plants + place) // len(FAULTS) for place, fault in enumerate(FAULTS)}
    asked["other"] = options.others
    drawn = dict.fromkeys(sources, 0)
    while True:
        while len(running) < 2 * options.jobs:
            missing = {what: asked[what] - recorded.counted(what, drawn[what]) for what in sources}
            missing = {what: count for what, count in missing.items() if count > 0}
            if not missing:
                break
            what = max(missing, key=lambda what: missing[what] / asked[what])
            kind, config, guilty = next(sources[what])
            drawn[what] += 1
            if not recorded.has(what, drawn[what]):
                running[pool.submit(explained, what, drawn[what], kind, config, guilty)] = None
        if not running:
            return
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for job in done:
            del running[job]
            recorded.take(job.result())


if __name__ == "__main__":
    main()

"""Which act of the rescue ladder saves which collapse, against the same acts at random steps and an equal rate.

    python -m bench.studies.rescue [--seeds 5] [--steps 120] [--out docs/results]

Every run trains `micro` with one block from the weights and on the batches of its seed, is judged by the collapse rules
against the BF16 run of that seed, and ends with the verdict.  A run is saved if it has none at its end, and is not
further behind than the rules allow.  Two controls tell whether the act or its timing saves it:

- the same acts at random steps: as many skips, cuts, rollbacks, shifts and clips, each at a step drawn from those that
  the rescued run trained, whatever the loss is there;
- the equal rate from the start: a run without rescue whose learning rate is multiplied by the mean share that the
  rescued run had of its own, where a step that was left out counts as 0.

A fault that needs no rescue has no controls.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from altgrad.collapse import CollapseDetector
from altgrad.collapse.detector import gap_to_baseline
from altgrad.config.interventions import intervention_fields
from altgrad.config.train_config import Rung, TrainConfig
from altgrad.events import Event
from altgrad.stability.ladder import RescueLadder
from altgrad.stability.protocol import StepState
from altgrad.training.data import unigram_entropy_of
from altgrad.training.optim import learning_rate
from altgrad.training.trainer import Trainer
from bench.record import machine
from bench.studies.rescue_page import RUNGS, SAVED_GAP, acts_per_kind, page

BASE = TrainConfig(
    model="micro", n_layer=1, format="E4M3", batch_size=8, learning_rate=3e-3, warmup_steps=10, eval_batches=1,
    diagnostic_interval=10, checkpoint_interval=20, compile=False, threads=1, gap_limit=SAVED_GAP, gap_patience=40,
    diverged_patience=40, rescue_window=5, device="cpu",
)  # fmt: skip
_SLOW = {"learning_rate": 6e-4}  # at which updates are small beside the steps of 8 bits
_OF_EVENT: Mapping[str, Rung] = {"skip": "skip", "rate_cut": "rate", "rollback": "rollback", "format_shift": "shift"}
# These act at the same steps as `skip`, so that a run in which it never acts is, bit for bit, theirs and that without.
# (Not where the loss is NaN: the guard, which every run has, skips such a step before the ladder does.)
_TRIGGER = {"rate": "skip", "rollback": "skip"}
_FLIPPED, _BURST = 60, range(60, 64)  # step of the flipped bit, steps with NaN batches
_STEEP = 40  # step from which on the rate is steep
Plant = Callable[[Trainer], None]


def flip_a_bit(trainer: Trainer) -> None:
    """Set the highest bit of a weight's exponent before step 60: the loss is NaN from then on."""
    if trainer.step_number == _FLIPPED - 1:
        with torch.no_grad():
            trainer.model.get_parameter("h.0.mlp.up.weight").view(-1)[:1] = 2.0**127


def nan_batches(trainer: Trainer) -> None:
    """Make the loss of steps 60 to 63 NaN."""
    if trainer.step_number == 0:
        trainer.model.register_forward_hook(
            lambda _, __, loss: loss * math.nan if trainer.step_number in _BURST and torch.is_grad_enabled() else loss
        )


def steep_rate(trainer: Trainer) -> None:
    """Multiply the learning rate by 1000 from step 40 on, for good, whatever the schedule and the ladder make of it."""
    if trainer.step_number == _STEEP - 1:
        trainer._rates = [1000 * rate for rate in trainer._rates]


def nothing(trainer: Trainer) -> None:
    """No fault besides the config."""


@dataclass(frozen=True)
class Fault:
    """A config that fails, or a fault that is planted while it trains.  usual: fields of its BF16 run too."""

    fields: Mapping[str, Any]
    plant: Plant = nothing
    usual: Mapping[str, Any] = field(default_factory=dict)

    def config(self, seed: int, steps: int) -> TrainConfig:
        """The failing run."""
        return BASE.altered(**{**self.usual, **self.fields}, seed=seed, max_steps=steps, eval_interval=steps)

    def baseline(self, seed: int, steps: int) -> dict[int, float]:
        """Step -> training loss of the BF16 run."""
        trainer = Trainer(BASE.altered(**self.usual, format="BF16", seed=seed, max_steps=steps, eval_interval=steps))
        return {step: trainer.step().record["loss"] for step in range(1, steps + 1)}


FAULTS: Mapping[str, Fault] = {
    "E7M0 stored": Fault({"format": "E7M0", "master_weights": False}, usual=_SLOW),
    "E4M3 stored": Fault({"master_weights": False}, usual=_SLOW),
    "E0M7 unscaled": Fault({"format": "E0M7", "scaling": "none"}),
    "explosion (rate x 32)": Fault({"learning_rate": 32 * 1e-2, "gradient_clip": 0.0}, usual={"learning_rate": 1e-2}),
    "rate x 1000 from step 40": Fault({"gradient_clip": 0.0}, steep_rate, {"learning_rate": 1e-2}),
    "NaN burst (4 batches)": Fault({}, nan_batches),
    "NaN burst (flipped bit)": Fault({}, flip_a_bit),
}


@dataclass(frozen=True)
class Act:
    """What a rescue did: a rung, `format` of a shift, or `limit` of a clip."""

    rung: str
    format: str | None = None
    limit: float | None = None

    @classmethod
    def of(cls, event: Event) -> Act | None:
        """The act of an event; None for one of the guard, which every run has."""
        if event.kind == "clip":
            return cls("clip", limit=event.detail["limit"])
        if event.kind not in _OF_EVENT or "trigger" not in event.detail:
            return None
        return cls(_OF_EVENT[event.kind], event.detail.get("to"))


@dataclass(frozen=True)
class Outcome:
    """A run: its verdict (None: saved), its last step, its gap to BF16 there, its acts, its mean share of the rate."""

    verdict: str | None
    step: int
    gap: float | None
    acts: tuple[Act, ...] = ()
    share: float = 1.0

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Outcome:
        """The outcome of a recorded run."""
        found = {one.name: row[one.name] for one in fields(cls)}
        return cls(**{**found, "acts": tuple(Act(**act) for act in row["acts"])})


class AtSteps:
    """Does given acts at given steps, in place of the intervention that did them when it saw fit."""

    def __init__(self, ladder: RescueLadder, acts: Mapping[int, Sequence[Act]]) -> None:
        self._ladder, self._acts = ladder, acts

    def on_gradients(self, state: StepState) -> None:
        for act in self._acts.get(state.step, ()):
            if act.rung == "clip":
                state.limit_norm(act.limit or math.inf)
            else:
                self._ladder.act(act.rung, state, "a random step")  # type: ignore[arg-type]
        self._ladder.warm(state)

    def after_step(self, state: StepState) -> None:
        self._ladder.after_step(state)

    def state_dict(self) -> dict[str, Any]:
        return self._ladder.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._ladder.load_state_dict(state)


def trained(
    config: TrainConfig, plant: Plant, baseline: Mapping[int, float], acts: Mapping[int, Sequence[Act]] | None = None
) -> Outcome:
    """Train a run to its verdict or its end.  baseline: step -> loss of BF16; acts: those of the first control."""
    trainer = Trainer(config)
    if acts is not None:
        trainer.interventions = [AtSteps(o, acts) if isinstance(o, RescueLadder) else o for o in trainer.interventions]
    checkpoints: list[dict[str, Any]] = []
    trainer.earlier_states = lambda step: (one for one in reversed(checkpoints) if one["step"] < step)
    vocabulary = trainer.batches.vocabulary
    detector, gap = (
        CollapseDetector(config, vocabulary, unigram_entropy_of(trainer.batches)),
        gap_to_baseline(config, vocabulary, baseline),
    )
    behind, rates, done = None, [], []
    while trainer.step_number < config.max_steps and detector.verdict is None:
        plant(trainer)
        outcome = trainer.step()
        step, record = trainer.step_number, outcome.record
        behind = gap.update(step, record["loss"])
        detector.update(record if behind is None else {**record, "gap_to_baseline": behind})
        found = [act for act in map(Act.of, outcome.events) if act is not None]
        done += found
        left_out = any(act.rung in ("skip", "rollback") for act in found)
        rates.append(0.0 if left_out else record["learning_rate"] / learning_rate(config, step))
        if step % config.checkpoint_interval == 0:
            checkpoints.append(copy.deepcopy(trainer.state_dict()))
    verdict = None if detector.verdict is None else detector.verdict.rule
    return Outcome(verdict, trainer.step_number, behind, tuple(done), sum(rates) / len(rates))


Arm = tuple[str, str]  # rung, and `acts`, `random` or `rate`


def arms(fault: str, seed: int, steps: int, known: Mapping[Arm, Outcome]) -> Iterator[tuple[Arm, Outcome]]:
    """All runs of a fault and a seed.  Those that are known are not trained again, unless their acts may be others."""
    config, plant = FAULTS[fault].config(seed, steps), FAULTS[fault].plant
    baseline: dict[int, float] = {}

    def outcome_of(arm: Arm, config: TrainConfig, acts: Mapping[int, Sequence[Act]] | None = None) -> Outcome:
        if arm in known and (arm[0], "acts") in known:
            return known[arm]
        if not baseline:
            baseline.update(FAULTS[fault].baseline(seed, steps))
        return trained(config, plant, baseline, acts)

    plain = outcome_of(("none", "acts"), config)
    yield ("none", "acts"), plain
    idle: set[str] = set()
    for rung in RUNGS:
        rescued = config.altered(**intervention_fields(rung))
        repeated = plant is nothing and _TRIGGER.get(rung) in idle
        outcome = plain if repeated else outcome_of((rung, "acts"), rescued)
        yield (rung, "acts"), outcome
        if not outcome.acts:
            idle.add(rung)
        if not outcome.acts or plain.verdict is None:  # without a rescue that is due there is nothing to tell apart
            continue
        draw = random.Random(f"{fault} {rung} {seed}")
        at: dict[int, list[Act]] = {}
        for act, step in zip(outcome.acts, sorted(draw.choices(range(1, steps + 1), k=len(outcome.acts))), strict=True):
            at.setdefault(step, []).append(act)
        to = next((act.format for act in outcome.acts if act.format is not None), "BF16")
        at_random = config.altered(enable_rescue_ladder=True, rescue_shift_format=to)
        yield (rung, "random"), outcome_of((rung, "random"), at_random, at)
        if outcome.share < 1:
            slower = config.altered(learning_rate=config.learning_rate * outcome.share)
            yield (rung, "rate"), outcome_of((rung, "rate"), slower)


def main(words: Sequence[str] | None = None) -> None:
    """Run the study and write its table as markdown and JSON; a run that is recorded is not trained again."""
    parser = argparse.ArgumentParser(prog="python -m bench.studies.rescue", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds (default: 5)")
    parser.add_argument("--steps", type=int, default=120, help="steps of every run (default: 120)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "docs" / "results")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    command = f"python -m bench.studies.rescue --seeds {options.seeds} --steps {options.steps}"
    head: dict[str, Any] = {
        "command": command,
        "steps": options.steps,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
    }
    processor = head["machine"]["processor"]
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "study_rescue.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    recorded = before.get("runs", []) if before.get("steps") == options.steps else []
    left = {_key(row): row for row in recorded if row["seed"] <= options.seeds and row["fault"] in FAULTS}
    rows: list[dict[str, Any]] = []
    for seed in range(1, options.seeds + 1):
        for fault in FAULTS:
            known = {(r, what): Outcome.of(row) for (f, s, r, what), row in left.items() if (f, s) == (fault, seed)}
            for (rung, what), outcome in arms(fault, seed, options.steps, known):
                row = {"fault": fault, "seed": seed, "rung": rung, "what": what, **asdict(outcome)}
                earlier = left.pop(_key(row), None)
                if earlier is not None and outcome == known[rung, what]:
                    rows.append(earlier)
                    continue
                rows.append(row | {"processor": processor})
                print(f"seed {seed}  {fault:24} {rung:8} {what:6} {_said(row)}", flush=True)
                _write(file, head, [*rows, *left.values()])
            left = {key: row for key, row in left.items() if key[:2] != (fault, seed)}
    _write(file, head, rows)


def _key(row: Mapping[str, Any]) -> tuple[str, int, str, str]:
    return row["fault"], row["seed"], row["rung"], row["what"]


def _write(file: Path, head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: (row["seed"], list(FAULTS).index(row["fault"])))
    file.write_text(json.dumps({**head, "runs": rows}, indent=1) + "\n")
    file.with_suffix(".md").write_text(page(head, rows))


def _said(row: Mapping[str, Any]) -> str:
    acts = ", ".join(f"{n} x {rung}" for rung, n in acts_per_kind(row).items())
    gap = "" if row["gap"] is None else f"gap {row['gap']:+.3f}"
    return f"{row['verdict'] or 'no verdict':16} step {row['step']:4} {gap:12} {acts}"


if __name__ == "__main__":
    main()

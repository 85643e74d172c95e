"""The detector passes each step to every rule and keeps the first verdict; its state can be saved at any step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from altgrad.collapse.baseline import BaselineGap
from altgrad.collapse.course import LossCourse, cap_of
from altgrad.collapse.held_out_rules import Degraded, NeverLearned, NoContext
from altgrad.collapse.loss_rules import Diverged, GapToBaseline, NonFinite
from altgrad.collapse.rule import Observation, Rule
from altgrad.collapse.smoothing import pace_of
from altgrad.collapse.weight_rules import RankCollapse, Stalled
from altgrad.config.train_config import TrainConfig
from altgrad.metrics import RESCUE_ACTS
from altgrad.results import Verdict

RESCUES = 8  # acts of a run after which the rules count anew, as many as the ladder has by default
LATER_RULES = ("degraded", "no_context")  # which the states of earlier versions lack


class CollapseDetector:
    """Judges one run from its records, step by step.

    `vocabulary`: number of classes of the loss; its logarithm is the loss of a uniform model, in nats.  None if the
    unit of the loss is unknown: then a loss that is multiplied by a constant leads to the same verdicts.  The
    thresholds are the fields of the config of kind "judging".  `unigram_entropy`: loss in nats of a model that knows
    the frequencies of the tokens alone, see `altgrad.corpus.unigram`; None if unknown, or if the classes are no tokens.

    An act that makes the run another one (metric `rescue_acts`) restarts what the rules count: the step of the act,
    whose loss is from before it, and all earlier ones count no more.  Only the first `RESCUES` acts of a run do so, so
    that one that is rescued for ever is judged.  Example: a gap of 0.4 nats from step 41 on would be judged at step
    100.  A shift at step 61 gives the run until step 121.
    """

    def __init__(self, config: TrainConfig, vocabulary: int | None, unigram_entropy: float | None = None) -> None:
        self.verdict: Verdict | None = None
        self._step: int | None = None
        self._rescues = 0
        self._course = LossCourse(pace_of(config.max_steps), cap_of(vocabulary))
        # If several rules fire at the same step, the first in this order counts: specific explanations come first.
        self._rules: list[Rule] = [
            NonFinite(config),
            Diverged(config),
            Degraded(config),
            Stalled(config),
            RankCollapse(config),
            NeverLearned(config),
            NoContext(config, unigram_entropy),
            GapToBaseline(config),
        ]

    def update(self, record: Mapping[str, float]) -> Verdict | None:
        """Judge the record of a step: `step`, `loss`, and the other metrics that were measured.

        Returns None until a rule fires, and from that step on its verdict.  A step that is not later than the last one
        changes nothing: a restored run repeats steps.
        """
        step = int(record["step"])
        if self.verdict is not None or (self._step is not None and step <= self._step):
            return self.verdict
        self._step = step
        ticks = self._course.ticks(step)
        self._course.update(step, float(record["loss"]))
        seen = Observation(step, record, self._course, ticks)
        if self._begins_anew(record):
            for rule in self._rules:
                rule.judge(seen)  # what it remembers besides its count goes on
                rule.begin_anew(step)
            return None
        verdicts = (rule.judge(seen) for rule in self._rules)
        self.verdict = next((verdict for verdict in verdicts if verdict is not None), None)
        return self.verdict

    def _begins_anew(self, record: Mapping[str, float]) -> bool:
        """Whether an act at this step restarts the counts; it is counted."""
        before = self._rescues
        self._rescues += int(record.get(RESCUE_ACTS, 0))
        return before < min(self._rescues, RESCUES)

    def state_dict(self) -> dict[str, Any]:
        """The state on which later verdicts depend, as strict JSON without NaN and inf."""
        verdict = None if self.verdict is None else asdict(self.verdict)
        if verdict is not None:
            verdict |= {name: repr(verdict[name]) for name in ("value", "limit")}
        return {
            "step": self._step,
            "verdict": verdict,
            "rescues": self._rescues,
            "course": self._course.state_dict(),
            "rules": {rule.name: asdict(rule.memory) for rule in self._rules},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.  Raises KeyError or TypeError for a state of other rules."""
        verdict = state["verdict"]
        if verdict is not None:
            verdict = Verdict(**(verdict | {name: float(verdict[name]) for name in ("value", "limit")}))
        self.verdict = verdict
        self._step, self._rescues = state["step"], state.get("rescues", 0)  # earlier versions lack it
        self._course.load_state_dict(state["course"])
        for rule in self._rules:
            if rule.name in state["rules"] or rule.name not in LATER_RULES:
                rule.memory = type(rule.memory)(**state["rules"][rule.name])


def gap_to_baseline(config: TrainConfig, vocabulary: int | None, baseline: Mapping[int, float]) -> BaselineGap:
    """A `BaselineGap` for a run with this config; `vocabulary` as for `CollapseDetector`."""
    return BaselineGap(baseline, pace_of(config.max_steps), cap_of(vocabulary))


def judged(
    detector: CollapseDetector, gap: BaselineGap | None, records: Iterable[Mapping[str, float]]
) -> Verdict | None:
    """Give records, in order, to a detector, each with its gap if there is a baseline; the verdict, or None."""
    for record in records:
        behind = None if gap is None else gap.update(int(record["step"]), record["loss"])
        detector.update(record if behind is None else {**record, "gap_to_baseline": behind})
    return detector.verdict

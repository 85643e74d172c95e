"""Feeds each step to every rule, keeps the first verdict, and can be stored and restored at any step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from altgrad.collapse.baseline import BaselineGap
from altgrad.collapse.course import LossCourse
from altgrad.collapse.loss_rules import Diverged, GapToBaseline, NeverLearned, NonFinite
from altgrad.collapse.rule import Observation, Rule
from altgrad.collapse.smoothing import pace_of
from altgrad.collapse.weight_rules import RankCollapse, Stalled
from altgrad.config.train_config import TrainConfig
from altgrad.results import Verdict


class CollapseDetector:
    """Judges one run from its records, step by step.

    `vocabulary`: number of classes of the loss, whose logarithm is the loss of a model that knows nothing; None
    where the loss has no such ceiling and its unit is unknown: then every verdict is the same for a loss that is
    multiplied by a constant.  Thresholds are the collapse fields of the config.
    """

    def __init__(self, config: TrainConfig, vocabulary: int | None) -> None:
        self.verdict: Verdict | None = None
        self._step: int | None = None
        self._course = LossCourse(pace_of(config.max_steps), _cap(vocabulary))
        # Where several fire at one step the first counts: the specific explanation before the general one.
        self._rules: list[Rule] = [
            NonFinite(config),
            Diverged(config),
            Stalled(config),
            RankCollapse(config),
            NeverLearned(config),
            GapToBaseline(config),
        ]

    def update(self, record: Mapping[str, float]) -> Verdict | None:
        """Judge a step's record (`step`, `loss`, other metrics where measured).

        Returns the verdict, from the step that brought it onwards, or None.  A step at or before the last one
        seen, as a restored run repeats them, changes nothing.
        """
        step = int(record["step"])
        if self.verdict is not None or (self._step is not None and step <= self._step):
            return self.verdict
        self._step = step
        ticks = self._course.ticks(step)
        self._course.update(step, float(record["loss"]))
        seen = Observation(step, record, self._course, ticks)
        verdicts = (rule.judge(seen) for rule in self._rules)
        self.verdict = next((verdict for verdict in verdicts if verdict is not None), None)
        return self.verdict

    def state_dict(self) -> dict[str, Any]:
        """Everything later verdicts depend on, in strict JSON: no NaN, no inf."""
        verdict = None if self.verdict is None else asdict(self.verdict)
        if verdict is not None:
            verdict |= {name: repr(verdict[name]) for name in ("value", "limit")}
        return {
            "step": self._step,
            "verdict": verdict,
            "course": self._course.state_dict(),
            "rules": {rule.name: asdict(rule.memory) for rule in self._rules},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.  Raises KeyError or TypeError for another's state."""
        verdict = state["verdict"]
        if verdict is not None:
            verdict = Verdict(**(verdict | {name: float(verdict[name]) for name in ("value", "limit")}))
        self.verdict = verdict
        self._step = state["step"]
        self._course.load_state_dict(state["course"])
        for rule in self._rules:
            rule.memory = type(rule.memory)(**state["rules"][rule.name])


def gap_to_baseline(config: TrainConfig, vocabulary: int | None, baseline: Mapping[int, float]) -> BaselineGap:
    """What measures the gap of a run under this config; `vocabulary` as for `CollapseDetector`."""
    return BaselineGap(baseline, pace_of(config.max_steps), _cap(vocabulary))


def _cap(vocabulary: int | None) -> float | None:
    """The loss of a model that knows nothing; a single class has none to be uncertain about."""
    return None if vocabulary is None or vocabulary < 2 else math.log(vocabulary)

"""Feeds each step to every rule, keeps the first verdict, and can be stored and restored at any step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from altgrad.collapse.rules import (
    Diverged,
    GapToBaseline,
    NeverLearned,
    NonFinite,
    Observation,
    RankCollapse,
    Rule,
    Stalled,
)
from altgrad.collapse.smoothing import LossCourse
from altgrad.results import Verdict
from altgrad.training.config import TrainConfig

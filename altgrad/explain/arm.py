"""One arm of an explanation, a replay with something changed, and what it showed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from altgrad.explain.cells import Cells

ArmKind = Literal["control", "heal", "setting", "equal_cost", "complement"]
CONTROL, ALL, COMPLEMENT, RATE, BATCHES, SEED = "control", "all_operands", "complement", "rate", "batches", "seed"
MASTER, WRITE_BACK, SCALING, HISTORY = "master", "stochastic", "scaling", "history"


@dataclass(frozen=True)
class Arm:
    """One replay: `changes` are config fields that differ from the run's; `cells`: what it heals.

    name: unique, fit for a folder.  label: what is done, in words.  replay: 0, or the number of the other batches.
    """

    name: str
    label: str
    kind: ArmKind
    changes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    forget: tuple[str, ...] = ()
    cells: Cells = frozenset()
    replay: int = 0


@dataclass(frozen=True)
class ArmResult:
    """What an arm showed.  `prevented`: no verdict up to the last step of the replay; None: the arm failed.

    `repeats`: of a control without changes, whether it repeated its run bit for bit.  `error`: why it failed, or in
    which number a control first differs.  `loss`: its mean training loss of the ten steps up to `loss_step`; None if
    not measured.
    """

    prevented: bool | None
    repeats: bool | None = None
    error: str | None = None
    loss: float | None = None
    loss_step: int | None = None


Results = Mapping[Arm, ArmResult]


def by_name(results: Results) -> dict[str, ArmResult]:
    """Name of the arm -> its result."""
    return {arm.name: result for arm, result in results.items()}


def name_on(name: str, replay: int) -> str:
    """The name of an arm on other batches."""
    return f"{name}-{replay}" if replay else name


def name_of_control(replay: int) -> str:
    """The name of the arm in which nothing but the batches, from replay 1 on, is changed."""
    if not replay:
        return CONTROL
    return BATCHES if replay == 1 else f"{BATCHES}_{replay}"

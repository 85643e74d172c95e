"""The arms of an explanation, and which of them to run next, given the results so far.

1. `control`: the unchanged replay.  If it does not repeat the verdict bit for bit, nothing else is run.
2. `all_operands` (every operand in BF16), one arm for each other setting that may be to blame (scales that follow the
   current amax, a forgotten amax history, FP32 master weights, a stochastic write-back), and controls of equal cost:
   half the learning rate, other batches, other random numbers of rounding.  None of the latter removes rounding.
3. The bisection of `search`, if healing all operands prevents the collapse and master weights alone do not.  (Healing
   the weight operand of a run without masters also stores the weights in BF16.)
4. For what was found: `complement`, in which everything else is healed, and replays on other batches, each with its own
   control.
5. Where no rule judges the run on other batches: a replay with all operands healed on the same batches, see `harm`, and
   further batches, until the collapse has come back on some or `replays` are spent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from altgrad.config.cast import Cast
from altgrad.config.phases import phase_at
from altgrad.config.recipe import Recipe
from altgrad.config.train_config import TrainConfig
from altgrad.explain.arm import (
    ALL,
    COMPLEMENT,
    CONTROL,
    HISTORY,
    MASTER,
    RATE,
    SCALING,
    SEED,
    WRITE_BACK,
    Arm,
    ArmResult,
    Results,
    by_name,
    name_of_control,
    name_on,
)
from altgrad.explain.cells import Cell, Cells, describe, healing, rescaled, rounded_cells
from altgrad.explain.harm import judged
from altgrad.explain.search import Guilty, Needed, find_guilty, known_truth


@dataclass(frozen=True)
class Case:
    """A collapsed run that is to be explained: its config, its rounded layers, and the steps of every replay.

    start: step of the checkpoint; 0: from the beginning.  until: last step of a replay.  replays: how often what is
    found is tried, the first included.
    """

    config: TrainConfig
    layers: tuple[str, ...]
    start: int
    until: int
    replays: int = 3

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells that the run rounds in these steps, see `rounded_cells`."""
        return rounded_cells(self.recipes, self.layers)

    @cached_property
    def recipes(self) -> list[Recipe]:
        """The recipe in each phase of the schedule to which steps of a replay belong."""
        first, last = (phase_at(self.config.phase_starts, step) for step in (self.start + 1, self.until))
        return [self.config.in_phase(number) for number in range(first, last + 1)]

    @cached_property
    def everything(self) -> Cells:
        """All of `cells` as a set."""
        return frozenset(self.cells)

    @property
    def other_orders(self) -> range:
        """The replays on other batches: `replays` less the one on the run's own batches, but at least one."""
        return range(1, max(2, self.replays))

    def other_batches(self, replay: int) -> dict[str, Any]:
        """The change that gives a replay batches that no other replay sees in these steps; none for replay 0.

        From replay 2 on also other random numbers of rounding, if the run draws any.
        """
        changes = {"skip_batches": self.config.skip_batches + replay * self.until} if replay else {}
        return changes | (self._other_numbers(replay) if replay > 1 and self.draws else {})

    def _other_numbers(self, by: int) -> dict[str, Any]:
        seed = self.config.seed if self.config.rounding_seed is None else self.config.rounding_seed
        return {"rounding_seed": seed + by}

    @cached_property
    def draws(self) -> bool:
        """Whether the run rounds with random numbers: casts, rotations, moments or the write-back."""
        config = self.config
        moments = (config.first_moment or {}, config.second_moment or {})
        stored = not config.master_weights and "stochastic" in config.update_rounding
        drawn = [cast.rounding for cast in self._scaled_casts] + [moment.get("rounding") for moment in moments]
        return stored or "stochastic" in drawn or any(cast.redraws for cast in self._scaled_casts)

    @cached_property
    def _scaled_casts(self) -> list[Cast]:
        found = [cast for one in self.recipes for layer in self.layers for cast in one.casts_at(layer).values()]
        return [cast for cast in found if cast.number_format.scaled]

    def control(self, replay: int = 0) -> Arm:
        """The arm in which nothing is changed but, from replay 1 on, the batches."""
        if not replay:
            return Arm(CONTROL, "unchanged replay", "control")
        return Arm(
            name_of_control(replay),
            _on_others("unchanged", replay),
            "equal_cost",
            self.other_batches(replay),
            replay=replay,
        )

    def heal(self, cells: Cells, replay: int = 0) -> Arm:
        """The arm in which these cells are healed."""
        every, what = self.everything, describe(cells, self.cells)
        name = ALL if cells == every else f"heal-{hashlib.sha256(repr(sorted(cells)).encode()).hexdigest()[:8]}"
        changes = healing(self.config, cells, self.layers) | self.other_batches(replay)
        label = _on_others(f"{what} in BF16", replay)
        return Arm(name_on(name, replay), label, "heal", changes, cells=cells, replay=replay)

    def complement(self, cells: Cells) -> Arm:
        """The arm in which everything but these cells is healed."""
        rest = self.everything - cells
        label = f"everything but {describe(cells, self.cells)} in BF16"
        return Arm(COMPLEMENT, label, "complement", healing(self.config, rest, self.layers), cells=rest)

    @cached_property
    def settings(self) -> list[Arm]:
        """An arm for each setting besides the operands' formats that may be to blame, and controls of equal cost."""
        config, found, casts = self.config, [], self._scaled_casts
        if not config.master_weights:
            found.append(Arm(MASTER, "FP32 master weights", "setting", {"master_weights": True}))
            if config.update_rounding == "nearest":
                changes = {"update_rounding": "stochastic"}
                found.append(Arm(WRITE_BACK, "stochastic write-back of the weights", "setting", changes))
        if any(cast.scaling != "dynamic" for cast in casts):
            changes = rescaled(config, self.everything, self.layers)
            found.append(Arm(SCALING, "all scales from the current amax", "setting", changes))
        if self.start and any(cast.scaling == "delayed" for cast in casts):
            found.append(Arm(HISTORY, "amax history forgotten", "setting", forget=("histories",)))
        half = {"learning_rate": config.learning_rate / 2}
        found += [Arm(RATE, "half the learning rate", "equal_cost", half), self.control(1)]
        if self.draws:
            found.append(Arm(SEED, "other random numbers of rounding", "equal_cost", self._other_numbers(1)))
        return found


def searched(results: Results) -> dict[Cells, bool]:
    """Healed cells -> whether that prevented the collapse, for the arms of the search."""
    return {
        arm.cells: result.prevented
        for arm, result in results.items()
        if arm.kind in ("heal", "complement") and not arm.replay and result.prevented is not None
    }


def found_guilty(case: Case, results: Results) -> Guilty | None:
    """The result of the search; None as long as it is not over, or is not made."""
    try:
        return find_guilty(case.cells, known_truth(searched(results)))
    except Needed:
        return None


def next_arms(case: Case, results: Results) -> list[Arm]:
    """The arms that can run now, the most important first; empty once the explanation is complete.

    An arm that has failed is not run again, and a search that needs it ends there.
    """
    results = judged(results)
    known = by_name(results)
    if CONTROL not in known:
        return [case.control()]
    if not known[CONTROL].repeats:
        return []
    wanted = [case.heal(case.everything)] if case.cells else []
    wanted += case.settings
    master = known.get(MASTER)
    if case.config.master_weights or (master is not None and not master.prevented):
        try:
            guilty = find_guilty(case.cells, known_truth(searched(results)))
        except Needed as needed:
            wanted.insert(1, case.heal(needed.cells))
        else:
            wanted += _confirming(case, guilty, known)
    wanted += _on_more_batches(case, known)
    return [arm for arm in dict.fromkeys(wanted) if arm.name not in known]


def _confirming(case: Case, guilty: Guilty, known: Mapping[str, ArmResult]) -> list[Arm]:
    """The complement of what was found, and its replays on the other batches on which the collapse comes back."""
    if not guilty.cells:
        return []
    arms = [case.complement(guilty.cells)] if guilty.cells != case.everything else []
    for replay in range(1, case.replays):
        control = known.get(name_of_control(replay))
        if control is None:
            arms.append(case.control(replay))
        elif control.prevented is False:  # where it does not come back anyway, a replay shows nothing
            arms.append(case.heal(guilty.cells, replay))
    return arms


def _on_more_batches(case: Case, known: Mapping[str, ArmResult]) -> list[Arm]:
    """What tells whether the collapse comes back on the other batches on which no rule judged the unchanged replay.

    That is a healed replay on the same batches, and, as long as it came back on none, another series of batches.
    """
    names = {replay: name_of_control(replay) for replay in case.other_orders}
    tried = [(replay, known[name]) for replay, name in names.items() if name in known]
    healed = known.get(ALL)
    can_compare = healed is not None and healed.prevented
    arms = [case.heal(case.everything, replay) for replay, control in tried if control.prevented and can_compare]
    more = len(tried) < len(names) and all(control.prevented for _, control in tried)
    return [*arms, case.control(len(tried) + 1)] if tried and more else arms


def _on_others(what: str, replay: int) -> str:
    return what if not replay else f"{what}, on other batches ({replay})"

"""What kind a config field is stands on the field itself; the lists that were once kept by hand are the oracle."""

import pytest
from pydantic import Field

from altgrad.compare.pairing import MEASURING, NUMERICS, OPTIMISATION, RESCUE, RUNNING
from altgrad.config.field_traits import Declared, field
from altgrad.config.recipe import Recipe
from altgrad.config.train_config import TrainConfig

# What pairing did with each field when the lists were written by hand; a field of a later version may be added.
BY_HAND = {
    NUMERICS: "format weight_format activation_format gradient_format layer_formats rounding overflow scaling "
    "scale_granularity scale_power_of_two amax_history amax_factor master_weights update_rounding gemm_dtype "
    "native_fp8",
    RESCUE: "enable_partition_clipping partition_clip_base partition_clip_overflow_threshold enable_emergency_shift "
    "emergency_shift_nan_patience emergency_shift_stall_threshold emergency_shift_stall_windows "
    "emergency_shift_displacement",
    MEASURING: "eval_interval diagnostic_interval log_stiffness log_grid_alignment log_ulp use_shadow stop_on_collapse "
    "non_finite_patience diverged_margin diverged_patience never_learned_fraction never_learned_margin "
    "stalled_displacement stalled_slope stalled_windows rank_collapse_ratio gap_limit gap_patience",
    RUNNING: "device threads compile cuda_graphs checkpoint_interval default_sweep",
    OPTIMISATION: "learning_rate schedule min_learning_rate_ratio warmup_steps weight_decay beta1 beta2 adam_epsilon "
    "gradient_clip",
}
IN_GRAPH = (
    "model n_layer n_head n_embd block_size tied_head batch_size layer_formats rounding scaling scale_granularity "
    "scale_power_of_two amax_factor gemm_dtype native_fp8 compile cuda_graphs"
)


def test_the_kinds_are_those_that_pairing_kept_by_hand() -> None:
    for derived, by_hand in BY_HAND.items():
        assert set(by_hand.split()) <= derived
    placed = [name for names in BY_HAND for name in names]
    assert len(placed) == len(set(placed))
    assert TrainConfig.model_fields.keys() - set(placed) == {
        *("seed", "model", "n_layer", "n_head", "n_embd", "block_size", "tied_head", "data", "token_dtype"),
        *("validation_fraction", "batch_size", "max_steps", "eval_batches", "skip_batches", "branch_from"),
    }
    assert set(IN_GRAPH.split()) <= TrainConfig.where(lambda field: field.in_graph)


@pytest.mark.parametrize("base", [Declared, Recipe, TrainConfig])
def test_a_field_without_a_kind_cannot_be_declared(base: type[Declared]) -> None:
    with pytest.raises(TypeError, match=r"Own\.knob: declare it with `field`, which takes its kind: one of numeric, "):

        class Own(base):  # type: ignore[valid-type, misc]
            knob: int = Field(3, description="turns")


def test_the_traits_of_a_field_are_those_it_was_declared_with() -> None:
    class Own(Declared):
        switch: bool = field(False, "rescue", "on or off")
        limit: float = field(1.0, "rescue", "how far", only_with=("switch", True), ge=0)
        rate: float = field(0.1, "optimisation", "how fast")
        width: int = field(8, "model", "how wide", in_graph=True)

    assert Own.of_kind("rescue") == {"switch", "limit"} and Own.of_kind("model", "optimisation") == {"rate", "width"}
    assert Own.where(lambda field: field.in_graph) == {"width"}
    assert Own.where(lambda field: not field.timed) == {"rate"}
    assert Own().without_effect() == {"limit"} and Own(switch=True).without_effect() == frozenset()
    with pytest.raises(ValueError):
        Own(limit=-1.0)


def test_every_field_has_a_meaning_and_names_only_fields_that_there_are() -> None:
    for name, traits in TrainConfig.traits().items():
        assert TrainConfig.model_fields[name].description, name
        if traits.only_with is not None:
            other, value = traits.only_with
            TrainConfig(**{other: value})

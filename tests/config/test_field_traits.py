"""What kind a config field is stands on the field itself; the lists that were once kept by hand are the oracle."""

from typing import Any

import pytest
from pydantic import Field

from altgrad.compare.pairing import MEASURING, NUMERICS, OPTIMISATION, RESCUE, RUNNING
from altgrad.config.fields.field_traits import Declared, field
from altgrad.config.recipe import Recipe
from altgrad.config.train_config import TrainConfig

# By hand, for the fields of this version; a field of a later one may be left out.
KINDS = {
    "numeric": "recipe format weight_format activation_format gradient_format layer_formats rounding overflow scaling "
    "scale_granularity block_axis scale_power_of_two amax_history amax_factor gemms high_first_blocks high_last_blocks "
    "master_weights update_rounding first_moment second_moment gemm_dtype native_fp8",
    "seed": "seed",
    "model": "model n_layer n_head n_embd block_size tied_head",
    "data": "data token_dtype validation_fraction",
    "workload": "batch_size max_steps eval_batches",
    "optimisation": "learning_rate schedule min_learning_rate_ratio warmup_steps weight_decay beta1 beta2 adam_epsilon "
    "autocast gradient_clip",
    "measuring": "eval_interval diagnostic_interval log_stiffness log_grid_alignment log_ulp use_shadow",
    "rescue": "enable_partition_clipping partition_clip_base partition_clip_overflow_threshold enable_emergency_shift "
    "emergency_shift_nan_patience emergency_shift_stall_threshold emergency_shift_stall_windows "
    "emergency_shift_displacement",
    "judging": "stop_on_collapse non_finite_patience diverged_margin diverged_patience never_learned_fraction "
    "never_learned_margin no_context_fraction stalled_displacement stalled_slope stalled_windows "
    "rank_collapse_ratio gap_limit gap_patience",
    "running": "device threads compile cuda_graphs checkpoint_interval",
    "planning": "default_sweep",
}
PAIRED = {
    NUMERICS: ["numeric"],
    RESCUE: ["rescue"],
    MEASURING: ["measuring", "judging"],
    RUNNING: ["running", "planning"],
    OPTIMISATION: ["optimisation"],
}
IN_GRAPH = (
    "model n_layer n_head n_embd block_size tied_head batch_size layer_formats rounding scaling scale_granularity "
    "scale_power_of_two amax_factor gemm_dtype native_fp8 compile cuda_graphs block_axis gemms high_first_blocks "
    "high_last_blocks autocast"
)
TIMELESS = (  # besides the seed, the optimisation and the rules; intervals are counted, not timed
    "recipe format weight_format activation_format gradient_format overflow eval_interval diagnostic_interval "
    "checkpoint_interval"
)
NOTHING_TO_BF16 = (
    "format weight_format activation_format gradient_format scaling scale_granularity block_axis amax_history "
    "high_first_blocks high_last_blocks update_rounding gemm_dtype"
)
NEEDS = {
    ("enable_partition_clipping", True): "partition_clip_base partition_clip_overflow_threshold",
    ("enable_emergency_shift", True): "emergency_shift_nan_patience emergency_shift_stall_threshold "
    "emergency_shift_stall_windows emergency_shift_displacement",
    ("master_weights", False): "update_rounding",
}
KNOWN = frozenset(name for names in KINDS.values() for name in names.split())


def test_the_kind_of_every_field_is_that_of_the_list_by_hand() -> None:
    traits = TrainConfig.traits()
    assert {name: traits[name].kind for name in KNOWN} == {
        name: kind for kind, names in KINDS.items() for name in names.split()
    }
    for derived, kinds in PAIRED.items():
        assert derived & KNOWN == {name for kind in kinds for name in KINDS[kind].split()}


def test_what_else_is_said_of_every_field_is_that_of_the_list_by_hand() -> None:
    traits = {name: traits for name, traits in TrainConfig.traits().items() if name in KNOWN}
    assert {name for name, field in traits.items() if field.in_graph} == set(IN_GRAPH.split())
    timeless = f"{KINDS['seed']} {KINDS['optimisation']} {KINDS['judging']} {KINDS['planning']} {TIMELESS}".split()
    assert {name for name, field in traits.items() if not field.timed} == set(timeless) - {"autocast"}
    assert {name for name, field in traits.items() if not field.moves_baseline} == set(NOTHING_TO_BF16.split())
    needs = {name: need for need, names in NEEDS.items() for name in names.split()}
    assert {name: field.only_with for name, field in traits.items() if field.only_with is not None} == needs


@pytest.mark.parametrize("extra", [None, {"unit": "nats"}])
@pytest.mark.parametrize("base", [Declared, Recipe, TrainConfig])
def test_a_field_without_a_kind_cannot_be_declared(base: type[Declared], extra: Any) -> None:
    with pytest.raises(TypeError, match=r"Own\.knob: declare it with `field`, which takes its kind: one of numeric, "):

        class Own(base):  # type: ignore[valid-type, misc]
            knob: int = Field(3, description="turns", json_schema_extra=extra)


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

"""The published recipes: each file against its paper, by name in a config, and what contradicts is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from altgrad.compare.pairing import Settings
from altgrad.config import published as module
from altgrad.config.cast import Cast
from altgrad.config.operands import ALL_OPERANDS, FLAT_FIELDS, Operand
from altgrad.config.published import Published, in_format, published, published_names, read_published
from altgrad.config.recipe import Recipe, recipe_defaults
from altgrad.config.train_config import ConfigError, TrainConfig, load_config, make_config
from altgrad.text.yaml_text import to_yaml

NAMES = [
    "bf16_sr", "coat", "deepseek_v3", "fog", "fp4_all_the_way", "fp8_eco", "fp8_lm_o2", "hfp8", "int8_training",
    "mxfp4", "mxfp4_rht_sr", "mxfp6", "mxfp8", "mxfp8_floor", "mxfp8_fwd_nvfp4_bwd", "mxfp8_wgrad_hp", "mxint8",
    "nvfp4", "nvfp4_late_bf16", "quartet", "switchback", "te_blockwise", "te_current", "te_delayed", "tetrajet_v2",
    "torchao_rowwise", "torchao_rowwise_gw_hp", "torchao_tensorwise",
]  # fmt: skip

# Written from the papers and the named configurations, not from the files: format, values per scale along what the GEMM
# contracts (a weight's second number is the contracted one), scale, rounding, rotation.
HIGH = "BF16"
EXPECTED = {
    # DelayedScaling(): HYBRID, margin 0, amax_history_len 1024, "max"; scale = fp8_max / amax, a real number
    "te_delayed": {
        "fprop.activation": ("E4M3", "tensor", "delayed 1024 FP32", "nearest", 0),
        "fprop.weight": ("E4M3", "tensor", "delayed 1024 FP32", "nearest", 0),
        "dgrad.gradient": ("E5M2", "tensor", "delayed 1024 FP32", "nearest", 0),
        "dgrad.weight": ("E4M3", "tensor", "delayed 1024 FP32", "nearest", 0),
        "wgrad.gradient": ("E5M2", "tensor", "delayed 1024 FP32", "nearest", 0),
        "wgrad.activation": ("E4M3", "tensor", "delayed 1024 FP32", "nearest", 0),
    },
    # section 3.3.2: 1x128 tiles of activations, 128x128 blocks of weights, E4M3 on all tensors, online scales
    "deepseek_v3": {
        "fprop.activation": ("E4M3", "1x128", "dynamic FP32", "nearest", 0),
        "fprop.weight": ("E4M3", "128x128", "dynamic FP32", "nearest", 0),
        "dgrad.gradient": ("E4M3", "1x128", "dynamic FP32", "nearest", 0),
        "dgrad.weight": ("E4M3", "128x128", "dynamic FP32", "nearest", 0),
        "wgrad.gradient": ("E4M3", "1x128", "dynamic FP32", "nearest", 0),
        "wgrad.activation": ("E4M3", "1x128", "dynamic FP32", "nearest", 0),
    },
    # E4M3 for weights, activations and gradients, blocks of 32, the scale rounded up to a power of two
    "mxfp8": {
        operand: ("E4M3", "1x32", "dynamic ceil E8M0", "nearest", 0)
        for operand in (
            "fprop.activation", "fprop.weight", "dgrad.gradient", "dgrad.weight", "wgrad.gradient", "wgrad.activation",
        )
    },
    # section 4: RHT of 16x16 on wgrad's inputs, 16x16 blocks of weights, stochastic rounding of gradients
    "nvfp4": {
        "fprop.activation": ("E2M1", "1x16", "dynamic E4M3", "nearest", 0),
        "fprop.weight": ("E2M1", "16x16", "dynamic E4M3", "nearest", 0),
        "dgrad.gradient": ("E2M1", "1x16", "dynamic E4M3", "stochastic", 0),
        "dgrad.weight": ("E2M1", "16x16", "dynamic E4M3", "nearest", 0),
        "wgrad.gradient": ("E2M1", "1x16", "dynamic E4M3", "stochastic", 16),
        "wgrad.activation": ("E2M1", "1x16", "dynamic E4M3", "nearest", 16),
    },
    # axiswise input and weight; axiswise gradient times tensorwise weight; wgrad in high precision; powers of two
    "torchao_rowwise_gw_hp": {
        "fprop.activation": ("E4M3", "row", "dynamic ceil E8M0", "nearest", 0),
        "fprop.weight": ("E4M3", "row", "dynamic ceil E8M0", "nearest", 0),
        "dgrad.gradient": ("E4M3", "row", "dynamic ceil E8M0", "nearest", 0),
        "dgrad.weight": ("E4M3", "tensor", "dynamic ceil E8M0", "nearest", 0),
        "wgrad.gradient": HIGH,
        "wgrad.activation": HIGH,
    },
    # algorithm 1: row-wise X and dY, tensor-wise W, scales amax / 127; X^T dY in 16 bits
    "switchback": {
        "fprop.activation": ("E0M7", "row", "dynamic FP32", "nearest", 0),
        "fprop.weight": ("E0M7", "tensor", "dynamic FP32", "nearest", 0),
        "dgrad.gradient": ("E0M7", "row", "dynamic FP32", "nearest", 0),
        "dgrad.weight": ("E0M7", "tensor", "dynamic FP32", "nearest", 0),
        "wgrad.gradient": HIGH,
        "wgrad.activation": HIGH,
    },
}  # fmt: skip
EXPECTED["fog"] = EXPECTED["te_delayed"]  # delayed scaling of all GEMMs of a block, with DelayedScaling()'s defaults
LAYERS_HIGH = {name: {"*lm_head": "BF16"} for name in ("deepseek_v3", "fog", "nvfp4")}

# every flat field that fills casts, with values that some recipe does not have
OVERRIDES: dict[str, tuple[Any, ...]] = {
    "format": ("E3M4", "E2M1", "BF16"),
    "weight_format": ("E3M4", "BF16"),
    "activation_format": ("E3M4", "BF16"),
    "gradient_format": ("E5M2", "BF16"),
    "rounding": ("nearest", "stochastic", "toward_zero"),
    "overflow": ("saturate", "inf"),
    "scaling": ("none", "dynamic", "delayed"),
    "scale_granularity": ("tensor", "row", "1x16", "128x128"),
    "block_axis": ("contraction", "last"),
    "scale_power_of_two": (True, False),
    "amax_history": (3,),
    "amax_factor": (0.5,),
}
PAIRS = [(field, value) for field, values in OVERRIDES.items() for value in values]


def described(cast: Cast) -> Any:
    if cast.format == "BF16":
        return HIGH
    scale = [cast.scaling, *([str(cast.amax_history)] if cast.scaling == "delayed" else [])]
    scale += [cast.scale_format] if cast.scale_rule == "real" else [cast.scale_rule, cast.scale_format]
    assert cast.axis == "contraction" and cast.amax_factor == 1
    return cast.format, cast.block, " ".join(scale), cast.rounding, cast.hadamard


# the files


def test_the_recipes_are_those_that_were_promised() -> None:
    assert list(published_names()) == NAMES


@pytest.mark.parametrize("name", EXPECTED)
def test_the_six_casts_are_those_of_the_paper(name: str) -> None:
    recipe = Recipe(recipe=name)
    assert {str(operand): described(cast) for operand, cast in recipe.casts_at().items()} == EXPECTED[name]
    assert recipe.layer_formats == LAYERS_HIGH.get(name, {}) and recipe.master_weights
    assert recipe.attention_gemms == (name == "fog")
    assert recipe.high_last_blocks == (0.15 if name == "nvfp4" else 0) and recipe.high_first_blocks == 0


def effect(fields: Mapping[str, Any]) -> Any:
    """The casts of a recipe with these fields, and the fields that casts do not show; None if it is refused."""
    try:
        recipe = Recipe(**fields)
    except ValueError:
        return None
    return recipe.casts_at(), recipe.model_dump(include=recipe_defaults().keys() - {"gemms", *FLAT_FIELDS})


def leaves(node: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        yield from leaves(value, (*above, key)) if isinstance(value, Mapping) and value else [(*above, key)]


def without(node: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    head, *rest = path
    kept = {key: value for key, value in node.items() if key != head}
    return kept | ({head: without(node[head], tuple(rest))} if rest else {})


def idle_fields(recipe: Published) -> list[str]:
    """The fields without which a recipe would be the same, such as `gemms.fprop.block`."""
    whole = effect(recipe.fields)
    return [".".join(path) for path in leaves(recipe.fields) if effect(without(recipe.fields, path)) == whole]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_makes_a_recipe_of_which_no_field_is_idle(name: str) -> None:
    found = published(name)
    assert Recipe(recipe=name).model_dump(exclude={"recipe"}) == Recipe(**found.fields).model_dump(exclude={"recipe"})
    assert not idle_fields(found)
    assert any(str(year) in found.source for year in range(2019, 2027))
    assert all(sentence.endswith(".") for sentence in (found.summary, *found.exact, *found.differs))


def test_idle_fields_are_found() -> None:
    like = published("mxfp8").model_dump()
    like["fields"] |= {
        "rounding": "nearest",
        "gemms": {"fprop": {"weight": {"block": "1x32", "rounding": "stochastic"}}},
    }
    assert idle_fields(Published(**like)) == ["rounding", "gemms.fprop.weight.block"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sauce": "a paper"}, "did you mean 'source'?"),
        ({"source": ""}, "source"),
        ({"differs": []}, "differs"),
        ({"fields": {}}, "fields"),
        ({"exact": "one"}, "exact"),
        ({"summary": None}, "summary"),
    ],
    ids=str,
)
def test_a_file_that_does_not_say_what_it_must_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(to_yaml(published("nvfp4").model_dump() | change))
    with pytest.raises(ValueError, match=r"mine\.yaml") as refused:
        read_published(file)
    assert said in str(refused.value) and len(str(refused.value).splitlines()) == 1


# in a config


@pytest.mark.parametrize("name", NAMES)
def test_a_config_written_out_is_read_back_the_same_and_alone_repeats_the_run(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(recipe=name, max_steps=7, gemms={"wgrad": {"gradient": {"rounding": "toward_zero"}}})
    assert config.casts_at()[Operand("wgrad", "gradient")].rounding == "toward_zero"
    written = config.model_dump()
    assert written["recipe"] == name
    (tmp_path / "c.yaml").write_text(to_yaml(written))
    assert make_config(written, "run.json") == config == load_config(tmp_path / "c.yaml")
    other = published("switchback" if name == "mxfp4" else "mxfp4")
    monkeypatch.setattr(module, "published", lambda _: other)  # the file has become another one
    assert TrainConfig(**written).casts_at() == config.casts_at()


def test_explicit_fields_override_and_of_gemms_single_leaves() -> None:
    recipe = Recipe(recipe="nvfp4", high_last_blocks=0, gemms={"wgrad": {"gradient": {"rounding": "nearest"}}})
    changed = Operand("wgrad", "gradient")
    plain = Recipe(recipe="nvfp4").casts_at()
    assert recipe.casts_at() == plain | {changed: plain[changed].model_copy(update={"rounding": "nearest"})}
    assert recipe.high_last_blocks == 0 and Recipe(recipe="nvfp4", layer_formats={}).layer_formats == {}


def test_another_recipe_replaces_the_first_and_leaves_what_was_set_beside_it() -> None:
    config = TrainConfig(recipe="nvfp4", seed=3, max_steps=9, gemms={"fprop": {"activation": {"format": "E2M3"}}})
    own = {"seed": 3, "max_steps": 9, "gemms": {"fprop": {"activation": {"format": "E2M3"}}}}
    for name in (*NAMES, None):
        assert config.altered(recipe=name) == TrainConfig(recipe=name, **own)
    assert config.altered(max_steps=10).casts_at() == config.casts_at()
    changed = {"dgrad": {"weight": {"block": "1x16"}}}
    assert TrainConfig(recipe="nvfp4").altered(gemms=changed) == TrainConfig(recipe="nvfp4", gemms=changed)


@pytest.mark.parametrize("name", ["mxfp9", "MXFP8", "nvfp4_", "", "../recipes/mxfp8"])
def test_an_unknown_recipe_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_config({"recipe": name}, "x.yaml")
    text = str(refused.value)
    assert (
        len(text.splitlines()) == 1 and text.startswith("x.yaml: recipe=") and f"no published recipe {name!r}" in text
    )
    assert "did you mean 'mxfp8'" in text or "nvfp4" in text or "altgrad recipes" in text


@pytest.mark.parametrize(("field", "value"), PAIRS, ids=[f"{field}={value}" for field, value in PAIRS])
@pytest.mark.parametrize("name", NAMES)
def test_a_flat_field_beside_a_recipe_changes_a_cast_or_is_refused(name: str, field: str, value: Any) -> None:
    before = Recipe(recipe=name)
    if getattr(before, field) == value:
        assert Recipe(recipe=name, **{field: value}) == before
        return
    try:
        after = Recipe(recipe=name, **{field: value})
    except ConfigError as error:
        text = str(error)
        assert len(text.splitlines()) == 1 and len(text) < 400
        assert any(word in text for word in (field, *Cast.model_fields, "layer_formats"))
        return
    assert getattr(after, field) == value
    site, of_site, _ = field.rpartition("_format")
    asked = {"scale_granularity": "block", "block_axis": "axis"}.get(field, "format" if of_site else field)
    casts = [cast for operand, cast in before.casts_at().items() if operand.site == site or not of_site]
    assert after.casts_at() != before.casts_at() or {getattr(cast, asked) for cast in casts} == {value}


def test_contradictions_say_whose_the_other_field_is() -> None:
    with pytest.raises(ConfigError, match=r"^scale_granularity='1x32' with scaling='delayed'.*of recipe='mxfp8'\)$"):
        TrainConfig(recipe="mxfp8", scaling="delayed")
    idle = "^scale_granularity='1x32' changes nothing: gemms of recipe='torchao_rowwise' sets block"
    with pytest.raises(ConfigError, match=idle):
        TrainConfig(recipe="torchao_rowwise", scale_granularity="1x32")
    with pytest.raises(ConfigError, match=idle):
        TrainConfig(recipe="torchao_rowwise").altered(scale_granularity="1x32")
    every = {gemm: {"rounding": "stochastic"} for gemm in ("fprop", "dgrad", "wgrad")}
    with pytest.raises(ConfigError, match=r"^rounding='toward_zero' changes nothing: gemms sets rounding"):
        TrainConfig(rounding="toward_zero", gemms=every)
    del every["dgrad"]
    assert TrainConfig(rounding="toward_zero", gemms=every)  # of dgrad it decides


# in another format, and in words


@pytest.mark.parametrize(("name", "fmt"), list(itertools.product(NAMES, ["E0M7", "E2M5"])))
def test_another_element_format_reaches_every_rounded_operand_and_no_other(name: str, fmt: str) -> None:
    before = Recipe(recipe=name)
    casts = before.casts_at()
    if name == "bf16_sr":
        with pytest.raises(ValueError, match="rounds no operand"):
            in_format(before, fmt)
        return
    after = Recipe(**(before.model_dump() | in_format(before, fmt)))
    for operand in ALL_OPERANDS:
        cast = casts[operand]
        expected = cast if cast.format == "BF16" else cast.model_copy(update={"format": fmt})
        assert after.casts_at()[operand] == expected
    assert after.layer_formats == before.layer_formats and after.recipe == name


def test_a_run_is_called_by_its_recipe_and_what_is_otherwise() -> None:
    def variant(**fields: Any) -> str:
        return Settings(TrainConfig(**fields).model_dump(), "none").variant

    assert variant(recipe="nvfp4") == "nvfp4"
    assert variant(recipe="te_delayed", amax_history=16) == "te_delayed, amax_history 16"
    gemms = {"wgrad": {"gradient": {"rounding": "nearest"}}}
    assert variant(recipe="nvfp4", gemms=gemms) == 'nvfp4, gemms {"wgrad": {"gradient": {"rounding": "nearest"}}}'
    rescued = TrainConfig(recipe="te_delayed", scaling="dynamic").model_dump()
    assert Settings(rescued, "scaling").variant == "te_delayed"  # the intervention's name says what was replaced
    phases = [{"from_step": 300, "format": "BF16"}, {"from_share": 0.9, "gemms": {"wgrad": {"format": "FP32"}}}]
    said = 'from step 300 format BF16; from 90% of the run gemms {"wgrad": {"format": "FP32"}}'
    assert variant(format="E4M3", phases=phases) == said
    assert variant(format="E4M3", high_last_blocks=2.0) == "high_last_blocks 2"
    assert all(not Settings(TrainConfig(recipe=name).model_dump(), "none").is_baseline for name in NAMES)
    pairs = {Settings(TrainConfig(recipe=name).model_dump(), "none").pair for name in (*NAMES, None)}
    assert len(pairs) == 1  # one BF16 run serves them all


def test_a_config_written_out_before_there_were_schedules_has_none() -> None:
    written = TrainConfig(recipe="fp4_all_the_way", phases=[]).model_dump()
    del written["phases"]
    assert make_config(written, "run.json").phases == [] != TrainConfig(recipe="fp4_all_the_way").phases


def test_another_element_format_reaches_the_phases_too() -> None:
    before = Recipe(phases=[{"from_share": 0.1, "format": "E4M3", "gemms": {"wgrad": {"format": "BF16"}}}])
    assert in_format(before, "E2M5")["phases"] == [
        {"from_share": 0.1, "format": "E2M5", "gemms": {"wgrad": {"format": "BF16"}}}
    ]


def test_a_run_of_a_recipe_that_is_no_longer_published_is_still_called_by_it() -> None:
    written = TrainConfig(recipe="mxfp8").model_dump() | {"recipe": "forgotten"}
    assert Settings(written, "none").variant.startswith("forgotten, ")

"""The config: the promised fields and defaults, numbers as people write them, and errors that say what to do."""

from pathlib import Path

import pytest
import yaml

from altgrad.config.interventions import INTERVENTIONS, implied_fields, intervention_fields
from altgrad.config.recipe import Recipe
from altgrad.config.train_config import (
    ConfigError,
    TrainConfig,
    load_config,
    make_config,
)
from altgrad.text.yaml_text import parse_value

CONFIGS = Path(__file__).parents[2] / "configs"
PROMISED = {
    "enable_partition_clipping": False,
    "partition_clip_base": 1.0,
    "enable_emergency_shift": False,
    "emergency_shift_nan_patience": 3,
    "emergency_shift_stall_threshold": 0.5,
    "diagnostic_interval": 50,
    "log_stiffness": False,
    "log_grid_alignment": False,
    "log_ulp": False,
}


def test_the_promised_fields_have_the_promised_defaults():
    defaults = TrainConfig().model_dump()
    assert {name: defaults[name] for name in PROMISED} == PROMISED
    assert {"max_steps", "batch_size", "learning_rate", "use_shadow", "seed", "format"} <= set(defaults)


@pytest.mark.parametrize(("text", "value"), [("6e-4", 6e-4), ("1e3", 1000.0), ("-2.5E+1", -25.0), ("6.0e-4", 6e-4)])
def test_numbers_with_an_exponent_are_numbers(tmp_path, text, value):
    assert parse_value(text) == value
    if value > 0:
        (tmp_path / "c.yaml").write_text(f"learning_rate: {text}\n")
        assert load_config(tmp_path / "c.yaml").learning_rate == value


def test_a_config_never_changes():
    config = TrainConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.format = "E5M2"
    assert config.altered(format="E5M2").format == "E5M2" and config.format == "BF16"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"formt": "E4M3"}, ["x.yaml: formt: unknown field", "did you mean 'format'?"]),
        ({"diagnostics_interval": 5}, ["did you mean 'diagnostic_interval'?"]),
        ({"format": "E9M9"}, ["'E9M9'"]),
        ({"format": "float8"}, ["'float8'", "E4M3", "E<e>M<m>"]),
        ({"layer_formats": {"lm_head": "E4M4M"}}, ["'E4M4M'"]),
        ({"batch_size": 0}, ["x.yaml: batch_size=0: expected a number at least 1"]),
        ({"learning_rate": "fast"}, ["learning_rate='fast'", "number"]),
        ({"learning_rate": float("nan")}, ["learning_rate=nan: expected a finite number"]),
        ({"learning_rate": 0}, ["learning_rate=0.0: expected a number above 0"]),
        ({"validation_fraction": 1.0}, ["validation_fraction=1.0: expected a number below 1"]),
        ({"stalled_displacement": 1.5}, ["stalled_displacement=1.5: expected a number at most 1"]),
        ({"phases": {"from_step": 5}}, ["expected a list"]),
        ({"gemms": ["wgrad"]}, ["gemms=['wgrad']: expected fields by name"]),
        ({"gemms": {"wgard": {"format": "BF16"}}}, ["'wgard' is no GEMM", "did you mean 'wgrad'?"]),
        ({"gemms": {"wgrad": {"gradeint": {"format": "BF16"}}}}, ["did you mean 'gradient'?"]),
        ({"gemms": {"wgrad": {"gradient": {"fromat": "BF16"}}}}, ["no field of a cast", "did you mean 'format'?"]),
        (
            {"gemms": {"wgrad": {"gradient": {"rounding": "stochastc"}}}},
            ["wgrad.gradient: rounding='stochastc': expected", "did you mean 'stochastic'?"],
        ),
        ({"rescue_rungs": []}, ["rescue_rungs=[]: expected a list of at least 1"]),
        ({"scaling": "static"}, ["scaling='static'", "'none', 'dynamic' or 'delayed'"]),
        (
            {"scaling": "delayed", "scale_granularity": "row"},
            ["scale_granularity='row'", "use scale_granularity='tensor'"],
        ),
        ({"overflow": "inf", "format": "E4M3"}, ["E4M3 has no infinity", "overflow='saturate'"]),
        ({"master_weights": False, "scale_power_of_two": False}, ["scale_power_of_two"]),
        ({"device": "gpu"}, ["device='gpu'"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_accepted_on_one_line(fields, said):
    with pytest.raises(ConfigError) as caught:
        make_config(fields, "x.yaml")
    message = str(caught.value)
    assert "\n" not in message and message.startswith("x.yaml: ")
    for words in said:
        assert words in message


def test_every_wrong_field_gets_its_own_line():
    with pytest.raises(ConfigError) as caught:
        make_config({"batch_size": -1, "formt": "E4M3", "seed": "x"}, "x.yaml")
    assert len(str(caught.value).splitlines()) == 3


def test_a_shipped_config_whose_name_is_misspelled_is_suggested(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file, and no shipped config; did you mean 'e4m3_uniform'\?"):
        load_config("e4m3_unifrom")
    with pytest.raises(ConfigError, match=r"no such file, and no shipped config; shipped configs lie in .*configs$"):
        load_config(tmp_path / "mine.yaml")


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "list.yaml").write_text("- format\n")
    (tmp_path / "broken.yaml").write_text("format: [E4M3\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.yaml", "list.yaml", "broken.yaml", "binary.yaml"):
        with pytest.raises(ConfigError, match=name):
            load_config(tmp_path / name)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_says_why_it_is_there(path):
    config = load_config(path)
    assert path.read_text().startswith("#")
    assert (config.seed, config.batch_size, config.learning_rate, config.use_shadow) == (42, 12, 6e-4, True)
    assert config.max_steps == (2000 if path.stem == "e5m2_fp8" else 500)
    assert config.log_stiffness and config.log_grid_alignment and config.log_ulp
    assert config.master_weights == (not path.stem.endswith("_stored"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_config_says_only_what_differs_from_the_defaults(path):
    defaults = TrainConfig().model_dump()
    said = yaml.safe_load(path.read_text())
    assert [name for name, value in said.items() if name != "format" and value == defaults[name]] == []


def test_the_last_matching_glob_names_a_layers_format():
    recipe = Recipe(format="E4M3", gradient_format="E5M2", layer_formats={"*": "E3M4", "*.mlp.*": "BF16"})
    assert recipe.format_at("h.0.mlp.up", "weight").name == "BF16"
    assert recipe.format_at("h.0.attn.qkv", "gradient").name == "E3M4"
    assert Recipe(format="E4M3", gradient_format="E5M2").format_at("x", "gradient").name == "E5M2"
    assert Recipe(format="E5M2", overflow="inf").format_at("x", "weight").overflow == "inf"


def test_interventions_name_config_fields_and_join():
    for name in INTERVENTIONS:
        TrainConfig(**intervention_fields(name))
    rules = {name: intervention_fields(name)["update_rounding"] for name in ("stochastic", "kahan", "eco")}
    assert rules == {"stochastic": "stochastic", "kahan": "kahan", "eco": "eco_stochastic"}
    assert intervention_fields("clip+shift") == {"enable_partition_clipping": True, "enable_emergency_shift": True}
    with pytest.raises(ConfigError, match=r"'pray'; known: none, clip"):
        intervention_fields("pray")
    rungs = intervention_fields("rollback+to-E5M2+rate")
    assert rungs["rescue_rungs"] == ["rollback", "shift", "rate"] and rungs["rescue_shift_format"] == "E5M2"
    one = TrainConfig(**intervention_fields("to-E4M3b11-dgrad.gradient"))
    assert (one.rescue_shift_format, one.rescue_shift_operands) == ("E4M3b11", ["dgrad.gradient"])
    for name, hint in {"to-E9M9": "E \\+ M is 18", "to-": "format=''", "to-BF16-": None}.items():
        if hint is None:
            assert intervention_fields(name)["rescue_shift_format"] == "BF16"
            continue
        with pytest.raises(ConfigError, match=hint):
            intervention_fields(name)
    with pytest.raises(ConfigError, match=r"'wgrad.weight'; known: fprop, .* did you mean"):
        TrainConfig(**intervention_fields("to-BF16-wgrad.weight"))
    assert implied_fields("clip+pray") == intervention_fields("clip") and implied_fields("pray") == {}


def test_a_format_is_kept_under_its_registered_name():
    recipe = Recipe(format="FP4_E2M1", gradient_format="float8_e5m2", layer_formats={"head": "E8M7"})
    assert (recipe.format, recipe.weight_format, recipe.gradient_format) == ("E2M1", None, "E5M2")
    assert recipe.layer_formats == {"head": "BF16"}
    assert recipe == Recipe(format="E2M1", gradient_format="E5M2", layer_formats={"head": "BF16"})

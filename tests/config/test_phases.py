"""The schedule of a recipe in a config: what each phase has, where it starts, and what is refused in a line."""

from __future__ import annotations

from typing import Any

import pytest

from altgrad.config.operands import Operand
from altgrad.config.train_config import ConfigError, TrainConfig, load_config
from altgrad.text.yaml_text import to_yaml

BF16 = {"format": "BF16"}
FP4: dict[str, Any] = {"format": "E2M1", "scale_granularity": "1x16", "max_steps": 100}
ROTATED = {"gemms": {"wgrad": {"hadamard": 16, "gradient": {"rounding": "stochastic"}}}}


def test_a_phase_replaces_flat_fields_globs_and_whole_gemms() -> None:
    phases = [
        {"from_step": 20, "gemms": {"wgrad": BF16}, "layer_formats": {"*up": "E4M3", "head": "FP32"}},
        {"from_share": 0.5, "gradient_format": "E5M2", "layer_formats": {"head": "BF16"}},
    ]
    config = TrainConfig(**FP4, **ROTATED, layer_formats={"head": "BF16", "*down": "E3M4"}, phases=phases)
    before, middle, end = (config.in_phase(number) for number in range(3))
    assert before.casts_at() == TrainConfig(**FP4, **ROTATED).casts_at()
    assert list(middle.layer_formats.items()) == [("*down", "E3M4"), ("*up", "E4M3"), ("head", "FP32")]
    wgrad = [Operand("wgrad", "gradient"), Operand("wgrad", "activation")]
    assert all(str(middle.casts_at()[operand]) == "BF16" for operand in wgrad)  # not rotated, rounded to nearest
    assert {o for o, cast in middle.casts_at().items() if cast != before.casts_at()[o]} == set(wgrad)
    assert {o for o, cast in end.casts_at().items() if cast != middle.casts_at()[o]} == {Operand("dgrad", "gradient")}
    assert end.layer_formats["head"] == "BF16" and end.phases == []
    assert config.in_phase(1).gemms == {"wgrad": BF16} and config.gemms == ROTATED["gemms"]


@pytest.mark.parametrize(
    ("share", "steps", "first"), [(0.9, 500, 451), (0.29, 100, 30), (0.7, 10, 8), (0.999, 500, 500), (0.5, 3, 2)]
)
def test_a_share_is_of_the_steps_before_the_phase(share: float, steps: int, first: int) -> None:
    config = TrainConfig(format="E4M3", max_steps=steps, phases=[{"from_share": share} | BF16])
    assert config.phase_starts == (first,)


def test_a_schedule_is_read_back_as_it_was_written(tmp_path: Any) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("format: E4M3\nphases:\n  - from_step: 1e2\n    gemms: {wgrad: {format: BF16}}\n")
    config = load_config(file)
    assert config.phases == [{"from_step": 100, "gemms": {"wgrad": BF16}}]
    file.write_text(to_yaml(config.model_dump()))
    assert load_config(file) == config == TrainConfig(**config.model_dump(mode="json"))
    assert config.altered(phases=[]) == TrainConfig(format="E4M3")


EVERY = {gemm: BF16 for gemm in ("fprop", "dgrad", "wgrad")}
REFUSED: list[tuple[Any, str]] = [
    ([{"from_step": 101} | BF16], "phases[0].from_step=101 never starts: the run has 100 steps"),
    ([{"from_step": 1} | BF16], "phases[0] starts with the first of 100 steps"),
    ([{"from_share": 0.001} | BF16], "phases[0] starts with the first of 100 steps"),
    ([{"from_step": 50} | BF16, {"from_step": 50, "format": "E4M3"}], "phases[1].from_step=50: not after phases[0]"),
    ([{"from_share": 0.5} | BF16, {"from_share": 0.4, "format": "E4M3"}], "phases[1].from_share=0.4: not after"),
    ([{"from_step": 50} | BF16, {"from_share": 0.2, "format": "E4M3"}], "phases[1].from_share=0.2 starts at step 21"),
    ([{"from_step": 50, "fromat": "BF16"}], "phases[0].fromat: no field of a phase; known: from_step"),
    ([{"from_step": 50, "master_weights": False}], "phases[0].master_weights: no field of a phase"),
    ([{"from_step": 50}], "phases[0]: changes no cast"),
    ([BF16], "phases[0]: give one start: from_step"),
    ([{"from_step": 50, "from_share": 0.5} | BF16], "phases[0]: give one start"),
    ([{"from_step": 0} | BF16], "phases[0].from_step=0: expected a step number"),
    ([{"from_step": 2.5} | BF16], "phases[0].from_step=2.5: expected a step number"),
    ([{"from_step": True} | BF16], "phases[0].from_step=True: expected a step number"),
    ([{"from_share": 1.0} | BF16], "phases[0].from_share=1.0: expected a share of the run"),
    ([{"from_share": "half"} | BF16], "phases[0].from_share='half': expected a share of the run"),
    ([{"from_step": 50, "format": "E2M1"}], "phases[0]: leaves every cast as it was before"),
    ([{"from_step": 50, "format": "BG16"}], "did you mean 'BF16'?"),
    ([{"from_step": 50, "gemms": {"fprop": {"formt": "BF16"}}}], "phases[0]: gemms.fprop.formt"),
    ([{"from_step": 50, "gemms": 3}], "phases[0].gemms=3: expected fields by name"),
    ([{"from_step": 50, "format": "E4M3", "gemms": EVERY}], "phases[0]: format='E4M3' changes nothing"),
    ([{"from_step": 50, "scaling": "delayed"}], "phases[0]: scale_granularity='1x16' with scaling='delayed'"),
    ([3], "phases.0=3"),
    ("late", "phases='late'"),
]  # fmt: skip


@pytest.mark.parametrize(("phases", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_a_schedule_that_cannot_be_is_refused_in_one_line(phases: Any, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        TrainConfig(**FP4, phases=phases)
    text = str(refused.value)
    assert said in text and len(text.splitlines()) == 1


def test_what_holds_for_the_whole_run_holds_in_every_phase() -> None:
    phases = [{"from_step": 50, "scale_power_of_two": False}]
    with pytest.raises(ConfigError, match=r"^phases\[0\]: scale_power_of_two=False with master_weights=False"):
        TrainConfig(format="E4M3", master_weights=False, phases=phases)
    with pytest.raises(ConfigError, match=r"^native_fp8=True: phases change the casts of a run"):
        TrainConfig(format="E4M3", native_fp8=True, phases=[{"from_step": 50, "gradient_format": "E5M2"}])
    with pytest.raises(ConfigError, match=r"^phases\[0\]: gemm_dtype='bfloat16': FP16 has 10 mantissa bits"):
        TrainConfig(format="E4M3", gemm_dtype="bfloat16", phases=[{"from_step": 50, "format": "FP16"}])

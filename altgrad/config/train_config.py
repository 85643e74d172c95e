"""The one description of a training run: flat, frozen, validated, the same in YAML, in Python and in `run.json`.

Flat because a sweep varies single fields by name (`--set scaling=delayed`) and a table shows what differs.
No torch: the sweep's planning and the dashboard read configs on machines without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from altgrad.config.config_errors import ConfigError, FieldError
from altgrad.config.gpt_sizes import PRESETS, GPTShape
from altgrad.config.recipe import Fraction, Positive, Recipe
from altgrad.text.error_hints import cut, did_you_mean, shown
from altgrad.text.path_text import check_path
from altgrad.text.yaml_text import NotYaml, read_yaml


class TrainConfig(Recipe):
    """One training run.  Unknown keys are refused; instances never change (use `altered`)."""

    # fmt: off
    # model and data
    model: str = Field("tiny", description="GPT preset (micro, tiny, small, medium, gpt2)")
    n_layer: int | None = Field(None, ge=1, description="overrides the preset")
    n_head: int | None = Field(None, ge=1, description="overrides the preset")
    n_embd: int | None = Field(None, ge=1, description="overrides the preset")
    block_size: int | None = Field(None, ge=2, description="tokens of context; overrides the preset")
    tied_head: bool = Field(False, description="the output head shares the token embedding's weights")
    data: str = Field("opticks", description="opticks (built in), or a text file, a folder, a glob, a file of token ids (*.bin), or a folder with train.bin and val.bin")
    token_dtype: Literal["auto", "uint16", "uint32"] = Field("auto", description="width of the ids in token files; auto: looked up in the files, an error where they do not tell")
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="share of the text held out, at its end")
    batch_size: int = Field(12, ge=1, description="sequences per step")
    # optimisation
    max_steps: int = Field(500, ge=1)
    learning_rate: Positive = Field(6e-4, description="peak, reached after warm-up")
    schedule: Literal["cosine", "constant"] = "cosine"
    min_learning_rate_ratio: Fraction = Field(0.1, description="the cosine ends at this share of the peak")
    warmup_steps: int = Field(50, ge=0)
    weight_decay: float = Field(0.1, ge=0)
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    adam_epsilon: Positive = 1e-8
    gradient_clip: float = Field(1.0, ge=0, description="global gradient-norm limit; 0 switches it off")
    # measuring
    eval_interval: int = Field(100, ge=1, description="steps between validation losses; the last step is always measured")
    eval_batches: int = Field(8, ge=1)
    diagnostic_interval: int = Field(50, ge=1, description="steps between diagnostic measurements")
    log_stiffness: bool = Field(False, description="DIAG-01 and DIAG-03: stiffness and its relation to the gradient")
    log_grid_alignment: bool = Field(False, description="DIAG-02: distance of the weights to their grid")
    log_ulp: bool = Field(False, description="DIAG-04: grid positions moved by the optimizer step")
    use_shadow: bool = Field(False, description="compare with the unrounded gradient of the same weights and batch")
    # interventions
    enable_partition_clipping: bool = Field(False, description="STAB-05: clip the gradient norm relative to the format's range while it overflows")
    partition_clip_base: Positive = Field(1.0, description="norm limit for E5M2; others in proportion to their largest value")
    partition_clip_overflow_threshold: Fraction = Field(0.01, description="clip only at or above this measured overflow rate")
    enable_emergency_shift: bool = Field(False, description="STAB-06: replace a failing format by a safer one")
    emergency_shift_nan_patience: int = Field(3, ge=1, description="consecutive non-finite steps before a shift")
    emergency_shift_stall_threshold: Fraction = Field(0.5, description="stall rate over the window above which a shift is considered")
    emergency_shift_stall_windows: int = Field(2, ge=1, description="consecutive diagnostic windows that must stall")
    emergency_shift_displacement: Fraction = Field(0.25, description="and only where the realised displacement is below this")
    # collapse rules
    stop_on_collapse: bool = Field(True, description="end the run at its verdict; false: record it and go on")
    non_finite_patience: int = Field(5, ge=1, description="consecutive steps with a NaN or inf loss or gradient; most steps of late are judged as well")
    diverged_margin: Positive = Field(0.5, description="nats of smoothed loss above its best; where the loss is no cross-entropy of known vocabulary, m nats are m/3 of what was learned")
    diverged_patience: int = Field(80, ge=1, description="steps in a row without recovering; runs of more than 500 steps wait in proportion")
    never_learned_fraction: Annotated[float, Field(gt=0, le=1)] = Field(0.4, description="share of the run by which the loss must have left its start")
    never_learned_margin: Positive = Field(0.15, description="nats below the initial loss that count as learning; unknown unit: a fall beyond the scatter of the batches")
    stalled_displacement: Fraction = Field(0.1, description="realised displacement below which the weights count as frozen")
    stalled_slope: Positive = Field(0.1, description="nats per 100 steps of smoothed loss that count as progress; in longer runs than 500 steps, per fifth of the run")
    stalled_windows: int = Field(3, ge=1, description="consecutive diagnostic windows that must be frozen, and as many twentieths of the run")
    rank_collapse_ratio: Fraction = Field(0.1, description="median stable rank relative to its start below which the weights have collapsed")
    gap_limit: Positive = Field(1.0, description="nats of smoothed loss behind the baseline of the same seed; unknown unit: thirds of what the baseline learned")
    gap_patience: int = Field(160, ge=1, description="steps in a row behind by that much; runs of more than 500 steps wait in proportion")
    # running
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | None = Field(None, ge=1, description="CPU threads; None: what torch finds, or the trial's CPUs in a sweep")
    compile: Literal["auto", "blocks", True, False] = Field("auto", description="torch.compile the step: as one graph, a graph per repeated block, not at all; auto: what pays")
    cuda_graphs: bool = Field(False, description="record the compiled step as CUDA graphs; CUDA only, every shape fixed")
    checkpoint_interval: int = Field(100, ge=1, description="steps between checkpoints")
    default_sweep: bool = Field(True, description="part of `python tune/sweep.py` without arguments")
    # fmt: on

    @field_validator("data")
    @classmethod
    def _somewhere(cls, data: str) -> str:
        check_path(data)
        if "://" in data:
            raise ValueError("a URI; text and token files are read from a disk that every node sees")
        return data

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        if self.model not in PRESETS:
            near = did_you_mean(self.model, PRESETS)
            raise ValueError(f"model={shown(self.model)}; known: {', '.join(PRESETS)}{near}")
        _ = self.shape
        if self.cuda_graphs and self.compile in (False, "blocks"):
            raise ValueError(
                f"cuda_graphs=True with compile={self.compile!r}: what is recorded is a step compiled as one graph; use "
                "compile=auto or true"
            )
        if self.native_fp8 and self.enable_emergency_shift:
            raise ValueError(
                "native_fp8=True with enable_emergency_shift=True: a shift leads to E5M2 at every site, which no FP8 GEMM "
                "multiplies; switch one of them off"
            )
        return self

    @property
    def shape(self) -> GPTShape:
        """Sizes of the built-in GPT: the preset's, with this config's overrides."""
        given = {
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_embd": self.n_embd,
            "block_size": self.block_size,
        }
        return dataclasses.replace(PRESETS[self.model], **{k: v for k, v in given.items() if v is not None})

    def altered(self, **changes: Any) -> TrainConfig:
        """A validated copy with some fields changed."""
        return type(self)(**(self.model_dump() | changes))


# What a sweep may try to save a format with: name -> the fields it sets.  Joined with "+": clip+shift.
INTERVENTIONS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "clip": {"enable_partition_clipping": True},
    "shift": {"enable_emergency_shift": True},
    "stochastic": {"update_rounding": "stochastic"},
    "master": {"master_weights": True},
    "scaling": {"scaling": "dynamic"},
}


def intervention_fields(name: str) -> dict[str, Any]:
    """Config fields that an intervention name such as `clip+shift` sets.  Raises ConfigError for an unknown one."""
    fields: dict[str, Any] = {}
    for part in name.split("+"):
        if part not in INTERVENTIONS:
            known = f"{', '.join(INTERVENTIONS)}, or several joined with +{did_you_mean(part, INTERVENTIONS)}"
            raise ConfigError(f"intervention={shown(part)}; known: {known}")
        fields |= INTERVENTIONS[part]
    return fields


def load_config(path: str | Path, **overrides: Any) -> TrainConfig:
    """The config in a flat YAML file (see `yaml_text`), with some fields overridden.  Raises ConfigError."""
    path = Path(path)
    try:
        fields = read_yaml(path)
    except OSError as error:
        raise ConfigError(f"{cut(str(path))}: cannot read config: {error.strerror}") from error
    except NotYaml as error:
        raise ConfigError(f"{cut(str(path))}: {error}") from error
    if fields is None:
        fields = {}
    if not isinstance(fields, dict):
        raise ConfigError(f"{cut(str(path))}: expected `field: value` lines, found {type(fields).__name__}")
    return make_config(fields | overrides, source=cut(str(path)))


def make_config(fields: Mapping[str, Any], source: str) -> TrainConfig:
    """A validated config from fields; `source` names their origin in errors.  Raises ConfigError."""
    try:
        return TrainConfig(**{str(key): value for key, value in fields.items()})
    except FieldError as error:
        raise error.within(source) from None


def check_fields(fields: Mapping[str, Any], source: str) -> None:
    """Refuse unknown fields and values that no config takes; whether they go together, a whole config says."""
    try:
        TrainConfig(**fields)
    except FieldError as error:
        wrong = [(field, line) for field, line in error.problems if field]
        if wrong:
            raise FieldError(wrong).within(source) from None

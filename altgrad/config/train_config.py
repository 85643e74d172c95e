"""The config of a training run: flat, frozen and validated; YAML, Python and `run.json` have the same fields.

It is flat because a sweep varies single fields by name (`--set scaling=delayed`) and tables list the fields that
differ.  No torch: the sweep's planning and the dashboard read configs on machines without it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from altgrad.config.cast import GEMM_SITES, GEMMS
from altgrad.config.fields.config_errors import ConfigError, FieldError
from altgrad.config.fields.field_traits import field
from altgrad.config.operands import ALL_OPERANDS
from altgrad.config.phases import first_steps
from altgrad.config.published import check_shorthand, merged_gemms, own_fields, published_fields
from altgrad.config.recipe import Fraction, Positive, Recipe, recipe_defaults
from altgrad.config.run_origin import Kept, check_origin, is_checkpoint, kept_step
from altgrad.config.shipped_configs import near_config
from altgrad.config.sizes.gpt_sizes import PRESETS, GPTShape
from altgrad.format_relations import FALLBACKS
from altgrad.formats import find_format
from altgrad.text.error_hints import did_you_mean, shown, shown_path
from altgrad.text.path_text import check_path
from altgrad.text.yaml_text import NotYaml, read_yaml

BYTES = "bytes"  # the tokenizer whose tokens are the bytes of a text
BUILT_IN_TASK = "gpt"
LITTLE_COVERAGE = 0.5  # below this rounded share of its matrix products a run says little about its format
SHIPPED_TASKS = ("nanogpt", "hf_causal_lm", "image_classifier", "regression", "mx_proxy")  # modules of altgrad.tasks
_TASK = re.compile(r"[A-Za-z_][\w-]*|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)?")


Rung = Literal["skip", "rate", "rollback", "shift"]


class TrainConfig(Recipe):
    """One training run.  Unknown keys are refused; instances never change (use `altered`)."""

    # fmt: off
    # model and data
    task: str = field(BUILT_IN_TASK, "model", f"what is trained: {BUILT_IN_TASK} (the built-in GPT), {', '.join(SHIPPED_TASKS)}, the name of an installed task, or package.module:name", in_graph=True)
    task_args: dict[str, Any] = field({}, "model", "arguments of the task, by name", in_graph=True)
    start_from: str | None = field(None, "model", "weights to start from: RUN@STEP or RUN@last (a checkpoint of a run), a .safetensors or .pt file, or a folder with model.safetensors; at step 0 and with new moments, unless start_keeps says otherwise; None: the task's initial weights", timed=False)
    start_keeps: list[Kept] = field([], "model", "what start_from: RUN@STEP keeps besides the weights: step (the schedule goes on after that step, to max_steps, and so do the batches), moments (those of the optimizer, and the place in the data)", timed=False)
    model: str = field("tiny", "model", "preset of the built-in GPT: micro, tiny, small, medium or gpt2", in_graph=True, by_task=True)
    n_layer: int | None = field(None, "model", "number of transformer blocks; None: the preset's", in_graph=True, by_task=True, ge=1)
    n_head: int | None = field(None, "model", "number of attention heads; None: the preset's", in_graph=True, by_task=True, ge=1)
    n_embd: int | None = field(None, "model", "width of the model; None: the preset's", in_graph=True, by_task=True, ge=1)
    block_size: int | None = field(None, "model", "context length in tokens; None: the preset's", in_graph=True, by_task=True, ge=2)
    tied_head: bool = field(False, "model", "the output head shares the token embedding's weights", in_graph=True, by_task=True)
    data: str = field("opticks", "data", "training data: opticks (built in), a text, JSON lines or Parquet file, a folder or glob of such files, a file of token ids (*.bin), a folder with train.bin and val.bin, or a folder or glob of shards with train and val in their names", by_task=True)
    tokenizer: str = field(BYTES, "data", "tokens of a text: bytes, an encoding of tiktoken by name (gpt2, o200k_base), or a tokenizer.json of `tokenizers`", by_task=True)
    text_column: str = field("text", "data", "column of JSON lines and Parquet files that holds the text", by_task=True)
    token_dtype: Literal["auto", "uint16", "uint32"] = field("auto", "data", "type of the ids in token files; auto: determined from the files, and an error if that is not possible", by_task=True)
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = field(0.1, "data", "share of the text, at its end, that is held out for validation", by_task=True)
    skip_batches: int = field(0, "data", "number of training batches that are left out: step s trains on batch s + skip_batches", timed=False, ge=0)
    branch_from: dict[str, Any] | None = field(None, "model", "the run and step whose checkpoint this run starts from: {run: folder, step: number, forget: [histories]}; fields that the config leaves out are the parent's; forget: what is not taken over", timed=False)
    batch_size: int = field(12, "workload", "number of sequences (or examples) per step", in_graph=True, by_task=True, ge=1)
    accumulate: int = field(1, "workload", "number of equal parts in which a step's batch passes through the model; their gradients are added", in_graph=True, ge=1)
    # optimisation
    max_steps: int = field(500, "workload", "number of optimizer steps", ge=1)
    learning_rate: Positive = field(6e-4, "optimisation", "peak learning rate, reached after warm-up")
    schedule: Literal["cosine", "constant"] = field("cosine", "optimisation", "learning rate after warm-up: falls along a half cosine, or stays constant")
    min_learning_rate_ratio: Fraction = field(0.1, "optimisation", "share of the peak learning rate at which the cosine schedule ends")
    warmup_steps: int = field(50, "optimisation", "number of steps in which the learning rate rises linearly to its peak", ge=0)
    weight_decay: float = field(0.1, "optimisation", "weight decay of AdamW, for parameters with two or more dimensions", by_task=True, ge=0)
    beta1: Annotated[float, Field(ge=0, lt=1)] = field(0.9, "optimisation", "decay rate of AdamW's first moment", by_task=True)
    beta2: Annotated[float, Field(ge=0, lt=1)] = field(0.95, "optimisation", "decay rate of AdamW's second moment", by_task=True)
    adam_epsilon: Positive = field(1e-8, "optimisation", "epsilon of AdamW", by_task=True)
    autocast: Literal["auto", True, False] = field("auto", "optimisation", "compute what no recipe rounds (attention, norms) as torch.autocast does in bfloat16; auto: on a CUDA device", in_graph=True, timed=True)
    gradient_clip: float = field(1.0, "optimisation", "limit of the global gradient norm; 0: no clipping", ge=0)
    # measuring
    eval_interval: int = field(100, "measuring", "steps between measurements of the validation loss; the last step is always measured", timed=False, ge=1)
    eval_batches: int = field(8, "workload", "number of validation batches, which are the same for every run", ge=1)
    diagnostic_interval: int = field(50, "measuring", "steps between diagnostic measurements", timed=False, ge=1)
    log_stiffness: bool = field(False, "measuring", "measure stiffness and its correlation with the gradient")
    log_grid_alignment: bool = field(False, "measuring", "measure the distance of the weights to their grid")
    log_ulp: bool = field(False, "measuring", "measure by how many grid positions the optimizer step moves the weights")
    use_shadow: bool = field(False, "measuring", "compare the gradient with the unrounded gradient of the same weights and batch, at each diagnostic measurement")
    # interventions
    enable_partition_clipping: bool = field(False, "rescue", "clip the gradient norm to a limit that depends on the format's range, in steps whose gradients overflow")
    partition_clip_base: Positive = field(1.0, "rescue", "partition clipping: limit of the gradient norm for E5M2; the limit of another format is proportional to its largest value", only_with=("enable_partition_clipping", True))
    partition_clip_overflow_threshold: Fraction = field(0.01, "rescue", "partition clipping: clip only in steps whose gradient overflow rate is at least this", only_with=("enable_partition_clipping", True))
    enable_emergency_shift: bool = field(False, "rescue", "replace a failing format by a safer one during the run")
    emergency_shift_nan_patience: int = field(3, "rescue", "emergency shift: number of consecutive steps with a NaN or inf loss or gradient before a shift", only_with=("enable_emergency_shift", True), ge=1)
    emergency_shift_stall_threshold: Fraction = field(0.5, "rescue", "emergency shift: a diagnostic window counts as frozen only if its stall rate is above this", only_with=("enable_emergency_shift", True))
    emergency_shift_stall_windows: int = field(2, "rescue", "emergency shift: number of consecutive frozen diagnostic windows before a shift", only_with=("enable_emergency_shift", True), ge=1)
    emergency_shift_displacement: Fraction = field(0.25, "rescue", "emergency shift: a diagnostic window counts as frozen only if its realised displacement is below this", only_with=("enable_emergency_shift", True))
    enable_rescue_ladder: bool = field(False, "rescue", "act on a run whose loss is not finite or far above its best, by the rungs of rescue_rungs, one after the other; on frozen weights and zero gradients by a shift alone")
    rescue_rungs: list[Rung] = field(["skip", "rate", "rollback", "shift"], "rescue", "rescue ladder: the acts in their order: skip (the batch), rate (cut and warm up again), rollback (to the last healthy weights, without the batches since; if they do not help, to an older checkpoint), shift (to rescue_shift_format)", only_with=("enable_rescue_ladder", True), min_length=1)
    rescue_margin: Positive = field(0.5, "rescue", "rescue ladder: nats above the best smoothed loss from which on a step is in trouble; if the unit of the loss is unknown, m nats mean m/3 of the loss reduction so far, at least a twelfth of the initial loss and eight times the scatter of the batches", only_with=("enable_rescue_ladder", True))
    rescue_window: int = field(10, "rescue", "rescue ladder: number of steps that an act has to help, before the next rung", only_with=("enable_rescue_ladder", True), ge=1)
    rescue_budget: int = field(8, "rescue", "rescue ladder: most acts of a run; afterwards the verdict stands", only_with=("enable_rescue_ladder", True), ge=1)
    rescue_shift_format: str = field("BF16", "rescue", "rescue ladder: format of the scaled operands after a shift", only_with=("enable_rescue_ladder", True))
    rescue_shift_layers: str = field("*", "rescue", "rescue ladder: glob of the layers that a shift changes", only_with=("enable_rescue_ladder", True))
    rescue_shift_operands: list[str] | None = field(None, "rescue", "rescue ladder: the operands that a shift changes: a GEMM (wgrad), a tensor (gradient), or one operand (dgrad.gradient); None: all", only_with=("enable_rescue_ladder", True), min_length=1)
    # collapse rules
    stop_on_collapse: bool = field(True, "judging", "true: end the run when a collapse rule judges it; false: record the verdict and go on")
    non_finite_patience: int = field(5, "judging", "rule non_finite: number of consecutive steps with a NaN or inf loss or gradient; it also judges a run in which most recent steps are like that", ge=1)
    diverged_margin: Positive = field(0.5, "judging", "rules diverged and degraded: nats of smoothed loss above its best value, half as many of held-out loss; if the loss is not a cross-entropy over a known vocabulary, m nats mean m/3 of the loss reduction so far")
    diverged_patience: int = field(80, "judging", "rules diverged and degraded: number of consecutive steps above the margin; longer in proportion for runs of more than 500 steps", ge=1)
    never_learned_fraction: Annotated[float, Field(gt=0, le=1)] = field(0.4, "judging", "rule never_learned: share of the run by which the loss must have fallen below its start")
    never_learned_margin: Positive = field(0.15, "judging", "rule never_learned: nats below the initial loss that count as learning; if the unit of the loss is unknown, a fall beyond the scatter of the batches counts, or a twentieth of the held-out loss; rule no_context: nats below the entropy of the tokens' frequencies")
    no_context_fraction: Annotated[float, Field(gt=0, le=1)] = field(0.6, "judging", "rule no_context: share of the run by which a language model must predict better than the frequencies of the tokens, by never_learned_margin")
    stalled_displacement: Fraction = field(0.1, "judging", "rule stalled: realised displacement below which the weights count as frozen")
    stalled_slope: Positive = field(0.1, "judging", "rules stalled and no_context: fall of the smoothed loss, in nats per 100 steps, that counts as progress; in runs of more than 500 steps, per fifth of the run")
    stalled_windows: int = field(3, "judging", "rule stalled: number of consecutive diagnostic windows that must be frozen; they must also cover as many twentieths of the run", ge=1)
    rank_collapse_ratio: Fraction = field(0.1, "judging", "rule rank_collapse: the median stable rank r counts as collapsed below 1 + ratio x (reference - 1); the reference is the highest r since the loss last improved by never_learned_margin")
    gap_limit: Positive = field(0.3, "judging", "rule gap_to_baseline: nats of smoothed loss behind the baseline run of the same seed; if the unit of the loss is unknown, thirds of the baseline's loss reduction; rule stalled, where the gap is known: behind by half of it")
    gap_patience: int = field(60, "judging", "rule gap_to_baseline: number of consecutive steps behind by gap_limit; longer in proportion for runs of more than 500 steps", ge=1)
    # running
    device: str = field("auto", "running", "device that trains: cpu, cuda, cuda:N; auto: a GPU if there is one", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | None = field(None, "running", "number of CPU threads; None: the trial's CPUs in a sweep, else torch's own choice", ge=1)
    compile: Literal["auto", "blocks", True, False] = field("auto", "running", "torch.compile of the step: true: as one graph; blocks: one graph for all repeated blocks; false: none; auto: chosen by expected time", in_graph=True)
    cuda_graphs: bool = field(False, "running", "record the compiled step as CUDA graphs; needs a CUDA device and fixed shapes", in_graph=True)
    on_uncovered: Literal["warn", "raise", "ignore"] = field("warn", "running", "what a model does whose products are rounded in part: warn: say so at the start; raise: refuse it if no kind of layer here rounds one of them; ignore: say the share without a warning", timed=False)
    checkpoint_interval: int = field(100, "running", "steps between checkpoints", timed=False, ge=1)
    keep_checkpoints: Literal["newest", "octaves", "all"] = field("octaves", "running", "which checkpoints stay: the newest two; also one per octave of age while the run trains, and for good if it collapses (octaves); all", timed=False)
    default_sweep: bool = field(True, "planning", "part of a sweep without arguments")
    # fmt: on

    @field_validator("data")
    @classmethod
    def _somewhere(cls, data: str) -> str:
        check_path(data)
        if "://" in data:
            raise ValueError("a URI; text and token files are read from a disk that every node sees")
        return data

    @field_validator("rescue_shift_format")
    @classmethod
    def _registered_shift(cls, name: str) -> str:
        return find_format(name).name

    @field_validator("rescue_shift_operands")
    @classmethod
    def _operands_to_shift(cls, words: list[str] | None) -> list[str] | None:
        known = [*GEMMS, *GEMM_SITES, *map(str, ALL_OPERANDS)]
        for word in words or ():
            if word not in known:
                raise ValueError(f"{shown(word)}; known: {', '.join(known)}{did_you_mean(word, known)}")
        return words

    @field_validator("branch_from")
    @classmethod
    def _of_a_run(cls, origin: dict[str, Any] | None) -> dict[str, Any] | None:
        if origin is not None:
            check_origin(origin)
        return origin

    @field_validator("start_keeps")
    @classmethod
    def _each_once(cls, kept: list[Kept]) -> list[Kept]:
        return sorted(set(kept))

    @field_validator("task")
    @classmethod
    def _task_name(cls, task: str) -> str:
        if not _TASK.fullmatch(task):
            raise ValueError("expected a name, or package.module:name")
        return task

    @field_validator("task_args")
    @classmethod
    def _in_order(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return dict(sorted(arguments.items()))

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        if self.model not in PRESETS:
            near = did_you_mean(self.model, PRESETS)
            raise ValueError(f"model={shown(self.model)}; known: {', '.join(PRESETS)}{near}")
        _ = self.shape
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate={self.accumulate}: batch_size={self.batch_size} does not divide into as many parts; use a "
                "divisor of it"
            )
        if not self.master_weights and self.update_rounding.startswith("eco") and not self.beta1:
            raise ValueError(
                f"update_rounding={self.update_rounding!r} with beta1=0: the error is fed into a momentum that forgets it "
                "at once; use beta1 above 0 or update_rounding='kahan'"
            )
        return self

    @model_validator(mode="after")
    def _has_steps(self) -> Self:
        if self.start_keeps and not is_checkpoint(self.start_from):
            raise ValueError(
                f"start_keeps={self.start_keeps} with start_from={shown(self.start_from)}: only a checkpoint of a run has "
                "a step and moments; give start_from as RUN@STEP, or leave start_keeps out"
            )
        if self.start_step >= self.max_steps:
            raise ValueError(
                f"max_steps={self.max_steps} with the step of start_from={shown(self.start_from)} kept: no step is left; "
                "give more steps, or leave step out of start_keeps"
            )
        if self.phase_starts[:1] == (1,):
            raise ValueError(
                f"phases[0] starts with the first of {self.max_steps} steps, so that no step has the casts before it; "
                "start it later, or put its fields in the config itself"
            )
        return self

    @model_validator(mode="after")
    def _recordable(self) -> Self:
        if self.cuda_graphs and self.compile in (False, "blocks"):
            raise ValueError(
                f"cuda_graphs=True with compile={self.compile!r}: CUDA graphs record a step compiled as one graph; use "
                "compile=auto or true"
            )
        if self.cuda_graphs and self.accumulate > 1:
            raise ValueError(
                f"cuda_graphs=True with accumulate={self.accumulate}: a replay overwrites the gradients of the one "
                "before; switch one of them off"
            )
        return self

    @model_validator(mode="after")
    def _shiftable(self) -> Self:
        """Raises ValueError if an intervention may lead to a format that the GEMMs cannot multiply."""
        if self.native_fp8 and self.enable_emergency_shift:
            raise ValueError(
                "native_fp8=True with enable_emergency_shift=True: a shift leads to E5M2 at every site, which no FP8 GEMM "
                "multiplies; switch one of them off"
            )
        if self.gemm_dtype == "bfloat16" and self.enable_emergency_shift:
            for cast in self.casts_at().values():
                fallback = FALLBACKS.get(cast.number_format.name)
                obstacle = fallback and cast.bfloat16_obstacle(find_format(fallback))
                if obstacle:
                    raise ValueError(
                        f"gemm_dtype='bfloat16' with enable_emergency_shift=True: {obstacle}; use gemm_dtype='auto'"
                    )
        fixed = self.native_fp8 or self.gemm_dtype == "bfloat16"
        if fixed and self.enable_rescue_ladder and "shift" in self.rescue_rungs:
            raise ValueError(
                "rescue_rungs with shift: native_fp8=True and gemm_dtype='bfloat16' fix the formats of the GEMMs; leave "
                "shift out of rescue_rungs"
            )
        return self

    @property
    def start_step(self) -> int:
        """The step after which training begins: that of `start_from` if it is kept, else 0; `@last` is 0 as well.

        A run resolves `@last` before it begins, see `branch.checkpoints.settled`.
        """
        return kept_step(self.start_from, self.start_keeps)

    @property
    def begins_after(self) -> int:
        """The step after which the run itself trains: that of the checkpoint of `branch_from`, or `start_step`.

        A branch from step 0 begins where its parent did.
        """
        return max(self.start_step, 0 if self.branch_from is None else int(self.branch_from["step"]))

    @property
    def phase_starts(self) -> tuple[int, ...]:
        """The first step of each phase of the schedule; `bisect_right` of a step is the number of its phase."""
        return first_steps(self.phases, self.max_steps)

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
        """A validated copy with some fields changed; a new `recipe` replaces all fields that come from the present one.

        `gemms` is merged with the recipe's, as in a config.
        """
        fields = self.model_dump()
        if changes.get("recipe", self.recipe) != self.recipe:
            defaults = recipe_defaults()
            fields |= own_fields({name: fields.pop(name) for name in defaults}, defaults)
        elif "gemms" in changes and self.recipe is not None:
            theirs = published_fields(self.recipe).get("gemms", {})
            changes = changes | {"gemms": merged_gemms(theirs, changes["gemms"])}
        altered = type(self)(**(fields | changes))
        try:
            check_shorthand(altered, changes, recipe_defaults())
        except ValueError as error:
            raise FieldError([("", str(error))]) from None
        return altered


def load_config(path: str | Path, **overrides: Any) -> TrainConfig:
    """Read a config from a flat YAML file (see `yaml_text`); `overrides` replace its fields.  Raises ConfigError."""
    path = Path(path)
    try:
        fields = read_yaml(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{shown_path(path)}: no such file, and no shipped config{near_config(path)}") from error
    except OSError as error:
        raise ConfigError(f"{shown_path(path)}: cannot read config: {error.strerror}") from error
    except NotYaml as error:
        raise ConfigError(f"{shown_path(path)}: {error}") from error
    if fields is None:
        fields = {}
    if not isinstance(fields, dict):
        raise ConfigError(f"{shown_path(path)}: expected `field: value` lines, found {type(fields).__name__}")
    return make_config(fields | overrides, source=shown_path(path))


def make_config(fields: Mapping[str, Any], source: str) -> TrainConfig:
    """A validated config with these fields; errors begin with `source`, their origin.  Raises ConfigError."""
    try:
        return TrainConfig(**{str(key): value for key, value in fields.items()})
    except FieldError as error:
        raise error.within(source) from None


def check_fields(fields: Mapping[str, Any], source: str) -> None:
    """Raises FieldError for unknown fields and invalid values; contradictions between fields are not reported here."""
    try:
        TrainConfig(**fields)
    except FieldError as error:
        wrong = [(field, line) for field, line in error.problems if field]
        if wrong:
            raise FieldError(wrong).within(source) from None

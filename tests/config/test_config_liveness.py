"""Every config field decides something: changed, it gives other numbers, other files, another verdict, or a refusal.

A field is declared for a purpose, so that one that nobody reads is a promise that is not kept.  Searching the code for
its name proves nothing; here each is changed under circumstances in which it must matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from altgrad.collapse import CollapseDetector
from altgrad.results import read_run
from altgrad.storage.folder import Folder
from altgrad.training import TrainConfig, run_format_experiment
from altgrad.training.data import load_corpus
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import SMALL, TIMED, multiply_loss, train, untimed
from tune.plan.options import parse_options
from tune.plan.resources.machine import Machine
from tune.plan.trials import plan_sweep

pytestmark = pytest.mark.long

Seen = Callable[[TrainConfig, Folder], Any]
BASE = SMALL.altered(max_steps=6, eval_interval=3, diagnostic_interval=2, checkpoint_interval=3, learning_rate=3e-3)
STEPS = 400


def numbers(config: TrainConfig, folder: Folder) -> Any:
    """What a run stores: its rows (in their columns), its events, the steps of its checkpoints, how it was computed."""
    run_format_experiment(config, folder)
    run = read_run(folder)
    tables = {}
    for name in ("steps", "layers", "tensors"):
        table = run.table(name).to_pandas().dropna(axis="columns", how="all")
        tables[name] = table.drop(columns=[c for c in ("attempt", "time", *TIMED) if c in table]).to_csv()
    checkpoints = sorted(info.base_name[:14] for info in (folder / "checkpoints").list())
    how = {key: run.info[key] for key in ("threads", "compiled", "compile_reason", "data")}
    return tables, checkpoints, how


def disturbed(config: TrainConfig, folder: Folder) -> Any:
    """A run of which three steps are not finite: what happened in it."""
    trainer = Trainer(config)
    multiply_loss(trainer, dict.fromkeys((3, 4, 5), math.nan))
    outcomes = [trainer.step() for _ in range(config.max_steps)]
    return repr([(untimed(o.record), o.events) for o in outcomes])


def spiked(config: TrainConfig, folder: Folder) -> Any:
    """A run in whose later steps the loss is ten times too large: what happened in it."""
    outcomes = train(config, dict.fromkeys(range(8, 15), 10.0))[1]
    return repr([(untimed(o.record), o.events) for o in outcomes])


def verdicts(config: TrainConfig, folder: Folder) -> Any:
    """What the collapse rules say of some courses: broken, diverged, without context, flat, frozen, shrunk, behind."""

    def healthy(step: int) -> float:
        return 2.5 + 3.0 * math.exp(-step / 40)

    courses: dict[str, Callable[[int], Mapping[str, float]]] = {
        "broken": lambda step: {"loss": math.nan if 200 <= step < 212 else healthy(step)},
        "diverged": lambda step: {"loss": healthy(step) + (0.02 * (step - 200) if step > 200 else 0)},
        "without context": lambda step: {"loss": 3.2 + 2.3 * math.exp(-step / 30)},
        "flat": lambda step: {"loss": 5.5 - 0.0005 * step},
        "frozen": lambda step: {"loss": 4.0 + math.exp(-step / 9), "realised_displacement": 0.05, "stall_rate": 0.99},
        "shrunk": lambda step: {"loss": healthy(step), "stable_rank": 20.0 if step < 100 else 1.5},
        "behind": lambda step: {"loss": healthy(step), "gap_to_baseline": 1.2},
    }
    found = {}
    for name, course in courses.items():
        detector = CollapseDetector(config, 256, 3.2)
        for step in range(1, STEPS + 1):
            measured = {k: v for k, v in course(step).items() if step % 20 == 0 or k in ("loss", "gap_to_baseline")}
            detector.update({"step": step, **measured})
        found[name] = repr(detector.verdict)
    return found


def tokens(config: TrainConfig, folder: Folder) -> Any:
    """What is read of token ids on disk."""
    ids = np.arange(20_000, dtype=np.uint16) % 50
    folder.write_bytes("train.bin", ids.tobytes())
    folder.write_bytes("val.bin", ids[:4000].tobytes())
    corpus = load_corpus(config.altered(data=str(folder)))
    return corpus.vocabulary, len(corpus.training)


def table(config: TrainConfig, folder: Folder) -> Any:
    """What is read of a table with two columns of text."""
    folder.write_bytes("rows.jsonl", b'{"text": "one text", "other": "and another one"}')
    return bytes(load_corpus(config.altered(data=str(folder))).training)


def planned(config: TrainConfig, folder: Folder) -> Any:
    """The trials of a sweep without arguments, where this config and a plain one are the shipped ones."""
    folder.write_bytes("own.yaml", yaml.safe_dump(config.model_dump()).encode())
    folder.write_bytes("plain.yaml", b"format: E4M3")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tune.plan.trials.CONFIGS", Path(str(folder)))
        plan = plan_sweep(parse_options([]), Machine(cpus=2, gpus=0, gpu_note=""))
    return [trial.run for trial in plan.trials]


class ByHand(nn.Module):
    """A model with a product that no kind of layer stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(256, 16), nn.Linear(16, 256)
        self.own = nn.Parameter(torch.eye(16))

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        scores = self.head(self.table(inputs) @ self.own)
        return nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())


def with_a_product_by_hand(config: TrainConfig, folder: Folder) -> Any:
    """A run of a model of one's own."""
    return run_format_experiment(config, folder, model=ByHand()).status


E4M3 = {"format": "E4M3"}
STORED = E4M3 | {"master_weights": False}
CLIPPED = {"format": "E5M2", "amax_factor": 0.05, "enable_partition_clipping": True, "partition_clip_base": 1e-3}
SHIFTING = {"format": "E7M0", "enable_emergency_shift": True, "emergency_shift_nan_patience": 9}
FROZEN = SHIFTING | {"master_weights": False, "learning_rate": 1e-5, "max_steps": 8, "emergency_shift_stall_windows": 3}
SPIKED = {"format": "E4M3", "max_steps": 14, "enable_rescue_ladder": True, "rescue_window": 2}
JUDGED = {"max_steps": STEPS, "diagnostic_interval": 20}

# field -> circumstances, other value, where it shows
ALTERNATIVES: dict[str, tuple[Mapping[str, Any], Any, Seen]] = {
    "recipe": ({}, "mxfp4", numbers),
    "format": ({}, "E4M3", numbers),
    "weight_format": (E4M3, "E3M4", numbers),
    "activation_format": (E4M3, "E3M4", numbers),
    "gradient_format": (E4M3, "E5M2", numbers),
    "layer_formats": (E4M3, {"lm_head": "BF16"}, numbers),
    "rounding": (E4M3, "stochastic", numbers),
    "overflow": ({"format": "E5M2", "amax_factor": 0.05}, "inf", numbers),
    "scaling": (E4M3, "delayed", numbers),
    "scale_granularity": ({"format": "E2M5"}, "row", numbers),
    "scale_power_of_two": (E4M3, False, numbers),
    "amax_history": (E4M3 | {"scaling": "delayed"}, 1, numbers),
    "amax_factor": (E4M3, 0.1, numbers),
    "attention_gemms": (E4M3, True, numbers),
    "master_weights": (E4M3, False, numbers),
    "update_rounding": (STORED, "stochastic", numbers),
    "first_moment": ({}, {"format": "E4M3"}, numbers),
    "second_moment": ({}, {"format": "E4M3", "block": "1x128", "range_expansion": True}, numbers),
    "gemm_dtype": ({"format": "FP16"}, "bfloat16", numbers),
    "native_fp8": ({}, True, numbers),
    "seed": ({}, 7, numbers),
    "task": ({}, "regression", numbers),
    "task_args": ({"task": "regression"}, {"functions": 2}, numbers),
    "model": ({"n_layer": None}, "tiny", numbers),
    "block_axis": ({"format": "E2M1", "scale_granularity": "1x8"}, "last", numbers),
    "gemms": ({}, {"wgrad": {"format": "E2M1"}}, numbers),
    "layer_gemms": ({}, {"*mlp.up": {"wgrad": {"format": "E2M1"}}}, numbers),
    "rounding_seed": (E4M3 | {"rounding": "stochastic"}, 7, numbers),
    "skip_batches": ({}, 3, numbers),
    "branch_from": ({}, {"run": "nowhere", "step": 3}, numbers),
    "phases": (E4M3, [{"from_step": 4, "format": "E2M1"}], numbers),
    "high_first_blocks": ({"format": "E2M1"}, 1, numbers),
    "high_last_blocks": ({"format": "E2M1"}, 0.3, numbers),
    "n_layer": ({}, 2, numbers),
    "n_head": ({}, 4, numbers),
    "n_embd": ({}, 16, numbers),
    "block_size": ({}, 16, numbers),
    "tied_head": ({}, True, numbers),
    "data": ({}, __file__, numbers),
    "token_dtype": ({}, "uint32", tokens),
    "validation_fraction": ({}, 0.3, numbers),
    "batch_size": ({}, 3, numbers),
    "accumulate": ({}, 2, numbers),
    "tokenizer": ({}, "no_such_encoding", numbers),
    "text_column": ({}, "other", table),
    "start_from": ({}, "/no/such/weights.safetensors", numbers),
    "start_keeps": ({}, ["step"], numbers),
    "max_steps": ({}, 5, numbers),
    "learning_rate": ({}, 1e-3, numbers),
    "schedule": ({}, "constant", numbers),
    "min_learning_rate_ratio": ({}, 0.9, numbers),
    "warmup_steps": ({}, 4, numbers),
    "weight_decay": ({}, 0.5, numbers),
    "beta1": ({}, 0.5, numbers),
    "beta2": ({}, 0.5, numbers),
    "adam_epsilon": ({}, 1e-3, numbers),
    "autocast": ({}, True, numbers),
    "gradient_clip": ({"adam_epsilon": 1e-2}, 0.1, numbers),
    "eval_interval": ({}, 2, numbers),
    "eval_batches": ({}, 2, numbers),
    "diagnostic_interval": ({}, 3, numbers),
    "log_stiffness": ({}, True, numbers),
    "log_grid_alignment": ({}, True, numbers),
    "log_ulp": ({}, True, numbers),
    "use_shadow": ({}, True, numbers),
    "enable_partition_clipping": (CLIPPED, False, numbers),
    "partition_clip_base": (CLIPPED | {"adam_epsilon": 1e-2}, 1e-2, numbers),
    "partition_clip_overflow_threshold": (CLIPPED, 1.0, numbers),
    "enable_emergency_shift": (SHIFTING | {"emergency_shift_nan_patience": 2}, False, disturbed),
    "emergency_shift_nan_patience": (SHIFTING, 2, disturbed),
    "emergency_shift_stall_threshold": (FROZEN, 1.0, numbers),
    "emergency_shift_stall_windows": (FROZEN, 2, numbers),
    "emergency_shift_displacement": (FROZEN, 0.0, numbers),
    "enable_rescue_ladder": (SPIKED, False, spiked),
    "rescue_rungs": (SPIKED, ["rollback"], spiked),
    "rescue_margin": (SPIKED, 100.0, spiked),
    "rescue_window": (SPIKED, 5, spiked),
    "rescue_budget": (SPIKED, 1, spiked),
    "rescue_shift_format": (SPIKED | {"rescue_rungs": ["shift"]}, "E5M2", spiked),
    "rescue_shift_layers": (SPIKED | {"rescue_rungs": ["shift"]}, "*mlp*", spiked),
    "rescue_shift_operands": (SPIKED | {"rescue_rungs": ["shift"]}, ["gradient"], spiked),
    "stop_on_collapse": ({"learning_rate": 1e30, "gradient_clip": 0.0, "non_finite_patience": 1}, False, numbers),
    "non_finite_patience": (JUDGED, 50, verdicts),
    "diverged_margin": (JUDGED, 50.0, verdicts),
    "diverged_patience": (JUDGED, 10_000, verdicts),
    "never_learned_fraction": (JUDGED, 0.9, verdicts),
    "never_learned_margin": (JUDGED, 1e-3, verdicts),
    "no_context_fraction": (JUDGED, 0.9, verdicts),
    "stalled_displacement": (JUDGED, 0.0, verdicts),
    "stalled_slope": (JUDGED, 1e-12, verdicts),
    "stalled_windows": (JUDGED, 15, verdicts),
    "rank_collapse_ratio": (JUDGED, 0.0, verdicts),
    "gap_limit": (JUDGED, 50.0, verdicts),
    "gap_patience": (JUDGED, 10_000, verdicts),
    "device": ({}, "cuda:63", numbers),
    "threads": ({}, 2, numbers),
    "compile": ({}, "blocks", numbers),
    "on_uncovered": ({}, "raise", with_a_product_by_hand),
    "cuda_graphs": ({"device": "cpu", "compile": "auto"}, True, numbers),
    "checkpoint_interval": ({}, 4, numbers),
    "keep_checkpoints": ({"checkpoint_interval": 1}, "all", numbers),
    "default_sweep": ({}, False, planned),
}


def test_every_field_has_an_alternative():
    assert ALTERNATIVES.keys() == TrainConfig.model_fields.keys()


@pytest.mark.parametrize("field", [name for name, traits in TrainConfig.traits().items() if traits.only_with])
def test_a_field_is_tried_where_its_declaration_says_that_it_is_read(field):
    circumstances, *_ = ALTERNATIVES[field]
    assert field not in BASE.altered(**circumstances).without_effect()


@pytest.fixture(scope="module")
def unchanged() -> dict[str, Any]:
    """What is seen under circumstances that several fields share."""
    return {}


@pytest.mark.parametrize("field", ALTERNATIVES)
def test_a_field_that_is_changed_changes_what_happens(field, unchanged, tmp_path):
    circumstances, value, seen = ALTERNATIVES[field]
    config = BASE.altered(**circumstances)
    assert getattr(config, field) != value
    key = f"{seen.__name__} {config.model_dump_json()}"
    if key not in unchanged:
        unchanged[key] = seen(config, Folder.at(tmp_path / "as it was"))
    try:
        found = seen(config.altered(**{field: value}), Folder.at(tmp_path / "changed"))
    except (ValueError, RuntimeError) as error:
        assert field in str(error) or str(value) in str(error)
    else:
        assert found != unchanged[key]

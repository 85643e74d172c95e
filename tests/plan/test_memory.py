"""The memory estimate against what torch really allocates in a training step, and the guard that it feeds."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.profiler import ProfilerActivity, profile

from altgrad.config.train_config import TrainConfig
from altgrad.training.model import build_gpt
from altgrad.training.trainer import Trainer
from tests.support.runs.sweep_plans import CPU_BOX, GPU_BOX
from tune.cluster.accelerators import smallest_gpu
from tune.plan.options import SweepError, SweepOptions
from tune.plan.resources.gpu_memory import GIB, check_share, estimate, fitting_share, needs, share_of, vocabulary_of
from tune.plan.resources.machine import share_out
from tune.plan.trial import Trial
from tune.sweep import main

pytestmark = pytest.mark.long

# The estimate may be so much below and above the peak that torch's own allocation record shows.
LOW, HIGH = 0.9, 1.1
LOGS = {"use_shadow": True, "log_stiffness": True, "log_ulp": True, "log_grid_alignment": True}
CASES: dict[str, dict[str, Any]] = {
    "tiny": {"model": "tiny"},
    "tiny, rescue ladder": {"model": "tiny", "enable_rescue_ladder": True},
    "tiny, every diagnostic": {"model": "tiny", "n_layer": 2, **LOGS},
    "small, stored weights": {"model": "small", "batch_size": 1, "n_layer": 3, "master_weights": False},
    "small, a batch of activations": {"model": "small", "batch_size": 8, "block_size": 128, "n_layer": 3},
    "medium, every diagnostic": {"model": "medium", "block_size": 64, "batch_size": 1, **LOGS},
    "tiny, compensations and rescue ladder": {
        "model": "tiny", "master_weights": False, "update_rounding": "kahan", "enable_rescue_ladder": True,
    },
    "tiny, rounded attention": {"model": "tiny", "attention_gemms": True, "block_size": 256, "batch_size": 4},
    "blocks and noise": {"model": "tiny", "n_layer": 2, "scale_granularity": "block", "rounding": "stochastic"},
}  # fmt: skip


def measured_peak(config: TrainConfig) -> int:
    """Most bytes that torch held at once from the making of a trainer to the second of two diagnostic steps."""
    gc.collect()  # what earlier tests left is not to be freed within
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        trainer = Trainer(config)
        for _ in range(2):
            trainer.step()
    assert profiled.profiler is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(held.max())


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow if "medium" in c else ()) for c in CASES])
def test_the_estimate_is_near_the_measured_peak_of_real_steps(case: str) -> None:
    config = TrainConfig(
        **{
            "format": "E4M3",
            "device": "cpu",
            "compile": False,
            "threads": 1,
            "eval_interval": 1000,
            "diagnostic_interval": 1,
        }
        | CASES[case]
    )
    ratio = estimate(config, vocabulary_of(config)).tensors / measured_peak(config)
    assert LOW < ratio < HIGH


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model", ["micro", "tiny", "small"])
def test_what_is_kept_counts_the_parameters_of_the_model(model: str, tied: bool) -> None:
    config = TrainConfig(model=model, tied_head=tied)
    network = build_gpt(config, 256)
    parameters = sum(p.numel() for p in network.parameters())
    linear = sum(m.weight.numel() for m in network.modules() if type(m).__name__ == "Linear")
    assert estimate(config, 256).kept == 4 * (7 * parameters + 2 * linear)


def trial(run: str, gib: float) -> Trial:
    """A trial whose estimate is about so many GiB, by its batch."""
    config = TrainConfig(model="small")
    per_sequence = (needs([Trial("", config.altered(batch_size=1024))])[0][0] - needs([Trial("", config)])[0][0]) / 1012
    return Trial(run, config.altered(batch_size=int(gib * GIB / per_sequence)))


def test_trials_that_do_not_fit_side_by_side_are_refused_with_the_numbers() -> None:
    trials = [trial(f"t{number}", 23) for number in range(8)]
    with pytest.raises(SweepError) as refusal:
        check_share(0.25, trials, 80 * GIB)
    message = str(refusal.value)
    assert "\n" not in message and message.startswith("--gpus-per-trial 0.25: 4 trials on a GPU need about 2")
    assert "a GPU has 80 GiB; use 0.33" in message
    check_share(0.33, trials, 80 * GIB)
    check_share(0.25, trials[:3], 80 * GIB)  # there are no four


def test_a_trial_that_fits_no_gpu_is_refused_whatever_its_share() -> None:
    for share in (1.0, 0.5):
        with pytest.raises(SweepError, match=r"a GPU has 16 GiB; use a smaller batch_size"):
            check_share(share, [trial("big", 23)], 16 * GIB)
    with pytest.raises(SweepError, match=r"big needs about 2\d.* GiB of GPU memory, a GPU has 16 GiB"):
        fitting_share([trial("big", 23)], 16 * GIB, 0.25)


@pytest.mark.parametrize(("gpu", "share"), [(400, 0.25), (80, 0.33), (60, 0.5), (30, 1.0)])
def test_the_chosen_share_fits_and_is_never_finer_than_wanted(gpu: int, share: float) -> None:
    trials = [trial(f"t{number}", 23) for number in range(8)]
    assert fitting_share(trials, gpu * GIB, 0.25) == share
    check_share(share, trials, gpu * GIB)


def test_only_the_largest_trials_that_could_meet_on_a_gpu_count() -> None:
    trials = [trial("large", 40), *(trial(f"t{number}", 10) for number in range(9))]
    assert fitting_share(trials, 80 * GIB, 0.25) == 0.25
    assert needs([dataclasses.replace(trials[0], config=TrainConfig(device="cpu"))]) == []


@pytest.mark.parametrize("count", range(1, 17))
def test_a_share_holds_the_number_it_was_made_for(count: int) -> None:
    assert int(1 / share_of(count)) == count


def test_a_machine_with_known_memory_chooses_and_checks_and_one_without_says_so() -> None:
    trials = [trial(f"t{number}", 23) for number in range(16)]
    known = dataclasses.replace(GPU_BOX, gpu_bytes=80 * GIB)
    resources = share_out(SweepOptions(), known, trials)
    assert (resources.gpus, resources.concurrent) == (0.33, 12)
    assert "a GPU has 80 GiB" in str(resources.memory_sentence(known, trials))
    with pytest.raises(SweepError, match=r"use 0\.33"):
        share_out(SweepOptions(gpus_per_trial=0.25), known, trials)
    unknown = share_out(SweepOptions(), GPU_BOX, trials)
    assert unknown.gpus == 0.25 and "not known" in str(unknown.memory_sentence(GPU_BOX, trials))
    on_cpu = share_out(SweepOptions(), CPU_BOX, trials)
    assert on_cpu.memory_sentence(CPU_BOX, trials) is None


def test_a_share_that_does_not_fit_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tune.sweep.this_machine", lambda: dataclasses.replace(GPU_BOX, gpu_bytes=24 * GIB))
    arguments = ["--model", "gpt2", "--gpus-per-trial", "0.25", "--results", str(tmp_path / "out")]
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1 and not shown.out
    assert "--gpus-per-trial 0.25: 4 trials on a GPU need about" in shown.err and "a GPU has 24 GiB" in shown.err
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_is_as_large_as_its_smallest_known_gpu() -> None:
    h100, a100 = {"GPU": 8.0, "accelerator_type:H100": 1.0}, {"GPU": 4.0, "accelerator_type:A100": 1.0}
    assert smallest_gpu([{"CPU": 8.0}, h100]) == 79 * GIB
    assert smallest_gpu([h100, a100]) == 39 * GIB
    assert smallest_gpu([h100, {"GPU": 1.0}]) is None
    assert smallest_gpu([h100, {"GPU": 1.0, "accelerator_type:NEWEST": 1.0}]) is None
    assert smallest_gpu([{"CPU": 2.0}]) is None


def test_token_files_give_their_vocabulary(tmp_path: Any) -> None:
    for name in ("train.bin", "val.bin"):
        np.array([5, 49999, 7], dtype=np.uint16).tofile(tmp_path / name)
    assert vocabulary_of(TrainConfig(data=str(tmp_path))) == 50000
    assert vocabulary_of(TrainConfig()) == 256

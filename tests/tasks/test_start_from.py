"""Runs that start from weights: those of a run, of a file, of a folder; and what their collapse rules say."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from altgrad.collapse import CollapseDetector
from altgrad.compare import comparison, comparison_csv, comparison_markdown, comparison_table
from altgrad.config.train_config import ConfigError
from altgrad.experiment.checkpoints.stored_weights import stored_weights
from altgrad.html.board import group_board
from altgrad.report import failure_report
from altgrad.results import Verdict, list_runs, read_run
from altgrad.storage.folder import Folder
from altgrad.training import TrainConfig, run_format_experiment
from altgrad.training.model import build_gpt
from altgrad.training.starting_point import Start, hash_weights, load_weights
from altgrad.training.trainer import Trainer
from tests.support.results.written_runs import write_run
from tests.support.runs.small_runs import SMALL

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}


def write_safetensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """The format by its description: 8 bytes of length, a JSON header, the tensors' bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    content = b""
    for name, tensor in tensors.items():
        part = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        place = [len(content), len(content) + len(part)]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        content += part
    said = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(said)) + said + content)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BF16 run with checkpoints at steps 10 and 12."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_format_experiment(SMALL, folder)
    return folder


def test_every_format_starts_from_the_weights_of_a_run(trained: Path, tmp_path: Path) -> None:
    weights = stored_weights(f"{trained}@12")
    plain = build_gpt(SMALL, 256)
    plain.load_state_dict(weights)  # a plain model takes them as they are
    validation = read_run_last(trained)
    hashes = set()
    for name in ("BF16", "E4M3", "E7M0"):
        config = SMALL.altered(format=name, start_from=f"{trained}@12", max_steps=2, warmup_steps=0)
        info = read_run(run_format_experiment(config, tmp_path / name).folder).info
        hashes.add(info["initial_weights_hash"])
    assert hashes == {hash_weights(plain)}
    trainer = Trainer(SMALL.altered(start_from=f"{trained}@12"), start=Start(weights))
    assert trainer.validation_loss() == validation
    assert stored_weights(str(trained)).keys() == stored_weights(f"{trained}@last").keys() == weights.keys()
    assert any(not torch.equal(stored_weights(f"{trained}@10")[name], weights[name]) for name in weights)


def read_run_last(folder: Path) -> float:
    from altgrad.storage.folder import Folder

    return float(read_run(Folder.at(folder)).table("steps", ["validation_loss"])["validation_loss"].to_pylist()[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_of_other_programs_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    source = build_gpt(SMALL.altered(seed=1, tied_head=True), 256)
    stored = {name: tensor.to(dtype) for name, tensor in source.state_dict().items() if name != "lm_head.weight"}
    write_safetensors(tmp_path / "a.safetensors", stored | {"h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool)})
    torch.save({"model": {f"_orig_mod.{n}": t for n, t in stored.items()}, "step": 7}, tmp_path / "b.pt")
    (tmp_path / "hub").mkdir()
    half = len(stored) // 2
    parts = {"x-1.safetensors": list(stored)[:half], "x-2.safetensors": list(stored)[half:]}
    for name, names in parts.items():
        write_safetensors(tmp_path / "hub" / name, {one: stored[one] for one in names})
    index = {"weight_map": {one: name for name, names in parts.items() for one in names}}
    (tmp_path / "hub" / "model.safetensors.index.json").write_text(json.dumps(index))
    for place in ("a.safetensors", "b.pt", "hub"):
        model = build_gpt(SMALL.altered(tied_head=True), 256)
        load_weights(model, stored_weights(str(tmp_path / place)))
        for name, tensor in model.state_dict().items():
            assert tensor.dtype == torch.float32 and torch.equal(tensor, source.state_dict()[name].to(dtype).float())


class Runs:
    """A pickle of it runs a command when it is read."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('ran')",)


def test_what_holds_no_weights_is_refused_in_one_line(trained: Path, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "cut.safetensors", {"a": torch.zeros(8)})
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-4])
    (tmp_path / "no.safetensors").write_bytes(b"not at all a header")
    torch.save({"model": Runs()}, tmp_path / "runs.pt")
    torch.save({"step": 3}, tmp_path / "empty.pt")
    refused = {
        f"{trained}@11": "has checkpoints of the steps 10, 12",
        f"{tmp_path}@3": "no run in",
        "nowhere.pt": "no such file or folder",
        str(tmp_path): "the folder has none of model.safetensors",
        str(tmp_path / "cut.safetensors"): "lies outside of the file",
        str(tmp_path / "no.safetensors"): "is no whole safetensors file",
        str(tmp_path / "runs.pt"): "is no PyTorch file of tensors",
        str(tmp_path / "empty.pt"): "holds no tensors by name",
    }
    for source, said in refused.items():
        with pytest.raises(ConfigError) as caught:
            stored_weights(source)
        assert said in str(caught.value) and "\n" not in str(caught.value), source


def test_weights_of_another_model_are_refused_before_any_is_copied() -> None:
    model = build_gpt(SMALL, 256)
    before = hash_weights(model)
    other = dict(build_gpt(SMALL.altered(n_layer=2), 256).state_dict())
    with pytest.raises(ConfigError, match=r"it has h\.1\.ln_1\.weight, .* and \d+ more"):
        load_weights(model, other)
    with pytest.raises(ConfigError, match=r"it lacks ln_f\.weight"):
        load_weights(model, {name: t for name, t in model.state_dict().items() if name != "ln_f.weight"})
    with pytest.raises(ConfigError, match=r"wte.weight is \(99, 32\) in the checkpoint and \(256, 32\)"):
        load_weights(model, dict(model.state_dict()) | {"wte.weight": torch.zeros(99, 32)})
    assert hash_weights(model) == before


def verdict(config: TrainConfig, start: float, fall: float, vocabulary: int | None) -> str | None:
    """The rule that judges a loss that falls by `fall` in 400 steps."""
    detector = CollapseDetector(config.altered(max_steps=400), vocabulary)
    for step in range(1, 401):
        noise = 0.02 * ((step * 7919) % 11 / 5 - 1)
        detector.update({"step": step, "loss": start - fall * min(1.0, step / 300) + noise})
    return None if detector.verdict is None else detector.verdict.rule


def test_a_fine_tune_is_not_judged_for_the_little_that_it_can_still_learn() -> None:
    fresh, tuned = TrainConfig(), TrainConfig(start_from="a.safetensors")
    assert verdict(fresh, 3.4, 0.1, 256) == "never_learned"
    for fall in (0.1, 0.0):  # it improves a little, or has converged already
        assert verdict(tuned, 3.4, fall, 256) is None and verdict(tuned, 40.0, fall, None) is None
    assert verdict(tuned, 5.545, 0.0, 256) == "never_learned"  # what it started from does not help: chance level
    assert verdict(tuned, 5.545, 2.0, 256) is None


def test_every_screen_says_which_weights_runs_started_from(tmp_path: Path) -> None:
    sweep = Folder.at(tmp_path / "s")
    for fmt in ("BF16", "E4M3"):
        verdict = Verdict(9, "stalled", "realised_displacement", 0.02, 0.1) if fmt == "E4M3" else None
        config = {"format": fmt, "start_from": "/far/away/trunk@300"}
        write_run(sweep, fmt, {9: 2.5}, config=config, status="collapsed" if verdict else "completed", verdict=verdict)
    runs, _ = list_runs(sweep)
    rows = comparison(runs)
    assert {row.started_from for row in rows} == {"trunk@300"} == {run.start_words for run in runs}
    assert "Started from" in comparison_markdown(rows) and "trunk@300" in comparison_csv(rows)
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(comparison_table(rows))
    assert "started from trunk@300" in console.export_text()
    assert "started from trunk@300" in group_board(rows, {}, lambda row: None)
    assert "| Started from | trunk@300 |" in failure_report(next(run for run in runs if run.name == "E4M3"))

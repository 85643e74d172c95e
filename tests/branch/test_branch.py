"""A branch starts where its parent was: unchanged it repeats it bit for bit, changed it differs by the change alone."""

from __future__ import annotations

import importlib
import inspect
import io
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from altgrad.__main__ import main
from altgrad.branch import Branch
from altgrad.branch.checkpoints import checkpoint_steps, kept
from altgrad.compare import comparison, comparison_markdown, comparison_table
from altgrad.config.train_config import ConfigError, load_config
from altgrad.experiment.checkpoints import checkpointing
from altgrad.experiment.checkpoints.checkpoint import load_checkpoint
from altgrad.results import read_run, read_start
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from altgrad.training.branch_state import adapted
from altgrad.training.trainer import Trainer
from tests.support.runs import own_tasks
from tests.support.runs.restored_runs import EVERYTHING, KAHAN, STEPS, Data, Net
from tests.support.runs.small_runs import SMALL, TIMED, losses

pytestmark = pytest.mark.long

AT = (4, 8, 12, 16, 20)
BEHIND = {step: 5.0 - step / 30 for step in range(1, STEPS + 1)}


@pytest.fixture
def all_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(checkpointing, "delete_old", lambda *_, **__: None)
    yield


def after(folder: Folder, step: int) -> dict[str, Any]:
    """All that a run's folder says of what came after a step, and the weights at its end."""
    run, found = read_run(folder), {}
    for name in ("steps", "layers", "tensors", "events"):
        table = run.table(name).to_pandas()
        table = table[table.step > step].reset_index(drop=True)
        found[name] = table.drop(columns=[c for c in ("attempt", "time", *TIMED) if c in table]).to_csv()
    state, _ = load_checkpoint(folder / "checkpoints")
    assert state is not None
    weights = [part.tolist() for part in state["trainer"]["model"].values()]
    return found | {"verdict": repr(run.verdict), "weights": repr(weights)}


@pytest.mark.parametrize("config", [EVERYTHING, KAHAN], ids=["stochastic", "kahan"])
def test_an_unchanged_branch_repeats_its_parent_bit_for_bit(config, all_kept, tmp_path):
    parent = Folder.at(tmp_path / "parent")
    own: dict[str, Any] = {"model": Net(), "batches": Data(), "baseline": BEHIND}
    run_format_experiment(config, parent, **own)
    assert checkpoint_steps(parent) == [*AT, STEPS]
    for step in AT:
        torch.manual_seed(step)
        branch = Folder.at(tmp_path / f"from-{step}")
        run_format_experiment(None, branch, branch=Branch(parent, step), **(own | {"model": Net()}))
        assert after(branch, 0) == after(parent, step), step
        assert read_start(branch)["branch"] == {"parent": str(parent), "run": "parent", "step": step, "changes": {}}


def test_a_branch_judges_the_steps_before_it_by_a_baseline_that_its_parent_did_not_know(all_kept, tmp_path):
    config = SMALL.altered(max_steps=20, gap_patience=12, gap_limit=0.01, never_learned_fraction=1.0)
    behind = {step: 1.0 for step in range(1, 21)}
    run_format_experiment(config, tmp_path / "parent")
    whole = run_format_experiment(config, tmp_path / "known", baseline=behind)
    branch = Branch(Folder.at(tmp_path / "parent"), 10)
    found = run_format_experiment(None, tmp_path / "branch", branch=branch, baseline=behind)
    assert whole.verdict is not None and whole.verdict.rule == "gap_to_baseline" and whole.verdict.step > 10
    assert found.verdict == whole.verdict


PARENT = SMALL.altered(format="E0M7", scaling="delayed", master_weights=False, checkpoint_interval=4, max_steps=12)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder.at(tmp_path_factory.mktemp("branch") / "parent")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpointing, "delete_old", lambda *_, **__: None)
        run_format_experiment(PARENT, folder)
    return folder


CHANGES: dict[str, Any] = {
    "format": "E5M2",
    "master_weights": True,
    "rounding": "stochastic",
    "amax_factor": 0.25,
    "learning_rate": 1e-4,
    "update_rounding": "stochastic",
    "weight_decay": 0.0,
    "layer_gemms": {"*": {"wgrad": {"gradient": {"format": "BF16"}}}},
    "enable_emergency_shift": True,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_branch_begins_with_the_parents_weights_under_the_new_fields(name, parent, tmp_path):
    run_format_experiment(None, tmp_path / "run", branch=Branch(parent, 8, **{name: CHANGES[name]}))
    run = read_run(Folder.at(tmp_path / "run"))
    rows = run.table("steps", ["loss", "tokens"]).to_pylist()
    theirs = [row for row in read_run(parent).table("steps", ["loss", "tokens"]).to_pylist() if row["step"] > 8]
    assert [(row["step"], row["tokens"]) for row in rows] == [(row["step"], row["tokens"]) for row in theirs]
    assert run.info["branch"]["changes"] == {name: CHANGES[name]}
    own, before = ([row["loss"] for row in table] for table in (rows, theirs))
    if name == "enable_emergency_shift":  # has no reason to act
        assert own == before
    elif name in ("format", "rounding", "amax_factor"):
        assert own[0] != before[0]
    else:  # acts behind the forward pass, so that the first loss is the parent's
        assert own[0] == before[0] and own[1:] != before[1:]


def test_a_branch_into_a_format_stores_its_weights_on_the_new_grid(tmp_path, all_kept):
    run_format_experiment(SMALL, tmp_path / "trunk")
    trunk = Folder.at(tmp_path / "trunk")
    branch = Branch(trunk, 5, format="E3M4", master_weights=False, update_rounding="stochastic")
    run_format_experiment(None, tmp_path / "run", branch=branch)
    rows = read_run(Folder.at(tmp_path / "run")).table("steps", ["loss"]).to_pylist()
    state, _ = load_checkpoint(trunk / "checkpoints", 5)
    assert state is not None
    trainer = Trainer(branch.config().altered(branch_from=None))
    trainer.model.load_state_dict(state["trainer"]["model"])
    assert trainer.quantized.write_back is not None
    trainer.quantized.begin_step(None, 5)
    trainer.quantized.write_back()
    trainer.step_number = 5
    assert rows[0] == {"step": 6, "attempt": 0, "loss": trainer.step().record["loss"]}


def test_batches_are_left_out_from_the_branch_on(parent, monkeypatch, tmp_path):
    seen: list[int] = []
    real = Data().training

    class Noted(Data):
        def training(self, step: int) -> Any:
            seen.append(step)
            return real(step)

    run_format_experiment(EVERYTHING.altered(max_steps=4), tmp_path / "own", model=Net(), batches=Noted())
    branch = Branch(Folder.at(tmp_path / "own"), 4, max_steps=7, skip_batches=20)
    run_format_experiment(None, tmp_path / "branch", branch=branch, model=Net(), batches=Noted())
    assert [step for step in seen if step < 1000] == [1, 2, 3, 4, 25, 26, 27]  # 1000: held out


def test_amax_histories_are_taken_by_rounding_and_length(parent):
    state, _ = load_checkpoint(parent / "checkpoints", 8)
    assert state is not None
    kept = state["trainer"]["quantized"]["histories"]
    assert len(kept) == 2 * len(read_start(parent)["layers"]) and all(len(one) == 16 for one in kept.values())
    for changes, length, taken in (({"amax_history": 3}, 3, 3), ({"amax_history": 20}, 20, 16), ({}, 16, 0)):
        config = PARENT.altered(**changes)
        forget = () if changes else ("histories",)
        found = adapted(state["trainer"], Trainer(config).state_dict(), PARENT, config, forget)
        for name, history in found["quantized"]["histories"].items():
            assert history.tolist() == kept[name].tolist()[:taken] + [0.0] * (length - taken)
            assert any(kept[name].tolist()[:8])


def test_the_comparison_pairs_branches_with_the_branch_of_the_baseline(tmp_path, all_kept):
    trunk, sweep = Folder.at(tmp_path / "trunk"), tmp_path / "sweep"
    run_format_experiment(SMALL, trunk)
    for name in ("BF16", "E4M3"):
        run_format_experiment(None, sweep / name, branch=Branch(trunk, 5, format=name))
    rows = {row.run: row for row in comparison([read_run(Folder.at(sweep / n)) for n in ("BF16", "E4M3")])}
    alone = comparison([read_run(trunk), read_run(Folder.at(sweep / "E4M3"))])
    assert rows["E4M3"].baseline == "BF16" and rows["E4M3"].gap is not None
    assert [row.gap for row in alone if row.run == "E4M3"] == [None]
    # the branch that nothing changes is the trunk's own continuation, so the gap is that to the trunk, at its step
    of_trunk = {row["step"]: row["validation_loss"] for row in losses(read_run(trunk))}
    assert rows["E4M3"].gap_step == 12 and rows["BF16"].step_loss == of_trunk[12]
    assert rows["E4M3"].gap == rows["E4M3"].validation_loss - of_trunk[12]
    assert {row.branched_from for row in rows.values()} == {"trunk at step 5"}
    console = Console(width=250, file=io.StringIO())
    console.print(comparison_table(list(rows.values())))
    assert "branched from trunk at step 5" in console.file.getvalue()
    assert "Branched from" in comparison_markdown(alone)


WRONG = {
    "step": (lambda parent: Branch(parent, 7), "no checkpoint of step 7; there: 4, 8, 12; 0 starts"),
    "no step": (lambda parent: Branch(parent, 12), "max_steps=12 and a branch from step 12 of"),
    "seed": (lambda parent: Branch(parent, 8, seed=1), "rounding_seed changes the random numbers of rounding"),
    "model": (lambda parent: Branch(parent, 8, n_embd=16), "n_embd=16: a branch of"),
    "field": (lambda parent: Branch(parent, 8, formt="E4M3"), "formt"),
    "run": (lambda parent: Branch(parent / "none", 8), "none: no checkpoint of step 8; there is none"),
    "none": (lambda parent: Branch(parent / "none", 0), "no run.json in it; give the folder of a run"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_branch_cannot_do_is_one_line(case, parent, tmp_path):
    make, said = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        run_format_experiment(None, tmp_path / "run", branch=make(parent))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_branch_with_other_data_or_of_another_version_is_refused(parent, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="its run began with other"):
        run_format_experiment(None, tmp_path / "run", branch=Branch(parent, 8), batches=Data(), model=Net())
    name = next(info.base_name for info in (parent / "checkpoints").list() if "08-" in info.base_name)
    content = (parent / "checkpoints").read_bytes(name)
    copied = Folder.at(tmp_path / "copied")
    copied.write_bytes("run.json", parent.read_bytes("run.json"))
    (copied / "checkpoints").write_bytes(name, content[:-1])
    with pytest.raises(ValueError, match="no intact checkpoint of step 8"):
        run_format_experiment(None, tmp_path / "other", branch=Branch(copied, 8))
    state, _ = load_checkpoint(parent / "checkpoints", 8)
    assert state is not None
    del state["trainer"]["quantized"]
    monkeypatch.setattr(checkpointing, "load_checkpoint", lambda *_: (state, []))
    with pytest.raises(ValueError, match="another version's"):
        run_format_experiment(None, tmp_path / "third", branch=Branch(parent, 8))


def test_a_branch_after_the_task_was_changed_is_refused(tmp_path, monkeypatch):
    """Weights and batches are the same, but the model is another."""
    source = inspect.getsource(own_tasks)
    assert "nn.ReLU()" in source
    monkeypatch.syspath_prepend(tmp_path)
    for text, changed in ((source, False), (f"# a word\n{source}", False), (source.replace("nn.ReLU", "nn.ELU"), True)):
        (tmp_path / "task_of_ours.py").write_text(text)
        monkeypatch.delitem(sys.modules, "task_of_ours", raising=False)
        importlib.invalidate_caches()
        if not (tmp_path / "parent").exists():
            config = SMALL.altered(task="task_of_ours:Quadrants", task_args={"width": 4}, batch_size=12)
            run_format_experiment(config, tmp_path / "parent")
        branch = Branch(tmp_path / "parent", 10, format="E4M3")
        with pytest.raises(ValueError, match="other source of the task") if changed else nullcontext():
            run_format_experiment(None, tmp_path / f"branch{changed}{len(text)}", branch=branch)


def test_a_branch_that_was_refused_begins_once_its_data_are_back(parent, tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="its run began with other"):
            run_format_experiment(None, tmp_path / "run", branch=Branch(parent, 8), batches=Data(), model=Net())
    found = run_format_experiment(None, tmp_path / "run", branch=Branch(parent, 8, format="E4M3"))
    assert found.status == "completed" and read_run(found.folder).info["attempt"] == 2
    with pytest.raises(ConfigError, match="holds a run that has ended"):
        run_format_experiment(None, tmp_path / "run", branch=Branch(parent, 8))


def test_the_command_and_the_config_file_branch_alike(parent, tmp_path, capsys):
    words = ["branch", str(parent), "--at", "8", "--set", "format=E5M2", "--out", str(tmp_path / "typed")]
    assert main(words) == 0
    (tmp_path / "own.yaml").write_text(f"format: E5M2\nbranch_from: {{run: {parent}, step: 8}}\n")
    assert load_config(tmp_path / "own.yaml").branch_from == {"run": str(parent), "step": 8}
    assert main(["train", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "read")]) == 0
    one, other = Folder.at(tmp_path / "typed"), Folder.at(tmp_path / "read")
    assert after(one, 0)["steps"] == after(other, 0)["steps"]
    assert main(["branch", str(parent), "--at", "7", "--out", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not Path(tmp_path / "none").exists()


def test_a_run_keeps_one_checkpoint_per_octave_of_age_and_never_misses_one_that_it_deleted():
    interval = 100
    there: set[int] = set()
    for step in range(interval, 300 * interval, interval):
        there.add(step)
        there = kept(there, interval)
        ages = sorted((step - one) // interval for one in there)
        assert ages[0] == 0 and len(ages) <= 6
        for wanted in range(1, min(16, step // interval)):
            assert any(wanted <= age < 4 * wanted for age in ages) or 4 * wanted > step // interval
    assert kept({100, 200, 300, 400, 500}, 100, "newest") == {400, 500}

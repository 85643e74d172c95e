"""Tasks on the command line: options, entry points, what is sent to a cluster, one line for what is wrong."""

from __future__ import annotations

import inspect
from importlib import metadata
from pathlib import Path

import pytest

from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.results import read_run
from altgrad.storage.folder import Folder
from altgrad.training.task.found_task import find_task
from tests.support.commands import altgrad
from tests.support.runs import own_tasks
from tests.support.runs.small_runs import set_words
from tune.cluster.sent_code import places_of, sent_code
from tune.plan.inputs import check_inputs
from tune.plan.options import parse_options
from tune.plan.resources.machine import Machine
from tune.plan.trials import plan_sweep

SHORT = ["--set", *set_words(max_steps=4, diagnostic_interval=2, eval_interval=2, eval_batches=1, compile=False)]
HERE = Machine(cpus=2, gpus=0, gpu_note="no CUDA GPU found")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a task in a module of it."""
    (tmp_path / "task_of_mine.py").write_text(inspect.getsource(own_tasks))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_task_is_trained_by_its_name(folder: Path) -> None:
    words = ["--task", "task_of_mine:Quadrants", "--task-arg", "width=8", "--out", "out", *SHORT]
    done = altgrad("train", "bf16_baseline", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    run = read_run(Folder.at(folder / "out"))
    assert run.config["task_args"] == {"width": 8} and run.loss_unit == "nats" and run.info["vocabulary"] == 4
    done = altgrad("train", "bf16_baseline", "--task", "task_of_mine:products", "--out", "other", *SHORT, cwd=folder)
    assert done.returncode == 0 and "no validation loss" in done.stdout, done.stderr
    assert read_run(Folder.at(folder / "other")).loss_unit == "squared error"


def test_a_wrong_task_is_one_line_and_writes_nothing(folder: Path) -> None:
    for task, said in (("task_of_mine:Quadrant", "did you mean 'Quadrants'?"), ("not_here:x", "no module 'not_here'")):
        done = altgrad("train", "bf16_baseline", "--task", task, "--out", "out", *SHORT, cwd=folder)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (folder / "out").exists()


def test_a_sweep_s_task_is_checked_before_anything_starts(folder: Path) -> None:
    words = ["--task", "task_of_mine:Quadrants", "--formats", "E4M3", *SHORT]
    plan = plan_sweep(parse_options([*words, "--task-arg", "count=40"]), HERE)
    assert {trial.config.task for trial in plan.trials} == {"task_of_mine:Quadrants"} and len(plan.trials) == 2
    assert check_inputs(plan.trials, HERE) == []
    for wrong, said in (("count=0", "is empty"), ("wide=3", "it takes width, count")):
        plan = plan_sweep(parse_options([*words, "--task-arg", wrong]), HERE)
        with pytest.raises(ConfigError, match=said):
            check_inputs(plan.trials, HERE)


def test_trials_on_gpus_that_torch_cannot_use_are_refused_before_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"2 CUDA GPUs found, but torch .* cannot use any"):
        check_inputs([], Machine(cpus=2, gpus=2, gpu_note="2 CUDA GPUs found"), uses_gpus_here=True)


def test_the_module_of_a_task_is_sent_to_a_cluster_unless_it_is_there(folder: Path) -> None:
    package = folder / "package_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    tasks = ("task_of_mine:Quadrants", "package_of_mine.part:task", "gpt", "regression", "altgrad.tasks.regression", "")
    assert places_of(tasks) == [folder / "task_of_mine.py", package]
    assert places_of(["numpy:array", "json", "tests.support.runs.own_tasks:products", "no_such_module:task"]) == []
    with sent_code(tasks) as sent:
        assert sent["py_modules"] == [str(folder / "task_of_mine.py"), str(package)] and "working_dir" in sent
    with sent_code(["gpt"]) as sent:
        assert "py_modules" not in sent


def test_an_installed_package_names_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("quadrants", "tests.support.runs.own_tasks:Quadrants", "altgrad.tasks")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == "altgrad.tasks" else [])
    found = find_task(TrainConfig(task="quadrants", task_args={"width": 9}))
    assert isinstance(found.task, own_tasks.Quadrants) and found.task.width == 9
    with pytest.raises(ConfigError, match="did you mean 'quadrants'"):
        find_task(TrainConfig(task="quadrant"))

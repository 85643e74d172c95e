"""Every wrong wish is refused in one line before anything starts, and leaves nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from altgrad.config.train_config import ConfigError
from tests.support.runs.sweep_plans import CPU_BOX, planned, write_config
from tune.sweep import main

BAD: dict[str, tuple[list[str], str]] = {
    "unknown format": (["--formats", "E4M33"], "E4M33"),
    "too many bits": (["--formats", "E9M9"], "from 1 to 15"),
    "misspelt field": (["--set", "learnin_rate=1"], "did you mean 'learning_rate'"),
    "misspelt option": (["--fromats", "E4M3"], "did you mean --formats"),
    "bad value": (["--set", "batch_size=many"], "batch_size='many'"),
    "no yaml": (["--set", "data={"], "--set"),
    "no equals sign": (["--set", "data"], "KEY=VALUE"),
    "native path of another format": (["--formats", "E3M4", "--set", "native_fp8=true"], "native_fp8=True: E3M4"),
    "graphs without a GPU": (["--set", "cuda_graphs=true"], "no CUDA GPU found"),
    "given twice": (["--max-steps", "5", "--set", "max_steps=6"], "give one of them"),
    "missing config": (["--configs", "no/such.yaml"], "no/such.yaml"),
    "misspelt config": (["--configs", "e7m0_storde"], "did you mean 'e7m0_stored'?"),
    "misspelt rate": (["--lr", "fast"], "'fast': expected a number above 0, or auto"),
    "unknown intervention": (["--interventions", "prayer"], "known: none, clip"),
    "no seeds": (["--seeds", "0"], "from 1"),
    "gpu without gpu": (["--gpus-per-trial", "1"], "no CUDA GPU found"),
    "more cores than there are": (["--cpus-per-trial", "4096"], "CPU cores"),
    "resume of nothing": (["--resume"], "--resume: no sweep in"),
    "resume of a name": (["--resume", "fp4"], "--resume fp4: no sweep in"),
    "name outside": (["--name", "../elsewhere"], "--name"),
    "hidden name": (["--name", ".hidden"], "--name"),
    "missing data": (["--data", "no/such/text"], "no/such/text"),
    "unknown model": (["--model", "huge"], "known: micro"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_wish_is_one_line_exit_code_2_and_leaves_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = BAD[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tune.sweep.this_machine", lambda: CPU_BOX)
    try:
        code = main([*arguments, "--results", "out"])
    except SystemExit as stop:  # argparse
        code = int(str(stop.code))
    shown = capsys.readouterr()
    assert code == 2
    assert len(shown.err.strip().splitlines()) == 1 and expected in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "expected"), [("", "empty"), ("short", "fewer than one block")], ids=["empty", "shorter than a block"]
)
def test_a_text_that_cannot_be_trained_on_is_refused_before_anything_is_created(
    content: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(content)
    assert main(["--data", str(text), "--results", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert len(shown.err.strip().splitlines()) == 1 and expected in shown.err
    assert not (tmp_path / "out").exists()


def test_a_results_root_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert main(["--results", str(tmp_path / "file"), "--formats", "E4M3"]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and str(tmp_path / "file") in error


def test_a_read_only_results_root_is_one_line_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    def started(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("altgrad.storage.folder.os.makedirs", refuse)
    monkeypatch.setattr("altgrad.storage.folder.open", refuse, raising=False)
    monkeypatch.setattr("tune.cluster.ray_session.local_ray", started)
    for root in (tmp_path, tmp_path / "new" / "root"):
        assert main(["--results", str(root), "--formats", "E4M3", "--max-steps", "2"]) == 2
        error = capsys.readouterr().err
        assert len(error.strip().splitlines()) == 1 and "Read-only file system" in error and str(root) in error
    assert not list(tmp_path.iterdir())


def test_an_error_in_a_config_file_names_the_file(tmp_path: Path) -> None:
    file = write_config(tmp_path, "mine", formt="E4M3")
    with pytest.raises(ConfigError, match=r"mine\.yaml: formt: unknown field; did you mean 'format'"):
        planned("--configs", str(file))

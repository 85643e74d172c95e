"""Whatever a record holds: no reader ends in a traceback, the run is named in a line, and the others are shown."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from altgrad.__main__ import main
from altgrad.compare import comparison
from altgrad.config.train_config import ConfigError
from altgrad.experiment.attempts import next_attempt
from altgrad.html import write_html_report
from altgrad.report import sweep_report
from altgrad.results import RecordError, list_runs, read_run
from altgrad.results.stop_request import stop_request, stop_sentence
from altgrad.show.sweep_progress import planned_runs
from altgrad.storage.folder import Folder
from dashboard.data.watched_sweep import WatchedSweep
from tests.support.results import generated_results as generated
from tests.support.results.corruptions import corruptions
from tune.plan.options import SweepError, SweepOptions
from tune.plan.sweep_record import open_sweep
from tune.sweep import main as sweep_main

pytestmark = pytest.mark.long

TARGET, OTHERS = "e7m0_lr0.0006_s1", ("bf16_lr0.0006_s1", "e4m3_lr0.0006_s1")
SHORT = {"steps": 20, "eval_interval": 10, "diagnostic_interval": 10}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of a baseline, a run that collapsed (the target) and one that was killed."""
    root = tmp_path_factory.mktemp("sound")
    runs = {name: generated.InventedRun(name, seed=1, **SHORT) for name in ("BF16", "E7M0", "E4M3")}  # type: ignore[arg-type]
    sweep = generated.new_sweep(root, "s")
    plan = [
        {"run": run.name, "intervention": "none", "baseline": None, "config": run.config.model_dump()}
        for run in runs.values()
    ]
    record = {"schema": 1, "sweep": "s", "created": 1.5, "command": "python tune/sweep.py", "runs": plan}
    sweep.write_json("sweep.json", record)
    generated.write_run(sweep, runs["BF16"])
    generated.write_run(sweep, runs["E7M0"], "collapsed", verdict=generated.STALLED)
    generated.write_run(sweep, runs["E4M3"], "open", until=10)
    (sweep / TARGET).write_json("stop.json", {"requested": 1.5, "reason": "enough"})
    return root


@pytest.fixture
def sweep(sound: Path, tmp_path: Path) -> Folder:
    shutil.copytree(sound / "s", tmp_path / "s")
    return Folder.at(tmp_path / "s")


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """What a command said on stderr, without what an earlier test's webhook says late."""
    lines = capsys.readouterr().err.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("--notify"))


def check_command_line(sweep: Folder, capsys: pytest.CaptureFixture[str], broken: bool) -> None:
    """status, report, stop and a resumed plan: at most one line of error, and the target named where it is broken."""
    words = {"status": ["status", str(sweep)], "report": ["report", str(sweep)]}
    for name, arguments in words.items():
        assert main(arguments) == 0
        shown = capsys.readouterr()
        assert "altgrad:" not in shown.err and all(run in shown.out for run in (TARGET, *OTHERS)), name
        assert ("unreadable" in shown.out or "cannot be read" in shown.out) == broken, name
    for arguments in (["report", str(sweep / TARGET)], ["stop", str(sweep / TARGET)]):
        code, error = main(arguments), error_of(capsys)
        assert code == 0 or (code == 2 and error.count("\n") == 1 and TARGET in error)
    assert sweep_main(["--resume", "--dry-run", "--results", str(sweep.parent)]) == 0
    assert "Traceback" not in capsys.readouterr().err


def check_readers(sweep: Folder, page: Path) -> bool:
    """The readers inside the program; whether the target counts as unreadable."""
    runs, broken = list_runs(sweep)
    assert {run.folder.name for run in runs} | set(broken) == {TARGET, *OTHERS}
    assert not set(broken) - {TARGET} and all("\n" not in reason and len(reason) < 500 for reason in broken.values())
    assert len(comparison(runs)) == len(runs)
    sweep_report(sweep)
    write_html_report(sweep, str(page))
    assert TARGET in page.read_text()
    watched = WatchedSweep(sweep)
    watched.refresh()
    assert watched.broken.keys() == broken.keys() and len(comparison(watched.runs)) == len(runs)
    unfinished = [trial.run for trial in open_sweep(SweepOptions(results=str(sweep.parent), resume="s")).unfinished()]
    assert OTHERS[1] in unfinished and OTHERS[0] not in unfinished
    for name, reason in broken.items():
        assert f"{name}/" in reason
    config = generated.InventedRun("E7M0", seed=1, **SHORT).config  # type: ignore[arg-type]
    try:
        next_attempt(sweep / TARGET, config)
    except ConfigError as error:
        assert TARGET in str(error) and "\n" not in str(error)
    return bool(broken)


@pytest.mark.parametrize("file", ["run.json", "end.json"])
def test_a_damaged_record_of_a_run_is_one_line_and_the_others_are_shown(
    file: str, sweep: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, counted = (sweep / TARGET).read_bytes(file), 0
    for number, (what, damaged) in enumerate(corruptions(content)):
        if number > 400 and number % 3:  # a field has 13 to 16 cases: enough of each, and of each field
            continue
        (sweep / TARGET).write_bytes(file, damaged)
        try:
            broken = TARGET in list_runs(sweep)[1]
            if number < 20 or number % 48 == 0:  # of all readers each
                assert check_readers(sweep, tmp_path / "page.html") == broken
            if number < 10 or number % 240 == 0:
                check_command_line(sweep, capsys, broken)
        except Exception as error:
            raise AssertionError(f"{file}: {what}: {type(error).__name__}: {error}") from error
        counted += broken
    assert counted > 100, "damage must be seen"


def test_a_damaged_end_record_leaves_the_run_to_be_done_again(sweep: Folder) -> None:
    for what, damaged in corruptions((sweep / TARGET).read_bytes("end.json")):
        (sweep / TARGET).write_bytes("end.json", damaged)
        _, broken = list_runs(sweep)
        if TARGET in broken:
            found = open_sweep(SweepOptions(results=str(sweep.parent), resume="s"))
            assert TARGET in [trial.run for trial in found.unfinished()], what


def test_a_damaged_plan_is_one_line(sweep: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (what, damaged) in enumerate(corruptions(sweep.read_bytes("sweep.json"))):
        if number > 60 and number % 11:
            continue
        sweep.write_bytes("sweep.json", damaged)
        planned_runs(sweep)
        WatchedSweep(sweep).refresh()
        for command in (lambda: main(["status", str(sweep)]), _resumed(sweep)):
            code, error = command(), error_of(capsys)
            assert code in (0, 2) and error.count("\n") == (code == 2), (what, error)
            assert code == 0 or "sweep.json" in error, what


def _resumed(sweep: Folder) -> Callable[[], int]:
    def resume() -> int:
        try:
            open_sweep(SweepOptions(results=str(sweep.parent), resume="s"))
        except (SweepError, ConfigError):
            return sweep_main(["--resume", "--dry-run", "--results", str(sweep.parent)])
        return 0

    return resume


def test_a_damaged_request_to_stop_is_a_request(sweep: Folder) -> None:
    for what, damaged in corruptions((sweep / TARGET).read_bytes("stop.json")):
        (sweep / TARGET).write_bytes("stop.json", damaged)
        request = stop_request(sweep / TARGET)
        assert request is not None, what
        assert stop_sentence(request).startswith("stop requested"), what


def test_the_reader_of_records_says_file_field_value_and_what_was_expected(sweep: Folder) -> None:
    for change, said in {
        '"max_steps": 20': ('"max_steps": "20"', "config.max_steps='20': input should be a valid integer"),
        '"started": ': ('"begun": ', "it lacks started"),
        '"schema": 1': ('"schema": 99', "schema 99; this version reads schema 1"),
        '"attempt": 0': ('"attempt": ' + "9" * 60, "attempt=9"),
    }.items():
        whole = (sweep / TARGET).read_bytes("run.json").decode()
        (sweep / TARGET).write_bytes("run.json", whole.replace(change, said[0], 1).encode())
        with pytest.raises(RecordError) as caught:
            read_run(sweep / TARGET)
        assert str(caught.value).startswith(f"{sweep / TARGET / 'run.json'}: {said[1]}")
        (sweep / TARGET).write_bytes("run.json", whole.encode())

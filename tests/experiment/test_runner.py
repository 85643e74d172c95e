"""One run from its first step to its end record, on a model of ten numbers: what is told, stored and kept, and when."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from altgrad.experiment import runner
from altgrad.experiment.outcome import LossSummary, Report
from altgrad.results import Lease, LeaseHeld, read_lease, read_run
from altgrad.results.stop_request import request_stop
from altgrad.storage.folder import Folder
from tests.support.runs.told_runs import CONFIG, Net, checkpoints, column, end_of, told_run


def test_a_completed_run_tells_and_stores_each_step_once(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")
    stored: list[list[int]] = []

    def hear(news: Report) -> None:
        stored.append(column(folder, "step"))

    result, told = told_run(folder, hear=hear, baseline={1: 1.0, 2: 100.0}, resources={"cpus": 1.0, "gpus": 0.0})
    assert [(news.step, news.max_steps, news.status, news.verdict) for news in told] == [
        (3, 7, "running", None), (6, 7, "running", None), (7, 7, "completed", None),
    ]  # fmt: skip
    assert [[row["step"] for row in news.rows] for news in told] == [[1, 2, 3], [4, 5, 6], [7]]
    assert stored == [[1, 2, 3], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]], "who is told can read it already"
    records = {row["step"]: row for news in told for row in news.rows}
    assert [step for step, record in records.items() if "cpu_utilisation" in record] == [3, 6]
    assert [step for step, record in records.items() if "gap_to_baseline" in record] == [1, 2]
    assert records[1]["gap_to_baseline"] == pytest.approx(records[1]["loss"] - 1), "the average of a first loss is it"
    losses = [records[step]["loss"] for step in range(1, 8)]
    assert column(folder, "loss") == losses and min(losses) not in (losses[0], losses[-1])
    assert [step for step, record in records.items() if "validation_loss" in record] == [3, 6, 7]
    assert set(column(folder, "step", "layers")) == {2, 4, 6, 7} and set(column(folder, "step", "tensors")) == {2}
    end = end_of(folder)
    assert (end["status"], end["verdict"]) == ("completed", None)
    assert end["summary"] == {
        "steps": 7, "final_loss": losses[-1], "best_loss": min(losses), "seconds": records[7]["elapsed_seconds"],
        "final_validation_loss": records[7]["validation_loss"],
        "formats": {
            layer: {site: ["BF16", "inf"] for site in ("weight", "activation", "gradient")}
            for layer in ("first", "second")
        },
    }  # fmt: skip
    assert (result.status, result.steps, result.final_loss) == ("completed", 7, losses[-1])
    assert (result.best_loss, result.final_validation_loss) == (min(losses), records[7]["validation_loss"])
    assert checkpoints(folder) == [4, 7] and column(folder, "kind", "events") == []
    assert read_lease(folder) is None and not folder.has("failure_report.md")


def test_a_run_whose_last_step_is_one_of_its_reports_tells_it_once(tmp_path: Path) -> None:
    _, told = told_run(tmp_path / "run", config=CONFIG.altered(max_steps=3))
    assert [(news.step, news.status) for news in told] == [(3, "completed")]


@pytest.mark.parametrize(("stop", "steps"), [(True, 5), (False, 7)])
def test_a_verdict_is_recorded_once_and_ends_the_run_unless_it_shall_go_on(
    stop: bool, steps: int, tmp_path: Path
) -> None:
    folder = Folder.at(tmp_path / "run")
    result, told = told_run(folder, bad=4, config=CONFIG.altered(stop_on_collapse=stop))
    assert (result.status, result.steps, end_of(folder)["status"]) == ("collapsed", steps, "collapsed")
    assert result.verdict is not None and (result.verdict.step, result.verdict.rule) == (5, "non_finite")
    assert [news.verdict and news.verdict.rule for news in told] == [None, *["non_finite"] * (len(told) - 1)]
    assert [news.step for news in told] == ([3, 5] if stop else [3, 6, 7])
    events = read_run(folder).table("events").to_pandas()
    found = list(zip(events["kind"], events["step"], strict=True))
    assert [step for kind, step in found if kind == "verdict"] == [5]
    assert [step for kind, step in found if kind == "skip"] == list(range(4, steps + 1))
    assert checkpoints(folder) == ([4, 5] if stop else [4, 7])
    assert b"non_finite" in folder.read_bytes("failure_report.md")
    summary = end_of(folder)["summary"]
    assert math.isnan(summary["final_loss"]) and summary["best_loss"] == min(column(folder, "loss")[:3])
    assert "reason" not in summary


def test_a_request_to_stop_is_heeded_at_the_next_report_and_gives_the_reason(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")

    def hear(news: Report) -> None:
        if news.status == "running":
            request_stop(folder, "the room is needed")

    result, told = told_run(folder, hear=hear)
    assert (result.status, result.steps) == ("stopped", 3) and [news.step for news in told] == [3, 3]
    assert end_of(folder)["summary"]["reason"] == "stop requested: the room is needed"


class OutOfLuck(RuntimeError):
    pass


@pytest.mark.parametrize(("message", "said"), [("out of\n  luck", "out of luck"), ("", "OutOfLuck")])
def test_a_failure_is_recorded_in_one_line_with_its_trace_and_raised_as_it_was(
    message: str, said: str, tmp_path: Path
) -> None:
    folder = Folder.at(tmp_path / "run")

    def hear(news: Report) -> None:
        raise OutOfLuck(message)

    with pytest.raises(OutOfLuck) as caught:
        told_run(folder, hear=hear)
    assert str(caught.value) == message
    end = end_of(folder)
    assert (end["status"], end["summary"]["error"]) == ("failed", f"OutOfLuck: {said}")
    assert "in hear" in end["summary"]["traceback"] and read_lease(folder) is None
    assert column(folder, "step") == [1, 2, 3]


def test_a_failure_before_the_first_record_leaves_no_end_without_a_start(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")
    with pytest.raises(ValueError, match="this run holds 1 GPU"):
        told_run(folder, resources={"gpus": 1.0}, config=CONFIG.altered(device="cpu"))
    assert not folder.has("end.json") and read_lease(folder) is None


def test_a_run_that_lost_its_folder_to_another_process_stops_at_its_next_report_and_records_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = Folder.at(tmp_path / "run"), []

    def check(lease: Lease) -> None:
        if told:
            raise LeaseHeld("another has it")

    monkeypatch.setattr(Lease, "check", check)
    with pytest.raises(LeaseHeld):
        told_run(folder, hear=told.append)
    assert [news.step for news in told] == [3] and not folder.has("end.json")


def test_a_run_trains_on_the_threads_of_its_config_and_gives_them_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    net = Net()
    told_run(tmp_path / "run", model=net, config=CONFIG.altered(threads=before + 1, max_steps=1))
    assert net.threads == {before + 1} and torch.get_num_threads() == before


def test_storage_that_cannot_be_asked_for_a_stop_request_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Folder, sweep: Folder | None) -> None:
        raise PermissionError("503")

    monkeypatch.setattr(runner, "stop_request", refuse)
    assert told_run(tmp_path / "run")[0].status == "completed"


def test_the_losses_of_a_run_by_hand() -> None:
    seen = LossSummary()
    assert (seen.final, seen.best, seen.validation) == (None, None, None)
    kept = []
    for loss, validation in (
        (math.nan, None),
        (3.0, None),
        (1.0, 4.0),
        (2.0, None),
        (-math.inf, 5.0),
        (math.inf, None),
    ):
        seen.add({"loss": loss} | ({} if validation is None else {"validation_loss": validation}))
        kept.append(seen.state_dict())
    assert [state["final"] for state in kept][1:] == [3.0, 1.0, 2.0, -math.inf, math.inf]
    assert [state["best"] for state in kept] == [None, 3.0, 1.0, 1.0, 1.0, 1.0]
    assert [state["validation"] for state in kept] == [None, None, 4.0, 4.0, 5.0, 5.0]
    again = LossSummary()
    again.load_state_dict(kept[3])
    again.add({"loss": 0.5})
    assert again.state_dict() == {"final": 0.5, "best": 0.5, "validation": 4.0}

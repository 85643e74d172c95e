"""One run from its first step to its end record, on a model of ten numbers: what is told, stored and kept, and when."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.experiment import checkpointing, runner
from altgrad.experiment.outcome import ExperimentResult, LossSummary, Report
from altgrad.results import Lease, LeaseHeld, RunWriter, read_lease, read_run
from altgrad.results.stop_request import request_stop
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from tests.support.small_runs import SMALL

CONFIG = SMALL.altered(
    format="BF16", learning_rate=0.01, n_layer=None, batch_size=2, max_steps=7, eval_interval=3, diagnostic_interval=2,
    checkpoint_interval=4, non_finite_patience=2, schedule="constant", warmup_steps=0,
)  # fmt: skip


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        for number, parameter in enumerate(self.parameters()):
            nn.init.constant_(parameter, 0.5 + number / 4)
        self.threads: set[int] = set()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.threads.add(torch.get_num_threads())
        return ((self.second(self.first(x)) - y) ** 2).mean()


class Data:
    """Targets of another height at every step; NaN from step `bad` on."""

    vocabulary = None

    def __init__(self, bad: float = math.inf) -> None:
        self._bad = bad

    def training(self, step: int) -> tuple[Tensor, Tensor]:
        x = torch.tensor([[1.0, 0.5], [0.25, -1.0]])
        return x, torch.full((2, 2), math.nan if step >= self._bad else (3.0, 1.0, 2.0)[step % 3])

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        return [self.training(0)]

    def digest(self) -> str:
        return "heights"


def run(
    folder: Path | Folder, bad: float = math.inf, hear: Callable[[Report], None] | None = None, **own: Any
) -> tuple[ExperimentResult, list[Report]]:
    """The result of a run that reports every three steps, and its reports."""
    told: list[Report] = []

    def report(news: Report) -> None:
        told.append(news)
        if hear is not None:
            hear(news)

    config = own.pop("config", CONFIG)
    options: dict[str, Any] = {"model": Net(), "batches": Data(bad), "report": report, "report_interval": 3} | own
    return run_format_experiment(config, folder, **options), told


def column(folder: Folder, name: str, table: Any = "steps") -> list[Any]:
    return read_run(folder).table(table, [name]).to_pandas()[name].tolist()


def end_of(folder: Folder) -> dict[str, Any]:
    end = read_run(folder).end
    assert end is not None
    return dict(end)


def checkpoints(folder: Folder) -> list[int]:
    return sorted(int(re.sub(r"step-(\d+)-.*", r"\1", info.base_name)) for info in (folder / "checkpoints").list())


def test_a_completed_run_tells_and_stores_each_step_once(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")
    stored: list[list[int]] = []

    def hear(news: Report) -> None:
        stored.append(column(folder, "step"))

    result, told = run(folder, hear=hear, baseline={1: 1.0, 2: 100.0}, resources={"cpus": 1.0, "gpus": 0.0})
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
    _, told = run(tmp_path / "run", config=CONFIG.altered(max_steps=3))
    assert [(news.step, news.status) for news in told] == [(3, "completed")]


@pytest.mark.parametrize(("stop", "steps"), [(True, 5), (False, 7)])
def test_a_verdict_is_recorded_once_and_ends_the_run_unless_it_shall_go_on(
    stop: bool, steps: int, tmp_path: Path
) -> None:
    folder = Folder.at(tmp_path / "run")
    result, told = run(folder, bad=4, config=CONFIG.altered(stop_on_collapse=stop))
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

    result, told = run(folder, hear=hear)
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
        run(folder, hear=hear)
    assert str(caught.value) == message
    end = end_of(folder)
    assert (end["status"], end["summary"]["error"]) == ("failed", f"OutOfLuck: {said}")
    assert "in hear" in end["summary"]["traceback"] and read_lease(folder) is None
    assert column(folder, "step") == [1, 2, 3]


def test_a_failure_before_the_first_record_leaves_no_end_without_a_start(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")
    with pytest.raises(ValueError, match="this run holds 1 GPU"):
        run(folder, resources={"gpus": 1.0}, config=CONFIG.altered(device="cpu"))
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
        run(folder, hear=told.append)
    assert [news.step for news in told] == [3] and not folder.has("end.json")


def test_a_run_trains_on_the_threads_of_its_config_and_gives_them_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    net = Net()
    run(tmp_path / "run", model=net, config=CONFIG.altered(threads=before + 1, max_steps=1))
    assert net.threads == {before + 1} and torch.get_num_threads() == before


def test_a_second_attempt_goes_on_as_the_first_would_have_and_says_from_where(tmp_path: Path) -> None:
    folder, whole = Folder.at(tmp_path / "run"), Folder.at(tmp_path / "whole")
    run(whole)

    def hear(news: Report) -> None:
        if news.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, hear=hear, report_interval=2)
    (folder / "checkpoints").write_bytes("step-000000006-000000000000.pt", b"cut short")
    (folder / "checkpoints").write_bytes("notes.txt", b"mine")
    result, told = run(folder, resources={"cpus": 2.0})
    assert [news.rows[0]["step"] for news in told] == [5, 7] and result.steps == 7
    assert column(folder, "loss") == column(whole, "loss") and result.best_loss == end_of(whole)["summary"]["best_loss"]
    events = read_run(folder).table("events").to_pandas()
    assert events["kind"].tolist() == ["checkpoint_fallback", "restore"] and set(events["step"]) == {4}
    assert '"corrupt": "step-000000006-000000000000.pt"' in events["detail"][0]
    assert '"resumed_from_step": 4' in events["detail"][0]
    assert '"from_step": 4' in events["detail"][1] and '"attempt": 1' in events["detail"][1]
    earlier = read_run(folder).info["earlier"]
    assert [part["attempt"] for part in earlier] == [0] and earlier[0]["seconds"] > 0
    assert (folder / "checkpoints").has("notes.txt")


def test_storage_that_cannot_be_asked_for_a_stop_request_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Folder, sweep: Folder | None) -> None:
        raise PermissionError("503")

    monkeypatch.setattr(runner, "stop_request", refuse)
    assert run(tmp_path / "run")[0].status == "completed"


def test_a_checkpoint_waits_until_its_rows_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked, there = Folder.at(tmp_path / "run"), [], []
    flush, save = RunWriter.flush, checkpointing.save_checkpoint

    def flushed(writer: RunWriter, *, durable: bool = False) -> bool:
        asked.append(durable)
        return flush(writer, durable=durable) and not (durable and len(there) == 1)  # the second is refused

    def saved(place: Folder, step: int, state: dict[str, Any]) -> str:
        there.append(column(folder, "step"))
        assert asked[-1], "written, and made to survive a loss of power"
        return save(place, step, state)

    monkeypatch.setattr(RunWriter, "flush", flushed)
    monkeypatch.setattr(checkpointing, "save_checkpoint", saved)
    run(folder, config=CONFIG.altered(checkpoint_interval=2), report=None)
    assert there == [[1, 2]] and checkpoints(folder) == [2]


def test_a_refused_checkpoint_is_skipped_told_and_forgotten_when_the_next_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, save = Folder.at(tmp_path / "run"), checkpointing.save_checkpoint
    outages: list[str] = []

    def refusing(place: Folder, step: int, state: dict[str, Any]) -> str:
        assert place.patience == 0, "training does not wait for storage"
        if step != 4:
            raise OSError("no\nspace")
        return save(place, step, state)

    monkeypatch.setattr(checkpointing, "save_checkpoint", refusing)
    outage = SimpleNamespace(refused=lambda error: outages.append(str(error)), over=lambda: outages.append("over"))
    monkeypatch.setattr(checkpointing, "Outage", lambda folder: outage)
    run(folder, config=CONFIG.altered(checkpoint_interval=2))
    assert checkpoints(folder) == [4] and outages == ["no\nspace", "over", *["no\nspace"] * 2]
    events = read_run(folder).table("events").to_pandas()
    assert list(zip(events["kind"], events["step"], strict=True)) == [
        ("checkpoint_skipped", step) for step in (2, 6, 7)
    ]
    assert '"reason": "no space"' in events["detail"][0]


def test_a_second_attempt_compiles_as_the_first_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, given = Folder.at(tmp_path / "run"), []

    class Recording(runner.Trainer):
        def __init__(self, *args: Any) -> None:
            given.append(args[-1])
            super().__init__(*args)

    monkeypatch.setattr(runner, "Trainer", Recording)
    with pytest.raises(KeyboardInterrupt):
        run(folder, hear=lambda news: (_ for _ in ()).throw(KeyboardInterrupt))
    folder.write_json("run.json", read_run(folder).info | {"compiled": "blocks"})
    run(folder)
    assert given == [None, "blocks"]


def test_the_losses_of_a_run_by_hand() -> None:
    seen = LossSummary()
    assert (seen.final, seen.best, seen.validation) == (None, None, None)
    kept = []
    for loss, validation in ((3.0, None), (1.0, 4.0), (2.0, None), (math.nan, 5.0), (math.inf, None)):
        seen.add({"loss": loss} | ({} if validation is None else {"validation_loss": validation}))
        kept.append(seen.state_dict())
    assert [state["final"] for state in kept][:3] == [3.0, 1.0, 2.0] and math.isinf(seen.final or 0)
    assert [state["best"] for state in kept] == [3.0, 1.0, 1.0, 1.0, 1.0]
    assert [state["validation"] for state in kept] == [None, 4.0, 4.0, 5.0, 5.0]
    again = LossSummary()
    again.load_state_dict(kept[2])
    again.add({"loss": 0.5})
    assert again.state_dict() == {"final": 0.5, "best": 0.5, "validation": 4.0}

"""When a trial counts as hanging, with a clock of the test's own."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tune.plan.options import parse_options
from tune.run import stall_watch as stalls
from tune.run.stall_watch import START_SECONDS, StallWatch


class Watched:
    """A watch with a timeout of 20 s over one running trial; `now` is its clock, `kills` what it killed when."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.kills: list[float] = []
        self.said = io.StringIO()
        self._watch = StallWatch(20.0, Console(file=self.said))
        self.trial: Any = SimpleNamespace(
            status="RUNNING",
            config={"job": {"trial": {"run": "a"}}},
            temporary_state=SimpleNamespace(ray_actor=object()),
        )
        patch.setattr(stalls.time, "monotonic", lambda: self.now)
        patch.setattr(stalls.ray, "kill", lambda actor: self.kills.append(self.now))

    def let_pass(self, seconds: float) -> None:
        """Time in which Tune's loop comes by every second."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self._watch.on_step_begin(0, [self.trial])

    def report(self) -> None:
        self._watch.on_trial_result(0, [self.trial], self.trial, {})


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_a_compile_longer_than_the_timeout_is_no_stall(watched: Watched) -> None:
    watched.let_pass(300)
    watched.report()
    watched.let_pass(20)
    assert not watched.kills


def test_silence_after_a_report_is_one(watched: Watched) -> None:
    watched.let_pass(100)
    watched.report()
    watched.let_pass(30)
    assert watched.kills == [1000.0 + 100 + 21]
    assert watched.said.getvalue() == "a  no report for 20 s: its process is killed\n"


def test_a_start_that_never_ends_is_one_too(watched: Watched) -> None:
    watched.let_pass(START_SECONDS + 22)
    assert len(watched.kills) == 1
    assert "no report for 620 s" in watched.said.getvalue()


def test_a_restarted_trial_has_the_allowance_of_its_start_again(watched: Watched) -> None:
    watched.report()
    watched.let_pass(21)
    assert len(watched.kills) == 1
    watched.trial.status = "PENDING"
    watched.let_pass(60)
    watched.trial.status = "RUNNING"
    watched.let_pass(300)
    assert len(watched.kills) == 1


def test_the_allowance_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    assert "ten minutes longer" in " ".join(capsys.readouterr().out.split())
    assert START_SECONDS == 600

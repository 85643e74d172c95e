"""Watching and stopping runs from outside, and telling a webhook: folders and a real HTTP server, no Ray."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import altgrad.commands.web.webhook
from altgrad.__main__ import main
from altgrad.commands.web.webhook import Webhook
from altgrad.compare import comparison
from altgrad.experiment.outcome import Report
from altgrad.results import RunWriter, read_run
from altgrad.results.stop_request import request_stop, stop_request
from altgrad.show.sweep_status import sweep_state
from altgrad.storage.folder import Folder
from altgrad.training import TrainConfig, run_format_experiment
from tune.plan.options import SweepOptions
from tune.plan.sweep_record import create_sweep
from tune.plan.trial import SweepPlan, Trial
from tune.run.trainable import Job, train_trial

SMALL = TrainConfig(
    format="E4M3", model="micro", batch_size=4, max_steps=60, warmup_steps=5, eval_interval=60, eval_batches=1,
    diagnostic_interval=30, threads=1,
)  # fmt: skip


def sweep_of(tmp_path: Path, *runs: str) -> Folder:
    sweep = Folder.at(tmp_path / "sweep")
    config = SMALL.model_dump(mode="json")
    sweep.write_json("sweep.json", {"schema": 1, "runs": [{"run": run, "config": config} for run in runs]})
    return sweep


# stopping


@pytest.mark.parametrize("level", ["run", "sweep"])
def test_a_stop_request_ends_a_run_within_one_report(level: str, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "a")
    told: list[Report] = []

    def report(news: Report) -> None:
        told.append(news)
        if (news.step, news.status) == (20, "running"):
            folder = sweep / "a" if level == "run" else sweep
            assert main(["stop", str(folder), "--reason", "enough"]) == 0

    run_format_experiment(SMALL, sweep / "a", sweep="sweep", report=report, report_interval=10)
    run = read_run(sweep / "a")
    assert run.status == "stopped" and run.end is not None and run.end["summary"]["steps"] <= 30
    assert run.end["summary"]["reason"] == "stop requested: enough"
    assert (told[-1].status, told[-1].step) == ("stopped", run.end["summary"]["steps"])
    assert run.table("steps").num_rows == run.end["summary"]["steps"]


def test_a_request_made_while_a_run_is_down_is_honoured_when_it_comes_back(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "a")
    request_stop(sweep)
    assert run_format_experiment(SMALL, sweep / "a", sweep="sweep").steps == 0


def test_a_run_outside_a_sweep_does_not_heed_its_neighbourhood(tmp_path: Path) -> None:
    Folder.at(tmp_path).write_json("stop.json", {})
    short = SMALL.altered(max_steps=10)
    assert run_format_experiment(short, tmp_path / "run").status == "completed"


def test_a_trial_that_waits_in_a_stopped_sweep_ends_without_training(tmp_path: Path) -> None:
    trial = Trial("a", SMALL)
    sweep = create_sweep(SweepOptions(results=str(tmp_path), name="s"), SweepPlan((trial,)))
    request_stop(sweep.folder, "enough")
    alone = Job(trial, sweep.results, "s", 1, "disabled", runs_alike=1, workers=1, cpus=1.0, gpus=0.0, owner=None)
    train_trial({"job": alone.to_parameters()})
    run = read_run(sweep.folder / "a")
    assert run.status == "stopped" and run.end is not None and run.end["summary"]["reason"] == "stop requested: enough"
    assert not sweep.unfinished()
    assert [(row.status, row.step) for row in comparison([run])] == [("stopped", 0)]


def test_an_empty_file_is_a_request_too(tmp_path: Path) -> None:
    (tmp_path / "stop.json").touch()
    assert stop_request(Folder.at(tmp_path)) == {}


def test_what_cannot_be_stopped_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", str(tmp_path)]) == 2
    assert "neither run.json nor sweep.json" in capsys.readouterr().err
    writer = RunWriter(Folder.at(tmp_path / "run"))
    writer.start({"run": "run", "config": SMALL.model_dump(mode="json")})
    writer.end("completed", None, {})
    assert main(["stop", str(tmp_path / "run")]) == 2
    assert "the run has ended: completed" in capsys.readouterr().err


# watching


def test_status_shows_every_planned_run_from_the_folder_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(tmp_path, "done", "running", "waiting")
    for name, steps in (("done", 60), ("running", 20)):
        writer = RunWriter(sweep / name, flush_seconds=0.0)
        writer.start({"run": name, "config": SMALL.model_dump(mode="json")})
        for step in range(1, steps + 1, 10):
            writer.step({"step": step, "loss": 5.0 - step / 100, "elapsed_seconds": 2.0 * step})
        writer.step({"step": steps, "loss": 4.5, "elapsed_seconds": 2.0 * steps})
        if name == "done":
            writer.end("completed", None, {})
    states = {state.run: state for state in sweep_state(sweep)}
    assert [(state.status, state.step) for state in states.values()] == [
        ("completed", 60),
        ("running", 20),
        ("waiting", 0),
    ]
    assert states["running"].eta == pytest.approx(80.0)  # 40 steps at 2 s
    assert main(["status", str(sweep)]) == 0
    shown = capsys.readouterr().out
    assert "20/60" in shown and "1 min 20 s" in shown and "1 completed, 1 running, 1 waiting" in shown


def test_status_of_a_folder_without_a_sweep_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "sweep.json" in capsys.readouterr().err


# telling


class Server(http.server.ThreadingHTTPServer):
    """Collects what is posted; answers with `codes` first, then with 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.codes: list[int] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        code = self.server.codes.pop(0) if self.server.codes else 200
        if code == 200:
            self.server.bodies.append(body)
        self.send_response(code)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(altgrad.commands.web.webhook, "_FIRST_DELAY", 0.05)
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_messages_arrive_in_order_as_json(server: Server) -> None:
    webhook = Webhook(f"http://127.0.0.1:{server.server_port}/hook")
    webhook.post("collapsed", run="a", step=120)
    webhook.post("end", sweep="s")
    webhook.close()
    assert [(body["event"], body.get("run")) for body in server.bodies] == [("collapsed", "a"), ("end", None)]


def test_a_message_is_tried_again_until_it_is_taken(server: Server) -> None:
    server.codes = [500, 503]
    webhook = Webhook(f"http://127.0.0.1:{server.server_port}/hook")
    webhook.post("end")
    webhook.close()
    assert len(server.bodies) == 1 and not server.codes


def test_a_dead_webhook_blocks_nothing_and_its_address_is_not_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(altgrad.commands.web.webhook, "_FIRST_DELAY", 0.0)
    answers = threading.Event()

    def asked(*request: Any) -> None:
        answers.wait()
        raise ConnectionRefusedError

    monkeypatch.setattr(altgrad.commands.web.webhook, "open_directly", asked)
    webhook = Webhook("http://127.0.0.1:9/secret-path?token=hunter2")
    for _ in range(2000):
        webhook.post("failed", run="a")
    webhook.close(seconds=0.01)
    answers.set()  # not before: neither of them has waited for it
    webhook._thread.join()
    said = capsys.readouterr().err
    assert "127.0.0.1" in said and "hunter2" not in said and "secret-path" not in said


class Elsewhere(Handler):
    """Sends everybody on, and would take down who comes."""

    def do_POST(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.bodies.append({"came to": self.path})
        self.send_response(200)
        self.end_headers()


def test_a_redirect_is_not_followed_and_said(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.RequestHandlerClass = Elsewhere
    webhook = Webhook(f"http://127.0.0.1:{server.server_port}/secret")
    webhook.post("end")
    webhook.close()
    said = capsys.readouterr().err
    assert not server.bodies and "answered 302, a redirect, which is not followed" in said and "secret" not in said


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\n" + b"x" * 70000, b""])
def test_an_answer_that_is_no_http_is_one_line_without_the_address(
    answer: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(altgrad.commands.web.webhook, "_FIRST_DELAY", 0.01)
    with socketserver.TCPServer(("127.0.0.1", 0), lambda request, *_: request.sendall(answer)) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        webhook = Webhook(f"http://127.0.0.1:{other.server_address[1]}/secret?token=hunter2")
        webhook.post("end", loss=object())  # no JSON either
        webhook.post("end")
        webhook.close()
        other.shutdown()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and not [line for line in said if "secret" in line or "hunter2" in line]


@pytest.mark.parametrize(
    "address",
    [
        "ftp://x/y", "hooks.example.com", "http://", "http://example:port/s", "http://[example/s", "http://a b/example",
        "http://x/\nexample", "http://ex\u2100ample/",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_unrepeated(address: str) -> None:
    with pytest.raises(ValueError, match=r"expected an http:// or https://") as caught:
        Webhook(address)
    assert "example" not in str(caught.value)

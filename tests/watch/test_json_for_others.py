"""What leaves altgrad as JSON is JSON for every reader: a collapse by NaN is the one that nobody may miss."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import altgrad.commands.web.webhook
from altgrad.commands.web.webhook import Webhook
from altgrad.config.train_config import TrainConfig
from altgrad.results import RunWriter, Verdict, read_end, read_events, read_run
from altgrad.storage.folder import Folder

NON_FINITE = Verdict(3, "non_finite", "loss", math.nan, math.inf, "loss or gradients not finite at 5 steps")


def strictly(text: bytes | str) -> Any:
    """As a reader of another language reads it."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_collapse_by_nan_reaches_a_webhook_that_reads_strict_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted: list[Any] = []
    monkeypatch.setattr(
        altgrad.commands.web.webhook, "open_directly",
        lambda request, seconds: nullcontext(posted.append(strictly(request.data))),
    )  # fmt: skip
    RunWriter(Folder.at(tmp_path)).end("collapsed", NON_FINITE, {})
    end = read_end(Folder.at(tmp_path))
    assert end is not None
    webhook = Webhook("http://localhost/hook")
    webhook.post("collapsed", run="e4m3", verdict=end["verdict"])
    webhook.close()
    assert [(one["event"], one["verdict"]["value"], one["verdict"]["limit"]) for one in posted] == [
        ("collapsed", "NaN", "Infinity")
    ]


def test_the_particulars_of_an_event_are_strict_json(tmp_path: Path) -> None:
    writer = RunWriter(Folder.at(tmp_path))
    writer.start({"run": "a", "config": TrainConfig().model_dump()})
    writer.event(3, "clip", gradient_norm=math.inf, limit=1.0)
    writer.flush()
    run = read_run(Folder.at(tmp_path))
    (detail,) = run.table("events", ["detail"])["detail"].to_pylist()
    assert strictly(detail) == {"gradient_norm": "Infinity", "limit": 1.0}
    assert [event.detail for event in read_events(run)] == [{"gradient_norm": "Infinity", "limit": 1.0}]

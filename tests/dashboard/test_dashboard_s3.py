"""The dashboard on an object store: what it shows is what it shows of the same files on disk."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st

from altgrad.results.annotations import ANNOTATIONS, Annotation, read_annotations, write_annotation
from altgrad.results.stop_request import REQUEST, request_stop, stop_request
from altgrad.storage.folder import Folder
from tests.servers.object_store import ENVIRONMENT, KEYS, ObjectStore, object_store
from tests.support.dashboard_pages import PAGES, drawn, show, words
from tests.support.results import generated_results as generated

pytestmark = pytest.mark.long

RUN = {"steps": 60, "eval_interval": 20, "diagnostic_interval": 10}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    sweep = generated.new_sweep(root, "s")
    for format in ("BF16", "E4M3"):
        generated.write_run(sweep, generated.InventedRun(format, **RUN), rows_per_part=20)
    collapsed = generated.InventedRun("E7M0", stalls_from=20, **RUN)
    generated.write_run(sweep, collapsed, "collapsed", until=50, verdict=generated.STALLED)
    return root


@pytest.fixture(scope="module")
def store(disk: Path) -> Iterator[ObjectStore]:
    with pytest.MonkeyPatch.context() as patch, object_store() as running:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        root = Folder.at(running.uri("results"))
        for path in disk.rglob("*"):
            if path.is_file():
                root.write_bytes(str(path.relative_to(disk)), path.read_bytes())
        yield running


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_of_s3_what_it_shows_of_the_disk_and_no_credentials(
    page: str, disk: Path, store: ObjectStore
) -> None:
    here, there = show(disk, page), show(store.uri("results"), page)
    assert not there.exception, there.exception
    assert there.title[0].value == here.title[0].value

    def on_disk(text: str) -> str:
        """With the places of runs and of the sweep on disk, quoted for the shell or not."""
        for local in [*sorted((disk / "s").iterdir()), disk / "s"]:
            remote = str(Folder.at(store.uri("results")) / str(local.relative_to(disk)))
            text = text.replace(shlex.quote(remote), str(local)).replace(remote, str(local))
        return text

    assert on_disk(words(there)) == words(here)
    for kind in ("plotly_chart", "dataframe", "selectbox"):
        assert len(there.get(kind)) == len(here.get(kind)), kind
    for ours, theirs in zip(there.dataframe, here.dataframe, strict=True):
        assert on_disk(ours.value.to_csv()) == theirs.value.to_csv()
    shown = "\n".join(str(element.proto) for part in (there.main, there.sidebar) for element in part)
    assert there.title[0].value in shown
    assert not [key for key in KEYS.values() if key in shown]


def test_annotations_and_stop_requests_are_written_to_the_store_and_count_there(store: ObjectStore) -> None:
    sweep = Folder.at(store.uri("results")) / "s"
    assert read_annotations(sweep).by_run == {}
    name = "e4m3_lr0.0006_s42"
    write_annotation(sweep, name, Annotation("über S3", star=True, hidden=True))
    try:
        assert read_annotations(sweep).by_run == {name: Annotation("über S3", star=True, hidden=True)}
        st.cache_resource.clear()  # viewers share what was looked at half a second ago
        app = show(store.uri("results"), "sweep", rows="run")
        assert f"1 run is hidden and left out: {name}" in words(app) and name not in drawn(app)
        assert "bf16_lr0.0006_s42" in drawn(app)
        request_stop(sweep, "enough")
        request = stop_request(sweep / name, sweep)
        assert request is not None and request["reason"] == "enough"
    finally:
        sweep.delete(ANNOTATIONS)
        sweep.delete(REQUEST)
        st.cache_resource.clear()
    assert name in drawn(show(store.uri("results"), "sweep", rows="run"))


def test_credentials_in_the_location_are_refused_without_being_shown() -> None:
    app = show("s3://AKIAKEY:hunter2@bucket/results", "overview")
    assert not app.exception
    shown = words(app)
    assert "credentials in a location" in shown
    assert "hunter2" not in shown and "AKIAKEY" not in shown


def test_a_store_that_does_not_answer_is_said(store: ObjectStore) -> None:
    app = show("s3://bucket/results?endpoint_override=127.0.0.1:9&scheme=http", "overview")
    assert not app.exception
    assert "cannot be opened" in app.error[0].value

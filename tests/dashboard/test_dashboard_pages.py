"""Every page in every state of a sweep: it shows what is there, says in words what is not, and never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from altgrad.compare import by_group, comparison, group_difference
from altgrad.results import list_runs
from altgrad.storage.folder import Folder
from dashboard import streamlit_app
from tests.support.dashboard_pages import PAGES, show, words
from tests.support.results import generated_results as generated

pytestmark = pytest.mark.long

STATES = ("empty", "running", "completed", "collapsed", "killed", "corrupt", "large")
SHORT = {"steps": 60, "eval_interval": 20, "diagnostic_interval": 10}


def _completed(root: Path) -> None:
    sweep = generated.new_sweep(root, "s")
    for format in ("BF16", "E4M3"):
        for seed in (1, 2):
            generated.write_run(sweep, generated.InventedRun(format, seed=seed, **SHORT))


def _collapsed(root: Path) -> None:
    sweep = generated.new_sweep(root, "s")
    run = generated.InventedRun("E7M0", stalls_from=20, **SHORT)
    generated.write_run(sweep, run, "collapsed", until=50, verdict=generated.STALLED)
    run = generated.InventedRun("E0M7", nan_span=(31, 35), **SHORT)
    generated.write_run(sweep, run, "collapsed", until=35, verdict=generated.NON_FINITE)


def _killed(root: Path) -> None:
    sweep = generated.new_sweep(root, "s")
    generated.write_run(sweep, generated.InventedRun("E4M3", **SHORT), "open", until=30)


def _corrupt(root: Path) -> None:
    sweep = generated.new_sweep(root, "s")
    generated.damaged_run(sweep, generated.InventedRun("E4M3", **SHORT), rows_per_part=20)
    generated.corrupt_run(sweep)
    generated.unknown_schema(sweep)
    (sweep / "no_config").write_json("run.json", {"schema": 1, "run": "no_config"})
    (sweep / "a_list").write_bytes("run.json", b"[1, 2]")


WRITERS = {
    "empty": lambda root: generated.new_sweep(root, "s"),
    "running": generated.running_sweep,
    "completed": _completed,
    "collapsed": _collapsed,
    "killed": _killed,
    "corrupt": _corrupt,
    "large": lambda root: generated.large_sweep(root, runs=200, steps=100),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for state in STATES:
        found[state] = tmp_path_factory.mktemp(state)
        WRITERS[state](found[state])
    return found


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("page", PAGES)
def test_page_opens(roots: dict[str, Path], page: str, state: str) -> None:
    app = show(roots[state], page)
    assert not app.exception, app.exception
    assert app.title, "a page without a title is not the page that was asked for"
    title = streamlit_app.VIEWS[page][0]
    assert title in app.title[0].value, f"asked for {title}, shown {app.title[0].value}"
    body = [*app.info, *app.dataframe, *app.metric, *app.get("plotly_chart")]
    assert body, "a page that shows nothing must say why"


def test_folder_without_sweep_says_how_to_start_one(tmp_path: Path) -> None:
    app = show(tmp_path, "overview")
    assert not app.exception
    assert "altgrad sweep" in app.info[0].value


def test_root_that_does_not_exist_is_said(tmp_path: Path) -> None:
    app = show(tmp_path / "nowhere", "overview")
    assert not app.exception
    assert "nowhere" in app.info[0].value


def test_unknown_storage_scheme_is_said() -> None:
    app = show("nope://bucket/results", "overview")
    assert not app.exception
    assert "nope://bucket/results" in app.error[0].value


def test_each_unreadable_run_is_named_with_its_reason(roots: dict[str, Path]) -> None:
    text = words(show(roots["corrupt"], "overview"))
    assert "torn" in text and "not JSON" in text
    assert "from_the_future" in text and "schema 99" in text
    assert "no_config" in text and "it lacks config" in text
    assert "a_list" in text and "JSON object" in text
    assert "1 damaged part left out" in text


def test_damaged_part_costs_only_its_own_rows(roots: dict[str, Path]) -> None:
    app = show(roots["corrupt"], "run")
    steps = next(metric.value for metric in app.metric if metric.label == "Step")
    assert steps == "40 of 60"  # of three parts of 20 rows the last is damaged


def test_killed_run_is_said_to_be_killed(roots: dict[str, Path]) -> None:
    app = show(roots["killed"], "run")
    assert "killed" in app.warning[0].value
    assert next(metric.value for metric in app.metric if metric.label == "Step") == "30 of 60"


def test_running_run_shows_its_progress_and_planned_runs(tmp_path: Path) -> None:
    generated.running_sweep(tmp_path)  # its runs have no lease: a minute after their last part they count as killed
    app = show(tmp_path, "overview")
    values = {metric.label: metric.value for metric in app.metric}
    assert values["Runs"] == "2 of 4"
    assert values["Running"] == "2"


def test_deep_link_reproduces_the_view(roots: dict[str, Path]) -> None:
    app = show(roots["completed"], "curves", metric="validation_loss", format="E4M3", to="40", layout="bands")
    assert not app.exception
    assert next(box for box in app.selectbox if box.label == "Metric").value == "validation_loss"
    assert next(box for box in app.multiselect if box.key == "format").value == ["E4M3"]
    assert next(box for box in app.number_input if box.key == "to").value == 40


def test_link_with_a_value_that_is_gone_shows_the_default_and_says_so(roots: dict[str, Path]) -> None:
    app = show(roots["completed"], "curves", layout="seed bands", group="E4M3")
    assert not app.exception
    assert "layout" not in app.query_params and "group" not in app.query_params
    text = words(app)
    assert "`layout=seed bands`, which does not exist (any more)" in text and "`group=E4M3`" in text


@pytest.mark.parametrize(("page", "key"), [("run", "run"), ("sweep", "sort"), ("overview", "sweep")])
def test_link_to_a_run_a_sweep_or_an_order_that_is_gone_says_so(roots: dict[str, Path], page: str, key: str) -> None:
    app = show(roots["completed"], page, **{key: "long-gone"})
    assert not app.exception
    assert f"`{key}=long-gone`, which does not exist (any more)" in words(app)
    assert app.query_params[key] != "long-gone"


def test_group_is_known_by_any_of_its_runs(roots: dict[str, Path]) -> None:
    app = show(roots["completed"], "curves", group="e4m3_lr0.0006_s2", values="true")
    assert app.query_params["group"] == "e4m3_lr0.0006_s1"
    assert set(app.dataframe[0].value["run"]) == {"e4m3_lr0.0006_s1", "e4m3_lr0.0006_s2"}


def test_no_link_holds_a_label(roots: dict[str, Path]) -> None:
    app = show(roots["completed"], "sweep", rows="group", sort="gap", columns=["group", "gap"])
    assert list(app.dataframe[0].value.columns) == ["Group", "Gap to BF16"]
    app = show(roots["completed"], "run", metrics=["loss", "stall_rate"])
    assert app.query_params["metrics"] == ["loss", "stall_rate"]
    assert app.multiselect[0].value == ["loss", "stall_rate"]
    app = show(roots["completed"], "compare", part="survival")
    assert "No run has collapsed" in words(app)


def test_any_two_groups_are_compared_side_by_side(roots: dict[str, Path]) -> None:
    sweep = next(path for path in roots["completed"].iterdir() if (path / "sweep.json").exists())
    groups = by_group(comparison(list_runs(Folder.at(sweep))[0]))
    one, other = (min(row.run for row in members) for members in list(groups.values())[:2])
    found = group_difference(
        *(next(m for m in groups.values() if name in {row.run for row in m}) for name in (one, other))
    )
    app = show(roots["completed"], "compare", part="groups", one=one, other=other)
    assert not app.exception
    assert found.sentence in words(app).replace("\\", "")
    app = show(roots["completed"], "compare", part="parity")
    assert "Holm" in words(app) or "two one-sided t tests" in words(app)


def test_link_to_a_run_opens_that_run(roots: dict[str, Path]) -> None:
    app = show(roots["completed"], "run", run="e4m3_lr0.0006_s2")
    assert next(box for box in app.selectbox if box.label == "Run").value == "e4m3_lr0.0006_s2"


def test_link_to_a_run_that_is_gone_opens_another(roots: dict[str, Path]) -> None:
    app = show(roots["completed"], "run", run="deleted")
    assert not app.exception
    assert app.query_params["run"].startswith("e4m3_lr0.0006_s")  # that with the largest gap


def test_results_are_only_read(roots: dict[str, Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in roots["collapsed"].rglob("*")}
    for page in PAGES:
        show(roots["collapsed"], page)
    assert {path: path.stat().st_mtime_ns for path in roots["collapsed"].rglob("*")} == before


@pytest.mark.parametrize("page", PAGES)
def test_no_page_says_nats_of_a_loss_whose_unit_nobody_knows(page: str, tmp_path: Path) -> None:
    sweep = generated.new_sweep(tmp_path, "s")
    for format in ("BF16", "E4M3"):
        run = generated.InventedRun(format, **SHORT)
        generated.write_run(sweep, run)
        info = (sweep / run.name).read_json("run.json")
        (sweep / run.name).write_json("run.json", info | {"vocabulary": None})
    app = show(tmp_path, page)
    assert not app.exception
    options = [str(option) for box in (*app.selectbox, *app.multiselect) for option in box.options]
    assert "nats" not in "\n".join([words(app), *options])

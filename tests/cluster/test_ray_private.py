"""What is taken from inside Ray lies in one file, and each piece is still there."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tune.cluster import ray_private

ROOT = Path(__file__).resolve().parents[2]
PIECES: dict[str, tuple[Callable[[], object], str]] = {
    "token_headers": (ray_private.token_headers, "the check of a cluster before a job is sent cannot show Ray's token"),
    "use_token": (ray_private.use_token, "Ray's token is not sent"),
    "unhealthy_worker": (ray_private.unhealthy_worker, "a worker that hangs cannot be told from one that failed"),
    "silent_progress": (ray_private.silent_progress, "Tune says of a trial that failed early that it completed"),
    "send_no_keys_of_the_cloud": (ray_private.send_no_keys_of_the_cloud, "Tune writes AWS keys to Ray's logs"),
}


@pytest.mark.parametrize("piece", PIECES)
def test_ray_still_has_what_is_taken_from_inside_it(piece: str) -> None:
    ask, consequence = PIECES[piece]
    try:
        ask()
    except (ImportError, AttributeError) as error:
        pytest.fail(f"this Ray has moved what `ray_private.{piece}` takes: {error}; without it {consequence}")


def test_ray_s_worker_still_has_its_node_and_its_way_to_print() -> None:
    worker = ray_private._worker()
    gone = [name for name in ("_global_node", "print_to_stdstream") if not hasattr(worker, name)]
    assert gone == [], "without them a dead Ray is noticed late, and told in twenty lines of its log"


def test_no_other_file_takes_anything_from_inside_ray() -> None:
    found = []
    for file in sorted((ROOT / "tune").rglob("*.py")):
        if file.name == "ray_private.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            inside = [name for name in names if name.startswith("ray.") and "._" in name]
            attribute = isinstance(node, ast.Attribute) and ast.unparse(node).startswith("ray._")
            if inside or attribute:
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_tune_prints_nothing_of_a_trial_that_failed_before_its_first_report(capsys: pytest.CaptureFixture[str]) -> None:
    """Tune's own callback calls such a trial completed; it is left out only beside one of its class."""
    from ray.tune.progress_reporter import TrialProgressCallback
    from ray.tune.utils.callback import _create_default_callbacks

    class Failed:
        last_result: Mapping[str, Any] = {}

    def said(callbacks: list[Any]) -> str:
        (one,) = (found for found in _create_default_callbacks(callbacks) if isinstance(found, TrialProgressCallback))
        one.on_trial_complete(0, [], Failed())
        return capsys.readouterr().out

    assert "completed" in said([])
    assert said([ray_private.silent_progress()]) == ""

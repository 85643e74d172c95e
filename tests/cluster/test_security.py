"""What must not happen whatever is on disk: code run from a file, a folder outside the results root."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from altgrad.config.train_config import ConfigError, TrainConfig
from tune.plan.options import SweepError, SweepOptions
from tune.plan.sweep_record import create_sweep, open_sweep
from tune.plan.trial import SweepPlan, Trial

ROOT = Path(__file__).parents[2]
SOURCES = [path for part in ("altgrad", "tune", "dashboard") for path in sorted((ROOT / part).rglob("*.py"))]


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call in a file with its dotted name."""
    tree = ast.parse(path.read_text(), str(path))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_checkpoints_load_without_unpickling_code() -> None:
    loads = [call for path in SOURCES for name, call in calls(path) if name == "torch.load"]
    assert loads
    for call in loads:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert options.get("weights_only") == "True"


def test_nothing_that_reads_results_unpickles_or_loads_unsafe_yaml() -> None:
    for path in SOURCES:
        for name, call in calls(path):
            # a file that Tune wrote in the same process is the one exception
            if path.parts[-2:] != ("cluster", "ray_trial.py") and name != "pickle.UnpicklingError":
                assert name.rsplit(".", 1)[0] not in ("pickle", "cloudpickle", "marshal", "shelve"), f"{path}: {name}"
            assert name not in ("pd.read_pickle", "eval", "exec", "yaml.unsafe_load"), f"{path}: {name}"
            if name in ("np.load", "numpy.load"):
                allowed = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "allow_pickle"]
                assert allowed in ([], ["False"]), path


def test_an_unpickler_of_our_own_makes_no_object() -> None:
    """nanoGPT's meta.pkl is one file that others wrote: its reader refuses every class, and every object by name."""
    found = {
        path.name: {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and any("Unpickler" in ast.unparse(base) for base in node.bases)
    }
    assert found == {"meta_file.py": {"find_class", "persistent_load"}}


@pytest.mark.parametrize("name", ["../evil", "/etc", "a/b", "..", ".hidden", "", "a b", "a\n"])
def test_a_sweep_name_cannot_leave_the_results_root(name: str, tmp_path: Path) -> None:
    options = SweepOptions(results=str(tmp_path / "results"), name=name)
    with pytest.raises(SweepError):
        create_sweep(options, SweepPlan((Trial("a", TrainConfig()),)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("run", ["../evil", "/etc/evil", "..", "a/b", ".hidden", ""])
@pytest.mark.parametrize("field", ["run", "baseline"])
def test_a_tampered_plan_cannot_make_runs_leave_their_sweep(run: str, field: str, tmp_path: Path) -> None:
    options = SweepOptions(results=str(tmp_path), name="s")
    create_sweep(options, SweepPlan((Trial("a", TrainConfig()),)))
    file = tmp_path / "s" / "sweep.json"
    record: dict[str, Any] = json.loads(file.read_text())
    record["runs"][0][field] = run
    file.write_text(json.dumps(record))
    with pytest.raises((SweepError, ConfigError), match="letters, digits"):
        open_sweep(SweepOptions(results=str(tmp_path), resume="s"))


@pytest.mark.parametrize("name", ["../s", "/tmp", "s/../s"])
def test_resume_takes_names_of_sweeps_only(name: str, tmp_path: Path) -> None:
    create_sweep(SweepOptions(results=str(tmp_path), name="s"), SweepPlan((Trial("a", TrainConfig()),)))
    with pytest.raises(SweepError, match="no such sweep"):
        open_sweep(SweepOptions(results=str(tmp_path), resume=name))

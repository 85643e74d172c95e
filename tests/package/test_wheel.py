"""The wheel, made from the sdist and installed outside the tree: its commands work, and nothing is read from the tree.

The interpreter is the one below the virtual environment, whose editable installation it does not see; the packages
that altgrad depends on are found by PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from altgrad.results import read_run
from altgrad.storage.folder import Folder

ROOT = Path(__file__).parents[2]
PYTHON = getattr(sys, "_base_executable", sys.executable)
SMALL = ["--model", "micro", "--max-steps", "20", "--set", "compile=false", "diagnostic_interval=10", "eval_batches=1"]

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Installed:
    """An installation in `site`, used from the empty folder `home`."""

    site: Path
    home: Path

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ALTGRAD"))}
        path = os.pathsep.join([str(self.site), sysconfig.get_path("purelib")])
        environment = outside | {"PYTHONPATH": path, "COLUMNS": "120", "OMP_NUM_THREADS": "1"} | variables
        return subprocess.run([PYTHON, *words], cwd=self.home, env=environment, capture_output=True, text=True)

    def altgrad(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(str(self.site / "bin" / "altgrad"), *words)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("wheel")
    (place / "home").mkdir()
    quiet = {"capture_output": True, "text": True, "check": True}
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", place], cwd=ROOT, **quiet)
    pip = [sys.executable, "-m", "pip"]
    (sdist,) = place.glob("*.tar.gz")
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", place, sdist], **quiet)
    (wheel,) = place.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", place / "site", wheel], **quiet)
    return Installed(place / "site", place / "home")


def test_no_package_of_a_common_name_lies_in_site_packages(installed: Installed) -> None:
    names = {path.name for path in installed.site.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"altgrad", "bin"}


def test_a_sweep_trains_and_compares_with_nothing_of_the_tree(installed: Installed) -> None:
    done = installed.altgrad("sweep", "--formats", "E4M3", "--name", "s", "--wandb", "disabled", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [read_run(Folder.at(path.parent)) for path in (installed.home / "results" / "s").glob("*/run.json")]
    assert sorted(run.config["format"] for run in runs) == ["BF16", "E4M3"]
    assert all(run.end is not None and run.end["status"] == "completed" for run in runs)
    assert f"dashboard: {installed.site / 'bin' / 'altgrad'} dashboard results" in done.stdout
    record = json.loads((installed.home / "results" / "s" / "sweep.json").read_text())
    assert record["command"].startswith(f"{installed.site / 'bin' / 'altgrad'} sweep --formats E4M3")
    assert str(ROOT) not in json.dumps(record)


def test_what_is_imported_lies_in_the_installation(installed: Installed) -> None:
    program = (
        "import json, sys; from altgrad.__main__ import main; main(['sweep', '--dry-run']);"
        "from tune.run import trainable;"
        "files = [m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)];"
        "print(json.dumps([files, sys.path]))"
    )
    done = installed.run("-c", program)
    assert done.returncode == 0, done.stderr
    files, path = json.loads(done.stdout.splitlines()[-1])
    ours = [file for file in files if {"altgrad", "tune"} & set(Path(file).parts[:-1]) and "ray" not in file]
    assert len(ours) > 40 and all(Path(file).is_relative_to(installed.site) for file in ours)
    assert str(ROOT) not in path


def test_the_dashboard_that_is_shown_is_that_of_the_installation(installed: Installed) -> None:
    program = (
        "import sys; from altgrad.config.shipped_configs import ROOT; sys.path.insert(0, str(ROOT));"
        "from streamlit.testing.v1 import AppTest;"
        "app = AppTest.from_file(str(ROOT / 'dashboard' / 'streamlit_app.py'), default_timeout=240).run();"
        "print(len(app.exception), app.title[0].value, sys.modules['dashboard'].__file__)"
    )
    done = installed.run("-c", program, ALTGRAD_RESULTS=str(installed.home))
    place = installed.site / "altgrad" / "_apps" / "dashboard" / "__init__.py"
    assert done.stdout.splitlines()[-1:] == [f"0 No sweep yet {place}"], done.stdout + done.stderr


def test_a_cluster_gets_a_tree_that_runs_like_a_clone(installed: Installed) -> None:
    program = (
        "import sys, subprocess; from altgrad.config.shipped_configs import ROOT; sys.path.insert(0, str(ROOT));"
        "from tune.cluster.sent_code import sent_code\n"
        "with sent_code() as sent:\n"
        "    words = [sys.executable, 'tune/sweep.py', '--dry-run', '--formats', 'E4M3']\n"
        "    import os; site = os.environ['PYTHONPATH'].split(os.pathsep)[1]\n"
        "    variables = os.environ | {'PYTHONPATH': site}\n"
        "    print(subprocess.run(words, cwd=sent['working_dir'], env=variables, capture_output=True, text=True))"
    )
    done = installed.run("-c", program)
    assert "returncode=0" in done.stdout and "e4m3" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["formats", "E4M3"], "448"),
        (["config"], "master_weights"),
        (["sweep", "--help"], "usage: altgrad sweep "),
        (["submit", "--help"], "usage: altgrad submit "),
        (["dashboard", "--help"], "usage: altgrad dashboard "),
        (["sweep", "--configs", "e7m0_stored", "--dry-run"], "e7m0_stored"),
        (["--help"], "dashboard"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_command_answers_the_same_as_a_script_and_as_a_module(
    installed: Installed, words: list[str], said: str
) -> None:
    script, module = installed.altgrad(*words), installed.run("-m", "altgrad", *words)
    assert script.returncode == module.returncode == 0, script.stderr + module.stderr
    assert said in script.stdout
    wrapped = [" ".join(done.stdout.replace("python -m altgrad", "altgrad").split()) for done in (script, module)]
    assert wrapped[0] == wrapped[1]

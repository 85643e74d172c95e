"""What an installation without some extra says: one line, and everything that does not need the extra works.

A module that is None in `sys.modules` cannot be imported, which is what a missing package looks like.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from altgrad.commands.extras import EXTRAS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = {"torch", "numpy", "pydantic", "yaml"}
# In no extra: one task or tokenizer each needs them, and names what it lacks in one line.
OF_ONE_TASK = {"transformers", "tokenizers", "tiktoken", "torchvision", "timm", "sklearn"}


def without(modules: list[str], program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that runs a program as if these modules were not installed."""
    script = f"import sys; sys.modules |= dict.fromkeys({modules!r}); sys.argv = {[*arguments]!r}; {program}"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)


def altgrad_without(modules: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return without(modules, "from altgrad.__main__ import main; sys.exit(main())", "altgrad", *arguments)


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        (["sweep", "--dry-run"], "ray", "sweep"),
        (["sweep", "--dry-run"], "pyarrow", "sweep"),
        (["submit"], "psutil", "sweep"),
        (["dashboard"], "streamlit", "dashboard"),
        (["dashboard", "results"], "scipy", "dashboard"),
        (["train", "e4m3_uniform", "--out", "out"], "pyarrow", "results"),
        (["formats"], "rich", "results"),
        (["report", "out"], "pyarrow", "results"),
    ],
)
def test_a_missing_extra_is_one_line_that_says_how_to_get_it(command: list[str], module: str, extra: str) -> None:
    done = altgrad_without([module], *command)
    assert done.returncode == 2 and not done.stdout
    missing = f"needs the {extra} extra, {module} is not installed: pip install 'altgrad[{extra}]'"
    assert done.stderr == f"altgrad {command[0]}: error: {missing}\n"


@pytest.mark.parametrize("script", ["sweep", "submit"])
def test_the_scripts_of_a_clone_say_so_too(script: str) -> None:
    file = str(ROOT / "tune" / f"{script}.py")
    done = without(
        ["ray"], f"import runpy; sys.path.insert(0, ''); runpy.run_path({file!r}, run_name='__main__')", file
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"{script}.py: error: needs the sweep extra, ray is not installed: pip install 'altgrad[sweep]'\n"
    )


def test_another_missing_module_is_an_error_like_any_other() -> None:
    done = altgrad_without(["torch"], "train", "e4m3_uniform", "--out", "out")
    assert "ModuleNotFoundError" in done.stderr and "torch" in done.stderr


def test_the_quantiser_and_the_configs_need_no_extra() -> None:
    extras = sorted({module for modules in EXTRAS.values() for module in modules})
    program = (
        "import torch; from altgrad.quantization.quantize import quantize_model;"
        "from altgrad.config.recipe import Recipe; from altgrad.config.train_config import load_config;"
        "from altgrad.config.shipped_configs import config_file; load_config(config_file('e5m2_fp8'));"
        "from altgrad.quantization.kernel.codes import encode; from altgrad.formats import finfo; finfo('E4M3');"
        "model = torch.nn.Sequential(torch.nn.Linear(16, 16));"
        "quantized = quantize_model(model, Recipe(format='E4M3', master_weights=False));"
        "quantized.begin_step(0, 1); model(torch.ones(2, 16)).sum().backward(); quantized.after_optimizer()"
    )
    done = without(extras, program)
    assert done.returncode == 0, done.stderr


def test_a_sweep_without_wandb_says_so_and_an_explicit_wish_for_it_is_refused() -> None:
    done = altgrad_without(["wandb"], "sweep", "--wandb", "offline", "--dry-run")
    assert done.returncode == 2
    assert done.stderr == (
        "altgrad sweep: error: --wandb offline: needs the wandb extra, wandb is not installed: "
        "pip install 'altgrad[wandb]'\n"
    )
    assert altgrad_without(["wandb"], "sweep", "--dry-run").returncode == 0


def _distributions(requirements: list[str]) -> set[str]:
    """Names of what is required, what an extra of our own stands for included."""
    found = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()
        if name != "altgrad":
            found.add(name.lower().replace("_", "-"))
            continue
        for extra in extras.split(","):
            found |= _distributions(PROJECT["optional-dependencies"][extra])
    return found


def test_the_table_of_modules_is_that_of_the_project() -> None:
    installed = {
        module: {name.lower().replace("_", "-") for name in names}
        for module, names in metadata.packages_distributions().items()
    }
    for extra, modules in EXTRAS.items():
        wanted = _distributions(PROJECT["optional-dependencies"][extra])
        assert set().union(*(installed[module] for module in modules)) == wanted, extra


def test_every_package_that_is_imported_is_required_by_the_base_or_an_extra() -> None:
    known = BASE | {module for modules in EXTRAS.values() for module in modules}
    known |= {"altgrad", "tune", "dashboard", *OF_ONE_TASK} | set(sys.stdlib_module_names)
    imported = set()
    for folder in ("altgrad", "tune", "dashboard"):
        for file in (ROOT / folder).rglob("*.py"):
            imported |= set(
                re.findall(r"^\s*(?:import|from) (\w+)[\w.]*(?: import |\s*$| as )", file.read_text(), re.M)
            )
    assert imported - known == set()

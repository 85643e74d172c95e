"""Runs a module of this folder in a process that takes itself for one with an H100 (see `pretended_gpu`)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from tests.cuda_code import PINNED

ROOT = Path(__file__).parents[2]
# Beside the packages: torch imports it if it can.
TRITON = Path(os.environ.get("ALTGRAD_TRITON", ROOT / ".venv/triton"))


def why_not() -> str | None:
    """What is missing for it on this machine, in one line."""
    if not (TRITON / f"triton-{PINNED['triton']}.dist-info").is_dir():
        return f"no triton {PINNED['triton']} in {TRITON.name}: make .venv/triton"
    installed = importlib.metadata.version("torch").partition("+")[0]
    if installed != PINNED["torch"]:
        return f"torch {installed}; private names are those of {PINNED['torch']}"
    if torch.version.cuda is not None:
        return "torch knows real GPUs here: the pretended one is for its build without them"
    return None if shutil.which("g++") else "no g++"


def run(module: str, folder: Path, *arguments: str) -> str:
    """What `python -m tests.cuda_code.MODULE FOLDER ARGUMENTS` prints; `folder`: for its files, kept between runs."""
    compiler = {
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",  # a graph from the cache has no source
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TRITON)]), "LD_PRELOAD": str(_guard(folder))}
    environment = os.environ | compiler | paths | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"tests.cuda_code.{module}", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{module}: {done.stderr[-2000:]}")
    return done.stdout


def _guard(folder: Path) -> Path:
    """guard.cpp, compiled (seconds)."""
    built, source = folder / "guard.so", Path(__file__).with_name("guard.cpp")
    if not built.exists():
        specification = importlib.util.find_spec("torch")
        assert specification is not None and specification.origin is not None
        home = Path(specification.origin).parent
        found = [f"-I{home / 'include'}", f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{home / 'lib'}"]
        command = ["g++", "-O0", "-shared", "-fPIC", "-std=c++20", str(source), "-o", str(built), *found]
        subprocess.run(command, check=True)
    return built

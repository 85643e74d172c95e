"""Runs a module of this folder in a process that takes itself for one with an H100 (see `pretended_gpu`).

What a run printed and wrote is kept beside the packages, and serves the next run as long as no file of the project that
was read has changed: generating code takes most of a minute, and few changes of the project concern it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from tests.cuda_code import PINNED

ROOT = Path(__file__).parents[2]
# Beside the packages: torch imports it if it can.
TRITON = Path(os.environ.get("ALTGRAD_TRITON", ROOT / ".venv/triton"))
KEPT = TRITON.with_name("cuda_code")
_MOST_KEPT = 30
_READ, _PRINTED = "read.json", "printed"


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
    asked = [module, *arguments, platform.python_version(), *(f"{file.name} {_hash(file)}" for file in _files(folder))]
    name = hashlib.sha256("\n".join(asked).encode()).hexdigest()[:16]
    for kept in KEPT.glob(f"{name}-*"):
        with suppress(OSError, ValueError):  # being removed, or written by a killed process
            if _unchanged(json.loads((kept / _READ).read_text())):
                for file in _files(kept):
                    shutil.copy(file, folder)
                return (kept / _PRINTED).read_text()
    before = set(_files(folder))
    with tempfile.TemporaryDirectory() as cache:
        printed = _run(module, folder, Path(cache), *arguments)
    with suppress(OSError):
        _keep(name, printed, folder, [file for file in _files(folder) if file not in before])
    return printed


def _run(module: str, folder: Path, cache: Path, *arguments: str) -> str:
    compiler = {
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",  # a graph from the cache has no source
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TRITON)]), "LD_PRELOAD": str(_guard(folder))}
    environment = os.environ | compiler | paths | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.cuda_code.process", module, str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{module}: {done.stderr[-2000:]}")
    return done.stdout


def _files(folder: Path) -> list[Path]:
    """What one run writes for the next."""
    return sorted(file for file in folder.glob("*.json") if file.name != _READ)


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _unchanged(read: dict[str, str]) -> bool:
    return all((ROOT / name).is_file() and _hash(ROOT / name) == found for name, found in read.items())


def _keep(name: str, printed: str, folder: Path, written: list[Path]) -> None:
    """Keep a run, and forget the oldest ones."""
    KEPT.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=KEPT))
    for file in written:
        shutil.copy(file, made)
    (made / _PRINTED).write_text(printed)
    shutil.copy(folder / _READ, made)  # last: without it a folder is not looked at
    for old in sorted(KEPT.iterdir(), key=lambda kept: kept.stat().st_mtime)[:-_MOST_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _read_by(module: str) -> dict[str, str]:
    """Hashes of the files of the project on which a run of `module` in this process depends.

    They are all that it imported, and the data of the package.
    """
    here = Path(__file__).parent
    files = {here / f"{module}.py", Path(__file__), here / "guard.cpp", *(ROOT / "altgrad").rglob("*.yaml")}
    for imported in list(sys.modules.values()):
        file = Path(getattr(imported, "__file__", None) or sys.executable)
        if file.is_relative_to(ROOT) and "site-packages" not in file.parts and not file.is_relative_to(TRITON.parent):
            files.add(file)
    return {str(file.relative_to(ROOT)): _hash(file) for file in sorted(files)}


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


def _main(module: str, folder: str, *arguments: str) -> None:
    sys.argv = [module, folder, *arguments]
    runpy.run_module(f"tests.cuda_code.{module}", run_name="__main__", alter_sys=True)
    (Path(folder) / _READ).write_text(json.dumps(_read_by(module)))


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""`python -m bench.gpu`: runs every part and writes what was found as JSON and as a table, named after the device.

`--device cpu --small` goes through the same lines within seconds on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.gpu.parts import PARTS, ROOT
from bench.gpu.table import table

# Seconds that a part may take.  Together they are more than ten minutes; what is left at the end is not run.
_LIMITS = {
    "facts": 30,
    "kernels": 90,
    "steps_50M": 150,
    "native": 60,
    "tests": 150,
    "memory": 60,
    "comparison": 90,
    "graphs": 120,
    "steps_350M": 150,
    "ranks": 60,
}
_LEAST = 5  # seconds in which a part may find something


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Measure everything that needs a GPU.")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, or cpu")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the command itself")
    parser.add_argument("--seconds", type=float, default=570, help="for all parts together (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the results")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"--device {device}: torch finds no CUDA device; --device cpu --small tries the command without one"
        )
    ends = time.monotonic() + options.seconds
    found = {}
    for part in options.parts or PARTS:
        limit = min(_LIMITS[part], ends - time.monotonic())
        found[part] = _run(part, options.device, options.small, limit)
        for row in found[part]["rows"]:
            print(f"{part:12} {row['what']:45} {_shown(row['value'])} {row['unit']}", flush=True)
        if found[part]["note"]:
            print(f"{part:12} {found[part]['note']}", flush=True)
        _write(found, device, options.small, options.out)


def _run(part: str, device: str, small: bool, limit: float) -> dict[str, Any]:
    """Rows of a part, seconds that it took, and a note if it did not end well; what it printed before is kept."""
    if limit < _LEAST:
        return {"rows": [], "seconds": 0.0, "note": "not run: no time left"}
    command = [sys.executable, "-m", "bench.gpu.parts", part, device, "small" if small else "full"]
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        said, errors = process.communicate(timeout=limit)
        last = (errors.strip().splitlines() or [""])[-1]
        note = f"failed: {last[:300]}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        note = f"ended after {limit:.0f} s"
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{") and line.endswith("}")]
    return {"rows": rows, "seconds": round(time.monotonic() - began, 1), "note": note}


def _write(found: dict[str, Any], device: torch.device, small: bool, folder: Path) -> None:
    """After each part, so that what was found outlives a machine that is taken away."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    file = re.sub(r"[^a-z0-9]+", "-", f"{name}{' small' if small else ''}".lower()).strip("-")
    date = time.strftime("%Y-%m-%d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{file}.json").write_text(json.dumps({"device": name, "date": date, "parts": found}, indent=1) + "\n")
    (folder / f"{file}.md").write_text(table(name, date, found))


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()

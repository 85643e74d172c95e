"""The table of a measurement: on the terminal, as JSON, and in bench/README.md with machine, versions and date."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench.harness import Measured, malloc_setting

_BEGIN, _END = "<!-- table -->", "<!-- end of table -->"


def print_row(row: Measured) -> None:
    measured = "-" if row.ratio is None else _digits(row.ratio)
    print(f"{row.name:56} goal {row.goal:5.2f}  measured {measured:>6}  {row.verdict}", flush=True)


def write_results(rows: Sequence[Measured], folder: Path) -> None:
    """results.json, and the table between the marks in README.md; rows measured earlier on this machine are kept."""
    machine = {
        "processor": _processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "malloc": malloc_setting(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    file = folder / "results.json"
    before = json.loads(file.read_text()) if file.exists() else {"machine": None}
    table = {row["name"]: row for row in before["rows"]} if before["machine"] == machine else {}
    date = time.strftime("%Y-%m-%d")
    table |= {row.name: asdict(row) | {"verdict": row.verdict, "date": date} for row in rows}
    ordered = sorted(table.values(), key=lambda row: str(row["name"]))
    file.write_text(json.dumps({"machine": machine, "rows": ordered}, indent=1) + "\n")
    readme = folder / "README.md"
    head, _, rest = readme.read_text().partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    readme.write_text(f"{head}{_BEGIN}\n{_table(machine, ordered)}{_END}{tail}")


def _table(machine: dict[str, object], rows: Sequence[dict[str, object]]) -> str:
    lines = ["; ".join(f"{name}: {value}" for name, value in machine.items()), ""]
    lines += ["| what | goal | measured | verdict | date |", "|---|---|---|---|---|"]
    for row in rows:
        measured = "" if row["ratio"] is None else _digits(row["ratio"])
        lines.append(f"| {row['name']} | {row['goal']:g} | {measured} | {row['verdict']} | {row['date']} |")
    return "\n".join(lines) + "\n"


def _digits(number: float) -> str:
    """Two decimals, or four of a small number."""
    return f"{number:.2f}" if number >= 0.1 else f"{number:.4f}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

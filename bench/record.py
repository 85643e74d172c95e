"""Writes the table of a measurement to the terminal, as JSON, and to bench/README.md with machine and versions."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.harness import Measured, malloc_setting

_BEGIN, _END = "<!-- {} -->", "<!-- end of {} -->"  # marks around a generated part of README.md


def print_row(row: Measured) -> None:
    print(
        f"{row.name:70} goal {row.goal:5.2f}  measured {_measured(asdict(row)) or '-':>20}  {row.verdict}", flush=True
    )


def write_results(rows: Sequence[Measured], folder: Path) -> None:
    """results.json, and the table between the marks in README.md; rows measured earlier on this machine are kept."""
    here = machine()
    file = folder / "results.json"
    before = json.loads(file.read_text()) if file.exists() else {"machine": None}
    table = {row["name"]: row for row in before["rows"]} if before["machine"] == here else {}
    date = time.strftime("%Y-%m-%d")
    table |= {row.name: asdict(row) | {"verdict": row.verdict, "date": date} for row in rows}
    ordered = sorted(table.values(), key=lambda row: str(row["name"]))
    file.write_text(json.dumps({"machine": here, "rows": ordered}, indent=1) + "\n")
    _insert(folder, "table", _table(here, ordered))


def write_peers(rows: Sequence[dict[str, object]], steps: Sequence[dict[str, object]], folder: Path) -> None:
    """studies/peers.json, and both tables of peers in README.md; rows with name, version, ratio (or None) and note."""
    here = machine() | {"date": time.strftime("%Y-%m-%d")}
    (folder / "studies" / "peers.json").write_text(
        json.dumps({"machine": here, "rows": rows, "steps": steps}, indent=1) + "\n"
    )
    lines = ["; ".join(f"{name}: {value}" for name, value in here.items())]
    for what, table in (
        ("2^24 float32 to E4M3 | version | x clone", rows),
        ("training step, tiny, MXFP8 | version | x plain compiled step", steps),
    ):
        lines += ["", f"| {what} |", "|---|---|---|"]
        for row in table:
            measured = f"not measured: {row['note']}" if row["ratio"] is None else f"{row['ratio']:.1f}"
            lines.append(f"| {row['name']} | {row['version']} | {measured} |")
    _insert(folder, "peers", "\n".join(lines) + "\n")


def machine() -> dict[str, object]:
    """Processor, versions and settings of the measurement."""
    return {
        "processor": _processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "malloc": malloc_setting(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _insert(folder: Path, what: str, text: str) -> None:
    """Replace the text between the two marks of `what` in README.md."""
    readme, begin, end = folder / "README.md", _BEGIN.format(what), _END.format(what)
    head, _, rest = readme.read_text().partition(begin)
    _, _, tail = rest.partition(end)
    readme.write_text(f"{head}{begin}\n{text}{end}{tail}")


def _table(machine: dict[str, object], rows: Sequence[dict[str, object]]) -> str:
    lines = ["; ".join(f"{name}: {value}" for name, value in machine.items()), ""]
    lines += ["| what | goal | measured | middle half of the pairs | verdict | date |", "|---|---|---|---|---|---|"]
    for row in rows:
        measured = "" if row["ratio"] is None else _digits(row["ratio"])
        cells = (row["name"], f"{row['goal']:g}", measured, _spread(row), row["verdict"], row["date"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _measured(row: Mapping[str, Any]) -> str:
    """Median and quartiles as text: 1.12 (1.10 to 1.15)."""
    if row["ratio"] is None:
        return ""
    spread = _spread(row)
    return _digits(row["ratio"]) + (f" ({spread})" if spread else "")


def _spread(row: Mapping[str, Any]) -> str:
    """The quartiles as text, 1.10 to 1.15; empty for a single measurement, and for rows of older files."""
    low, high = row.get("low"), row.get("high")
    return "" if low is None or high is None or low == high else f"{_digits(low)} to {_digits(high)}"


def _digits(number: float) -> str:
    """Two decimals, or four of a small number."""
    return f"{number:.2f}" if number >= 0.1 else f"{number:.4f}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

"""`python -m bench [NAME ...]`: measure the rows (all, or those whose file name contains a NAME) and print the table.

Every `bench/row_*.py` is a row: it exposes `ROW`.  With `--write` the table goes to bench/README.md and results.json.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from bench.harness import MALLOC, Measured, Row

_HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure speed against the goals.")
    parser.add_argument("names", nargs="*", help="rows whose name contains one of these; default: all but sweep")
    parser.add_argument(
        "--write", action="store_true", help="write bench/results.json and the table in bench/README.md"
    )
    options = parser.parse_args()
    if "GLIBC_TUNABLES" not in os.environ:  # read by the loader alone: start again with it
        environment = os.environ | {"GLIBC_TUNABLES": MALLOC, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        os.execve(sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]], environment)

    from bench.record import print_row, write_results

    rows = _rows(options.names)
    if not rows:
        parser.error(f"no row matches {' '.join(options.names)!r}; rows: {', '.join(_names())}")
    measured = []
    for row in rows:
        measured.append(Measured.of(row))
        print_row(measured[-1])
        if options.write:  # after each: an interrupted measurement keeps what it has
            write_results(measured, _HERE)


def _names() -> list[str]:
    return sorted(file.stem.removeprefix("row_") for file in _HERE.glob("row_*.py"))


def _rows(wanted: list[str]) -> list[Row]:
    chosen = [name for name in _names() if not wanted or any(part in name for part in wanted)]
    rows: list[Row] = [importlib.import_module(f"bench.row_{name}").ROW for name in chosen]
    return [row for row in rows if wanted or not row.minutes]


if __name__ == "__main__":
    main()

"""`python -m bench [NAME ...]`: measure the rows (all, or those whose name contains a NAME) and print the table.

The rows are declared in `bench/rows.py`.  `--write` writes the table to bench/README.md and results.json.
"""

from __future__ import annotations

import argparse
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
    if (
        "GLIBC_TUNABLES" not in os.environ
    ):  # only the program loader reads it, so this process is replaced by one with the variable
        environment = os.environ | {"GLIBC_TUNABLES": MALLOC, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        os.execve(sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]], environment)

    from bench.record import print_row, write_results
    from bench.rows import ROWS

    rows = _rows(options.names)
    if not rows:
        parser.error(f"no row matches {' '.join(options.names)!r}; rows: {', '.join(ROWS)}")
    measured = []
    for row in rows:
        measured.append(Measured.of(row))
        print_row(measured[-1])
        if options.write:  # after each row, so that an interrupted measurement keeps the finished ones
            write_results(measured, _HERE)


def _rows(wanted: list[str]) -> list[Row]:
    from bench.rows import ROWS

    chosen = {name: row for name, row in ROWS.items() if not wanted or any(part in name for part in wanted)}
    return [row for row in chosen.values() if wanted or not row.minutes]


if __name__ == "__main__":
    main()

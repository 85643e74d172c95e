"""Train the runs of the benchmark, score every rule on them, and write the tables.

    python -m bench.detectors [--seeds 6] [--jobs 2] [--runs build/bench-detectors] [--out docs/results] [--finished]

Finished runs are kept in `--runs` and not trained again, so that an interrupted benchmark goes on where it was.  The
tune split comes first; `--finished` trains nothing and scores what is there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from bench.detectors.recording import Recording, read, record
from bench.detectors.scenarios import SEEDS, plans

_ROOT = Path(__file__).resolve().parents[2]


def main(words: Sequence[str] | None = None) -> None:
    """Train what is missing, then score."""
    parser = argparse.ArgumentParser(prog="python -m bench.detectors", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds of every scenario (default: {SEEDS})")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--runs", type=Path, default=_ROOT / "build" / "bench-detectors", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=_ROOT / "docs" / "results", help="folder of the tables")
    parser.add_argument("--finished", action="store_true", help="train nothing, and score the runs that are finished")
    options = parser.parse_args(words)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    wanted = list(plans(options.seeds))
    if not options.finished:
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
            tune_first = sorted(wanted, key=lambda plan: plan.is_test)
            jobs = [pool.submit(record, plan, options.runs) for plan in tune_first]
            for number, job in enumerate(as_completed(jobs), start=1):
                print(f"{number:4}/{len(wanted)}  {job.result()}", flush=True)
    runs = [run for plan in wanted if (run := read(plan, options.runs)) is not None]
    _score(runs, len(wanted), f"python -m bench.detectors --seeds {options.seeds}", options.out)


def _score(runs: Sequence[Recording], planned: int, command: str, out: Path) -> None:
    from bench.detectors import page
    from bench.detectors.forecast import forecasts
    from bench.detectors.table import Field, rows

    field = Field(runs, planned, command)
    table = rows(field)
    page.write(field, table, forecasts(field.tune, field.test, table[0].stops), out)
    readme = out.parents[1] / "README.md"
    if readme.exists():
        page.insert_short(readme, table)
    print("\n".join(page.short_table(table)))


if __name__ == "__main__":
    main()

"""`make mutants`: small faults, one by one, in the modules that decide about a number; do the tests notice?

mutmut makes the mutants (`[tool.mutmut]` in pyproject.toml), and this runs them: mutmut's own loop spends half a second
of pytest on each before a test begins, and takes the tests in any order.  Here all tests are collected once, and for
each mutant a forked process runs those that run through it, the quickest first, up to the first failure: most are dead
in a twentieth of a second.  The parent never trains, because torch's threads do not survive a fork.

    python -P tests/mutants.py                                        all that are not known to be dead
    python -P tests/mutants.py 'altgrad.stability.*' --sample 60         of each module 60 drawn by lot
    python -P tests/mutants.py --table

Results are kept in `mutants/`, where `mutmut show NAME` reads them too.  What was killed stays so until its function
changes.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mutmut import __main__ as mutmut
from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state
from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir, setup_source_paths, walk_mutatable_files
from mutmut.utils.format_utils import mangled_name_from_mutant_name as function_of

SEED = 1  # of the samples
LIVES, KILLED, NO_TEST, TOO_LONG = 0, 1, 33, 36  # mutmut's codes
MUTANTS = Path("mutants").absolute()
KNOWN = MUTANTS / "tests-of-functions.json"  # by test, how long it takes and which functions it runs through
WORDS = {LIVES: "alive", KILLED: "killed", NO_TEST: "without test", TOO_LONG: "too long"}


def modules() -> dict[str, SourceFileMutationData]:
    """By module, its mutants and what became of each."""
    found = {}
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        found[str(path)] = data
    return found


def table(found: dict[str, SourceFileMutationData]) -> str:
    """A line for each module and for all of them: mutants, run, killed, killed by the clock, without a test, alive."""
    codes = {path: list(data.exit_code_by_key.values()) for path, data in found.items()}
    codes["all"] = [code for of_module in codes.values() for code in of_module]
    lines = ["| module | mutants | run | killed | too long | without test | alive | dead of those run |"]
    lines.append("|---|" + "---:|" * 7)
    for name, of_module in codes.items():
        counts = Counter(of_module)
        run = len(of_module) - counts[None]
        share = f"{(counts[KILLED] + counts[TOO_LONG]) / run:.1%}" if run else "-"
        cells = (len(of_module), run, *(counts[code] for code in (KILLED, TOO_LONG, NO_TEST, LIVES)), share)
        lines.append(f"| `{name}` | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


class Loop:
    """A pytest plugin that takes the place of pytest's own loop over the tests."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._failed = False
        self._known: dict[str, Any] = {}
        files = [path for folder in ("altgrad", "tests") for path in MUTANTS.parent.joinpath(folder).rglob("*.py")]
        if KNOWN.exists() and KNOWN.stat().st_mtime > max(path.stat().st_mtime for path in files):
            self._known = json.loads(KNOWN.read_text())  # else the tests may run through other functions by now

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed |= report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("not all tests can be collected")
        items = {item.nodeid: item for item in session.items}
        self._learn([item for name, item in items.items() if name not in self._known])
        os.chdir("..")  # where mutmut reads and writes
        for path, data in modules().items():
            self._try_all(path, data, items)
        return True

    def _learn(self, items: list[pytest.Item]) -> None:
        """Run tests without any fault and keep, for each, how long it takes and which functions it runs through."""
        by_file: dict[Path, list[pytest.Item]] = {}
        for item in items:
            by_file.setdefault(item.path, []).append(item)
        for number, (path, of_file) in enumerate(by_file.items(), start=1):
            print(f"{number}/{len(by_file)} without a fault: {path.name}", flush=True)
            if _in_child(partial(self._keep, of_file), "stats", seconds=1800) != LIVES:
                raise pytest.UsageError(f"{path.name}: fails without a fault, or takes half an hour")
            self._known |= json.loads(KNOWN.read_text())

    def _keep(self, items: list[pytest.Item]) -> int:
        found = dict(self._known)
        before = time.process_time()
        for item in self._run(items):
            if self._failed:
                return KILLED
            seconds, before = time.process_time() - before, time.process_time()
            found[item.nodeid] = {"seconds": round(seconds, 3), "functions": sorted(state()._stats)}
            state()._stats.clear()
        KNOWN.write_text(json.dumps(found))
        return LIVES

    def _try_all(self, path: str, data: SourceFileMutationData, items: dict[str, pytest.Item]) -> None:
        """Try a module's mutants, some children at a time."""
        wanted = [name for name in data.exit_code_by_key if any(fnmatch.fnmatch(name, p) for p in self._options.names)]
        if self._options.sample is not None and self._options.sample < len(wanted):
            wanted = random.Random(SEED).sample(sorted(wanted), self._options.sample)
        settled = {KILLED, TOO_LONG, *((LIVES, NO_TEST) if self._options.new else ())}
        wanted = [name for name in wanted if data.exit_code_by_key[name] not in settled]
        for name in wanted:
            function, known = function_of(name), self._known
            through = [item for test, item in items.items() if function in known[test]["functions"]]
            through.sort(key=lambda item: known[item.nodeid]["seconds"])
            cost = sum(known[item.nodeid]["seconds"] for item in through)
            code = _in_child(partial(self._judge, through), name, 20 + 4 * cost) if through else NO_TEST
            data.exit_code_by_key[name] = code
            data.save()
            if code != KILLED:
                print(f"{name}: {WORDS.get(code, code)}", flush=True)
        if wanted:
            print(f"{path}: {len(wanted)} tried", flush=True)

    def _judge(self, items: list[pytest.Item]) -> int:
        for _ in self._run(items):
            if self._failed:
                return KILLED
        return LIVES

    def _run(self, items: list[pytest.Item]) -> Iterator[pytest.Item]:
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            yield item


def _in_child(work: Callable[[], int], mutant: str, seconds: float) -> int:
    """What `work` returns in a process of its own in which one mutant is active; `seconds` of CPU time at most."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        return TOO_LONG if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    code = KILLED
    try:
        os.chdir(MUTANTS)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1), os.dup2(nothing, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 5))
        set_mutant_under_test(mutant)
        code = work()
    finally:
        os._exit(code)


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant faults one by one and see whether the tests notice.")
    parser.add_argument("names", nargs="*", default=["*"], help="patterns of mutants, such as 'altgrad.stability.*'")
    parser.add_argument("--sample", type=int, help="so many of each module, drawn by lot")
    parser.add_argument("--new", action="store_true", help="only those that were never tried, not the survivors again")
    parser.add_argument("--tests", nargs="+", help="these instead of all that are named in pyproject.toml")
    parser.add_argument("--table", action="store_true", help="show what was found, and run nothing")
    options = parser.parse_args()
    if not options.table:
        set_mutant_under_test("mutant_generation")
        MUTANTS.mkdir(exist_ok=True)
        with mutmut.CatchOutput():
            copy_src_dir()
            copy_also_copy_files()
            setup_source_paths()
            mutmut.create_mutants(1)
        set_mutant_under_test("")
        os.chdir(MUTANTS)
        tests = options.tests or config().pytest_add_cli_args_test_selection
        code = pytest.main(["--rootdir=.", *tests, *config().pytest_add_cli_args], plugins=[Loop(options)])
        os.chdir(MUTANTS.parent)
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            return int(code)
    print(table(modules()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

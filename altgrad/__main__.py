"""`python -m altgrad`: one run without Ray, the formats' table, a report rebuilt from a folder, the config fields.

Each command imports what it needs when it runs: `formats` and `report` must not wait for torch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from rich.console import Console
from rich.table import Table

from altgrad.commands.option_parser import OneLineParser, location, path, positive
from altgrad.config.train_config import TrainConfig, check_fields, load_config
from altgrad.formats import GROUPS, NumberFormat, equal_up_to_scale, find_format
from altgrad.storage.folder import Folder
from altgrad.text.error_hints import error_text
from altgrad.text.terminal_output import cell, harmless, say, unstoppable_output
from altgrad.text.yaml_text import NotYaml, assignments

_EXIT_BAD_INPUT = 2
_TABLE_WIDTH = 100  # a cut-off number is a wrong number: better let a narrow terminal wrap


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 the run failed, 2 bad input)."""
    options = _parser().parse_args(arguments)
    try:
        # Of the other commands the output is all there is: they end with their reader.
        with unstoppable_output() if options.command is _train else nullcontext():
            return int(options.command(options))
    except (ValueError, OSError) as error:
        print(f"altgrad: {harmless(error_text(error))}", file=sys.stderr)
        return _EXIT_BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m altgrad", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train one config without Ray")
    train.add_argument("config", type=path, help="YAML file, such as configs/e7m0_uniform.yaml")
    train.add_argument(
        "--out",
        type=location,
        required=True,
        metavar="DIR",
        help="results folder of the run; an unfinished run in it is resumed",
    )
    train.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override config fields (repeatable)"
    )
    train.add_argument(
        "--baseline", type=location, metavar="RUN_DIR", help="finished BF16 run to measure the gap against"
    )
    train.set_defaults(command=_train)

    report = commands.add_parser("report", help="rebuild a failure report, or a sweep's report, from its folder alone")
    report.add_argument("folder", type=location, help="run folder or sweep folder (local path or URI)")
    report.add_argument("--html", action="store_true", help="a sweep as one self-contained HTML file")
    report.add_argument(
        "--out", type=location, metavar="FILE", help="where to write the HTML; default: report.html in the sweep folder"
    )
    report.set_defaults(command=_report)

    status = commands.add_parser("status", help="the state of a sweep, from its folder alone")
    status.add_argument("folder", type=location, help="sweep folder (local path or URI)")
    status.add_argument("--every", type=positive, metavar="SECONDS", help="show it again until no run is running")
    status.set_defaults(command=_status)

    stop = commands.add_parser("stop", help="ask a run, or all runs of a sweep, to stop at the next report, for good")
    stop.add_argument("folder", type=location, help="run folder or sweep folder (local path or URI)")
    stop.add_argument("--reason", default="", help="goes into the end records")
    stop.set_defaults(command=_stop)

    formats = commands.add_parser("formats", help="the table of number formats")
    formats.add_argument(
        "names", nargs="*", metavar="NAME", help="registered or any E<e>M<m>[b<bias>]; default: all registered"
    )
    formats.set_defaults(command=_formats)

    config = commands.add_parser("config", help="the config fields with defaults and meanings")
    config.set_defaults(command=_config)
    return parser


def _train(options: argparse.Namespace) -> int:
    settings = _settings(options.set)
    config = load_config(options.config, **settings)
    from altgrad.experiment.runner import FormatExperimentRunner
    from altgrad.experiment.training_progress import (
        TrainingProgress,  # torch and the runner only once the input is known to be good
    )
    from altgrad.training.data import TextBatches, load_corpus

    console = Console()
    folder = Folder.at(options.out)
    if folder.has("sweep.json"):
        raise ValueError(f"{folder}: holds a sweep; give the run a folder of its own")
    baseline = _loss_curve(Folder.at(options.baseline)) if options.baseline else None
    batches = TextBatches(load_corpus(config), config, config.shape.block_size)
    say(console, batches.source.sentence())
    with TrainingProgress(console, config.max_steps) as progress:
        runner = FormatExperimentRunner(
            config,
            folder,
            run=folder.name,
            report=progress.report,
            announce=progress.announce,
            baseline=baseline,
            batches=batches,
        )
        try:
            result = runner.run()
        except KeyboardInterrupt:
            say(console, f"stopped; the same command continues from the last checkpoint in {folder}")
            return 130
    say(console, progress.summary(result))
    return 0


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """The fields of `--set`, whose errors say so.  Raises ValueError."""
    try:
        fields = assignments(pairs)
    except NotYaml as error:
        raise NotYaml(f"--set: {error}") from error
    check_fields(fields, source="--set")
    return fields


def _loss_curve(folder: Folder) -> dict[int, float]:
    from altgrad.results import read_run

    _expect(folder, "run.json")
    table = read_run(folder).table("steps", ["loss"])
    return dict(zip(table["step"].to_pylist(), table["loss"].to_pylist(), strict=True))


def _report(options: argparse.Namespace) -> int:
    from altgrad.report import sweep_report, write_failure_report

    folder = Folder.at(options.folder)
    if options.html:
        return _html(folder, options.out)
    if options.out:
        raise ValueError(f"--out {options.out}: only with --html; without it the report is printed")
    if _expect(folder, "run.json", "sweep.json") == "run.json":
        print(harmless(write_failure_report(folder)))
    else:
        print(harmless(sweep_report(folder)))
    return 0


def _html(sweep: Folder, out: str | None) -> int:
    from altgrad.html import write_html_report

    try:
        _expect(sweep, "sweep.json")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; --html needs a sweep folder") from error
    print(harmless(write_html_report(sweep, out)))
    return 0


def _status(options: argparse.Namespace) -> int:
    from altgrad.show.sweep_status import goes_on, status_table, sweep_state

    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)
    folder = Folder.at(options.folder)
    _expect(folder, "sweep.json")
    while True:
        states = sweep_state(folder)
        console.print(status_table(states))
        for sentence in (sentence for state in states for sentence in state.damage):
            say(console, sentence)
        if options.every is None or not goes_on(folder, states):
            return 0
        time.sleep(options.every)


def _stop(options: argparse.Namespace) -> int:
    from altgrad.results.stop_request import request_stop

    folder = Folder.at(options.folder)
    _expect(folder, "run.json", "sweep.json")
    what = request_stop(folder, options.reason)
    print(f"{harmless(folder)}: the {what} stops at its next report; `python -m altgrad status` shows when")
    return 0


def _expect(folder: Folder, *records: str) -> str:
    """Which of the records lies in a folder.  Raises FileNotFoundError with what lies there instead."""
    for record in records:
        if folder.has(record):
            return record
    wanted = " or ".join(f"a {record.removesuffix('.json')} folder" for record in records)
    if folder.has("run.json"):
        raise FileNotFoundError(f"{folder}: the folder of a run; give {wanted}, such as {folder.parent}")
    sweeps = [info.base_name for info in folder.list() if (folder / info.base_name).has("sweep.json")]
    there = f", such as {folder / sweeps[0]}" if sweeps else ""
    missing = " nor ".join(records) if len(records) > 1 else f"no {records[0]}"
    raise FileNotFoundError(f"{folder}: {'neither ' if len(records) > 1 else ''}{missing} in it; give {wanted}{there}")


# Heading and width; with a space between columns 99 characters.
_FORMAT_COLUMNS = (
    *(("format", 18), ("bits", 4), ("bias", 4), ("largest", 13), ("smallest normal", 11), ("smallest", 12)),
    *(("values", 9), ("not finite", 14), ("beyond", 6)),
)


def _formats(options: argparse.Namespace) -> int:
    groups = {"": tuple(map(find_format, options.names))} if options.names else GROUPS
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)
    for title, formats in groups.items():
        table = Table(box=None, padding=(0, 1, 0, 0), show_header=title == next(iter(groups)))
        for heading, width in _FORMAT_COLUMNS:
            table.add_column(heading, width=width, no_wrap=heading != "smallest normal")
        for fmt in formats:
            table.add_row(*_format_row(fmt))
        console.print(*([f"\n{title}"] if title else []), table, sep="\n")
    scaleless = [fmt.name for formats in groups.values() for fmt in formats if not fmt.scaled]
    if scaleless:
        console.print(f"never scaled: {', '.join(scaleless)}")
    said: set[str] = set()
    for first, second, factor in equal_up_to_scale({fmt.name: fmt for formats in groups.values() for fmt in formats}):
        if first not in said:  # it has been said with which earlier one both agree
            console.print(f"{second} is {first} x {factor:g}: under max-abs scaling they round alike, bit for bit")
            said.add(second)
    return 0


def _format_row(fmt: NumberFormat) -> list[str]:
    """Cells of `_FORMAT_COLUMNS`."""
    special = " ".join(name for name, has in (("inf", fmt.has_inf), ("NaN", fmt.has_nan)) if has)
    zero = "" if fmt.has_negative_zero else "no -0"
    return [
        fmt.name,
        str(fmt.bits),
        str(fmt.bias) if fmt.exponent_bits else "-",
        f"{fmt.max:.8g}" + ("" if fmt.lowest == -fmt.max else f" ({fmt.lowest:g})"),
        "-" if fmt.min_normal is None else f"{fmt.min_normal:.6g}",
        f"{fmt.min_subnormal:.6g}",
        f"{fmt.value_count:,}" if fmt.bits <= 16 else f"{fmt.value_count:.3g}",
        ", ".join(part for part in (special, zero) if part) or "-",
        "inf" if fmt.overflow == "inf" else "max",
    ]


def _config(options: argparse.Namespace) -> int:
    table = Table("field", "default", "meaning")
    for name, field in TrainConfig.model_fields.items():
        table.add_row(*map(cell, (name, repr(field.default), field.description or "")))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The sweep's command line: one frozen record of what was asked, nothing decided yet.

An option that was not given is None, so that planning can tell a wish from a default and `--resume` can tell
whether the plan was meant to change.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from altgrad.commands.option_parser import (
    OneLineParser,
    count,
    count_or_zero,
    location,
    not_negative,
    path,
    positive,
    webhook,
    word,
)
from altgrad.config.train_config import INTERVENTIONS
from altgrad.text.yaml_text import NotYaml, assignments

NEWEST = "newest"  # `--resume` without a name
NOTIFY = "ALTGRAD_NOTIFY"  # the webhook's address, where other users must not see it on the command line
WandbMode = Literal["offline", "online", "disabled"]


class SweepError(ValueError):
    """A sweep that cannot start; the message is one line: what is wrong, where, what would be right."""


@dataclass(frozen=True)
class SweepOptions:
    """What the user asked for, by option name; None = not given."""

    # which trials
    configs: tuple[str, ...] | None = None
    formats: tuple[str, ...] | None = None
    seeds: int | None = None
    learning_rates: tuple[float, ...] | None = None
    interventions: tuple[str, ...] | None = None
    settings: Mapping[str, Any] | None = None
    model: str | None = None
    max_steps: int | None = None
    data: str | None = None
    no_baseline: bool | None = None
    # where the results go
    results: str = "results"
    name: str | None = None
    resume: str | None = None
    dry_run: bool = False
    probe: bool = False
    # how it runs
    workers_per_trial: int = 1
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    max_concurrent: int | None = None
    scheduler: str = "none"
    retries: int = 2
    stall_timeout: float | None = None
    notify: str | None = field(default=None, repr=False)
    wandb: WandbMode | None = None  # None: what W&B's own variables say, else offline
    address: str | None = None

    @property
    def cluster(self) -> str | None:
        """The Ray cluster to use: the one named, or the one whose job this is; None for a Ray of our own."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    def planning(self) -> list[str]:
        """The options given that decide which trials there are; with `--resume` the stored plan decides."""
        wishes = {
            "--configs": self.configs,
            "--formats": self.formats,
            "--seeds": self.seeds,
            "--lr": self.learning_rates,
            "--interventions": self.interventions,
            "--set": self.settings,
            "--model": self.model,
            "--max-steps": self.max_steps,
            "--data": self.data,
            "--no-baseline": self.no_baseline,
        }
        return [option for option, value in wishes.items() if value is not None]

    def resume_command(self, sweep: str) -> str:
        """The command line that continues a sweep in the same way; without the webhook, whose address is a secret."""
        python = "python" if shutil.which("python") == sys.executable else sys.executable
        words = [python, sys.argv[0], "--resume", sweep, "--results", self.results]
        given = {
            "--workers-per-trial": self.workers_per_trial if self.workers_per_trial != 1 else None,
            "--cpus-per-trial": self.cpus_per_trial,
            "--gpus-per-trial": self.gpus_per_trial,
            "--max-concurrent": self.max_concurrent,
            "--scheduler": self.scheduler if self.scheduler != "none" else None,
            "--retries": self.retries if self.retries != 2 else None,
            "--stall-timeout": self.stall_timeout,
            "--wandb": self.wandb,
            "--address": self.address,
        }
        for option, value in given.items():
            if value is not None:
                words += [option, f"{value:g}" if isinstance(value, float) else str(value)]
        return shlex.join(words)


def parse_options(words: Sequence[str] | None = None) -> SweepOptions:
    """The options of a command line (`sys.argv` by default).  Exits with code 2 and one line on a wrong one."""
    parser = _parser()
    found = vars(parser.parse_args(words))
    pairs = found.pop("set")
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    try:
        return SweepOptions(**found, settings=None if pairs is None else assignments(pairs))
    except NotYaml as error:
        parser.error(f"argument --set: {error}")


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="sweep.py",
        description="Train the same model once per number format, concurrently, and compare.",
        epilog="Without arguments: every config of the default sweep in configs/, at a model size that fits.",
    )
    _add_trials(parser.add_argument_group("which trials"))
    _add_results(parser.add_argument_group("where the results go"))
    _add_running(parser.add_argument_group("how it runs"))
    return parser


def _add_trials(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--configs",
        type=path,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="config files, or folders of them (all their YAML)",
    )
    group.add_argument(
        "--formats",
        nargs="+",
        action="extend",
        metavar="FORMAT",
        help="a trial each, from the first config or bf16_baseline.yaml",
    )
    group.add_argument("--seeds", type=count, metavar="N", help="N trials each, from the config's seed upward")
    group.add_argument(
        "--lr",
        type=positive,
        nargs="+",
        action="extend",
        metavar="LR",
        dest="learning_rates",
        help="a trial each per learning rate",
    )
    group.add_argument(
        "--interventions",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"a trial each: {', '.join(INTERVENTIONS)}, or several joined with +",
    )
    group.add_argument(
        "--set", action="extend", nargs="+", metavar="KEY=VALUE", help="a config field, for every trial (repeatable)"
    )
    group.add_argument(
        "--model", type=word, metavar="PRESET", help="micro, tiny, small, ...; default: what fits the machine"
    )
    group.add_argument("--max-steps", type=count, metavar="N", help="steps of every trial")
    group.add_argument(
        "--data", type=path, metavar="PATH", help="a text file, a folder, a glob, or a folder with train.bin"
    )
    group.add_argument(
        "--no-baseline", action="store_true", default=None, help="do not add the BF16 runs that others are compared to"
    )


def _add_results(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--results", type=location, default="results", metavar="DIR", help="results root (default: results)"
    )
    group.add_argument("--name", type=word, help="the sweep's folder below it (default: by date and time)")
    group.add_argument(
        "--resume",
        type=word,
        nargs="?",
        const=NEWEST,
        metavar="NAME",
        help="go on with a sweep (default: --name, or the newest)",
    )
    group.add_argument("--dry-run", action="store_true", help="print trials, waves and resources, run nothing")
    group.add_argument(
        "--probe",
        action="store_true",
        help="measure step times on this machine first, for the expected wall time of this and later plans",
    )


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers-per-trial",
        type=count,
        default=1,
        metavar="K",
        help="processes that train a trial together, each a part of every batch (default: 1)",
    )
    group.add_argument(
        "--cpus-per-trial",
        type=positive,
        metavar="N",
        help="cores and threads of a trial, or of each of its workers",
    )
    group.add_argument(
        "--gpus-per-trial",
        type=not_negative,
        metavar="X",
        help="GPUs of a trial, or of each of its workers; of a single one also a fraction, such as 0.25 (default: what "
        "fits)",
    )
    group.add_argument("--max-concurrent", type=count, metavar="N", help="trials at a time")
    group.add_argument(
        "--scheduler",
        choices=("none", "asha"),
        default="none",
        help="asha stops trials that lag behind, never the baseline (default: none)",
    )
    group.add_argument(
        "--retries",
        type=count_or_zero,
        default=2,
        metavar="N",
        help="restarts of a trial that died (default: 2)",
    )
    group.add_argument(
        "--stall-timeout",
        type=positive,
        metavar="SECONDS",
        help="kill and restart a trial that reports nothing for that long; until its first report, while it imports "
        "and compiles, ten minutes longer (default: never)",
    )
    group.add_argument(
        "--notify",
        type=webhook,
        default=os.environ.get(NOTIFY) or None,
        metavar="URL",
        help=f"POST JSON there on collapse, failure and end (default: ${NOTIFY})",
    )
    group.add_argument(
        "--wandb",
        choices=("offline", "online", "disabled"),
        help="default: what WANDB_DISABLED or WANDB_MODE says, else offline, which needs no account",
    )
    group.add_argument("--address", type=word, help="an existing Ray cluster, such as auto or ray://HEAD:10001")

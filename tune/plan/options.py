"""The sweep's command line as one frozen record of the given options.

An option that was not given is None, so that planning can distinguish it from a given default, and `--resume` can tell
whether the plan was meant to change.  Each option is declared once, here.  Its group decides how it is used: options of
`TRIALS` determine the trials, those of `RUNNING` are repeated in the command that resumes the sweep.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from altgrad.commands.option_fields import add_options, command_words, given, option
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
from altgrad.commands.typed_command import program_command, typed_command
from altgrad.config.train_config import INTERVENTIONS
from altgrad.text.yaml_text import NotYaml, assignments

NEWEST = "newest"  # `--resume` without a name
NOTIFY = "ALTGRAD_NOTIFY"  # variable for the webhook's address, which other users could read on a command line
TRIALS, RESULTS, RUNNING = "which trials", "where the results go", "how it runs"
WandbMode = Literal["offline", "online", "disabled"]


class SweepError(ValueError):
    """A sweep cannot start; the message is one line: the error, its place, and the right form."""


@dataclass(frozen=True)
class SweepOptions:
    """The options of a command line by name; None: not given."""

    # fmt: off
    configs: tuple[str, ...] | None = option(TRIALS, path, "config files, folders of them (all their YAML), or names of shipped ones", many=True, metavar="PATH")
    recipes: tuple[str, ...] | None = option(TRIALS, str, "a trial each, in place of everything numeric in the configs or bf16_baseline.yaml; `python -m altgrad recipes` lists them", many=True, metavar="NAME")
    formats: tuple[str, ...] | None = option(TRIALS, str, "a trial each, from the configs or bf16_baseline.yaml; with --recipes each of those in each of these formats", many=True, metavar="FORMAT")
    seeds: int | None = option(TRIALS, count, "N trials each, from the config's seed upward", metavar="N")
    learning_rates: tuple[float, ...] | None = option(TRIALS, positive, "a trial each per learning rate", flag="--lr", many=True, metavar="LR")
    interventions: tuple[str, ...] | None = option(TRIALS, str, f"a trial each: {', '.join(INTERVENTIONS)}, or several joined with +", many=True, metavar="NAME")
    settings: Mapping[str, Any] | None = option(TRIALS, str, "a config field, for every trial (repeatable)", flag="--set", many=True, metavar="KEY=VALUE")
    model: str | None = option(TRIALS, word, "micro, tiny, small, ...; default: what fits the machine", metavar="PRESET")
    max_steps: int | None = option(TRIALS, count, "steps of every trial", metavar="N")
    data: str | None = option(TRIALS, path, "a text file, a folder, a glob, or a folder with train.bin", metavar="PATH")
    no_baseline: bool | None = option(TRIALS, bool, "do not add the BF16 runs that others are compared to")
    results: str = option(RESULTS, location, "results root", default="results", metavar="DIR")
    name: str | None = option(RESULTS, word, "the sweep's folder below it (default: by date and time)")
    resume: str | None = option(RESULTS, word, "go on with a sweep (default: --name, or the newest)", bare=NEWEST, metavar="NAME")
    dry_run: bool = option(RESULTS, bool, "print trials, waves and resources, run nothing", default=False)
    probe: bool = option(RESULTS, bool, "measure step times on this machine first, for the expected wall time of this and later plans", default=False)
    workers_per_trial: int = option(RUNNING, count, "processes that train a trial together, each a part of every batch", default=1, metavar="K")
    cpus_per_trial: float | None = option(RUNNING, positive, "cores and threads of a trial, or of each of its workers", metavar="N")
    gpus_per_trial: float | None = option(RUNNING, not_negative, "GPUs of a trial, or of each of its workers; of a single one also a fraction, such as 0.25 (default: what fits)", metavar="X")
    max_concurrent: int | None = option(RUNNING, count, "trials at a time", metavar="N")
    scheduler: str = option(RUNNING, str, "asha stops trials that lag behind, never the baseline", default="none", choices=("none", "asha"))
    retries: int = option(RUNNING, count_or_zero, "restarts of a trial that died", default=2, metavar="N")
    stall_timeout: float | None = option(RUNNING, positive, "kill and restart a trial that reports nothing for that long; until its first report, while it imports and compiles, ten minutes longer (default: never)", metavar="SECONDS")
    notify: str | None = option(RUNNING, webhook, "POST JSON there on collapse, failure and end", environment=NOTIFY, is_secret=True, metavar="URL")
    wandb: WandbMode | None = option(RUNNING, str, "default: what WANDB_DISABLED or WANDB_MODE says, else offline, which needs no account", choices=("offline", "online", "disabled"))
    address: str | None = option(RUNNING, word, "an existing Ray cluster, such as auto or ray://HEAD:10001")
    # fmt: on

    @property
    def cluster(self) -> str | None:
        """The Ray cluster to use: that of `--address`, or of the Ray job around this process; None: a private Ray."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    def planning(self) -> list[str]:
        """Names of the given options that determine the trials; with `--resume` the stored plan does."""
        return list(given(self, TRIALS))

    def resume_command(self, sweep: str) -> str:
        """The command line that resumes a sweep with the same options, without the webhook, which is a secret."""
        words = [*typed_command(), "--resume", sweep, "--results", self.results]
        return shlex.join([*words, *command_words(given(self, RUNNING))])


def parse_options(words: Sequence[str] | None = None) -> SweepOptions:
    """The options of a command line (`sys.argv` by default).  Exits with code 2 and one line on a wrong one."""
    parser = OneLineParser(
        prog=program_command(),
        description="Train the same model once per number format, concurrently, and compare.",
        epilog="Without arguments: every config of the default sweep in configs/, at a model size that fits.",
    )
    add_options(parser, SweepOptions)
    found = vars(parser.parse_args(words))
    pairs = found.pop("settings")
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    try:
        return SweepOptions(**found, settings=None if pairs is None else assignments(pairs))
    except NotYaml as error:
        parser.error(f"argument --set: {error}")

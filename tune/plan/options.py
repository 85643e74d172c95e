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
from typing import Any, Literal, get_args

from altgrad.commands.option_fields import add_options, command_words, given, option
from altgrad.commands.option_parser import (
    FROM_HELP,
    KEEP_HELP,
    TASK_ARGUMENT_HELP,
    TASK_HELP,
    OneLineParser,
    count,
    count_or_auto,
    count_or_zero,
    examples,
    location,
    not_negative,
    path,
    positive,
    positive_or_auto,
    webhook,
    word,
)
from altgrad.commands.reports import MARGIN_HELP
from altgrad.commands.typed_command import program_command, typed_command
from altgrad.compare.parity.verdict import ENOUGH_SEEDS
from altgrad.config.interventions import INTERVENTIONS, PATTERNS
from altgrad.config.run_origin import Kept
from altgrad.text.yaml_text import NotYaml, assignments

MOST_SEEDS = 12  # of --seeds auto
RATE_FACTORS = (0.25, 0.5, 1, 2, 4)  # of --lr auto
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
    configs: tuple[str, ...] | None = option(TRIALS, path, "config files, folders (all YAML files in them), or names of shipped configs", many=True, metavar="PATH")
    recipes: tuple[str, ...] | None = option(TRIALS, str, "published recipes, one trial each; they replace the numeric fields of the configs, or of bf16_baseline.yaml; `altgrad recipes` lists them", many=True, metavar="NAME")
    formats: tuple[str, ...] | None = option(TRIALS, str, "number formats, one trial each, with the other fields of the configs or of bf16_baseline.yaml; with --recipes every recipe in every format", many=True, metavar="FORMAT")
    seeds: int | Literal["auto"] | None = option(TRIALS, count_or_auto, "number of seeds: every trial is repeated with N seeds, from the config's seed upward; auto begins with 3 and adds seeds until every parity verdict is clear", metavar="N")
    max_seeds: int | None = option(TRIALS, count, f"with --seeds auto: most seeds of a trial (default: {MOST_SEEDS})", metavar="N")
    learning_rates: tuple[float | Literal["auto"], ...] | None = option(TRIALS, positive_or_auto, f"learning rates: every trial is repeated with each of them; auto takes {', '.join(f'{factor:g}' for factor in RATE_FACTORS)} times the config's, and says where each format is best", flag="--lr", many=True, metavar="LR")
    interventions: tuple[str, ...] | None = option(TRIALS, str, f"interventions: every trial is repeated with each of them; {', '.join((*INTERVENTIONS, *PATTERNS))}, or several joined with +", many=True, metavar="NAME")
    settings: Mapping[str, Any] | None = option(TRIALS, str, "set a config field in every trial (repeatable)", flag="--set", many=True, metavar="KEY=VALUE")
    task: str | None = option(TRIALS, word, TASK_HELP, metavar="NAME")
    task_args: Mapping[str, Any] | None = option(TRIALS, str, TASK_ARGUMENT_HELP, flag="--task-arg", many=True, metavar="KEY=VALUE")
    start_from: str | None = option(TRIALS, word, FROM_HELP, flag="--from", metavar="WEIGHTS")
    start_keeps: tuple[Kept, ...] | None = option(TRIALS, str, KEEP_HELP, flag="--keep", many=True, choices=get_args(Kept))
    model: str | None = option(TRIALS, word, "preset of the built-in GPT: micro, tiny, small, ... (default: small with a GPU, else tiny)", metavar="PRESET")
    max_steps: int | None = option(TRIALS, count, "number of steps of every trial", metavar="N")
    data: str | None = option(TRIALS, path, "training data: a text file, a folder, a glob, or a folder with train.bin", metavar="PATH")
    branch_from: str | None = option(TRIALS, location, "run whose checkpoint every trial starts from, with the numeric fields of the configs, recipes or formats; all other fields are the run's", metavar="RUN_DIR")
    at: int | None = option(TRIALS, count_or_zero, "with --branch-from: step of the checkpoint (default: the newest)", metavar="STEP")
    no_baseline: bool | None = option(TRIALS, bool, "do not add the BF16 runs with which the others are compared")
    results: str = option(RESULTS, location, "folder or URI below which all sweeps are stored", default="results", metavar="DIR")
    name: str | None = option(RESULTS, word, "name of the sweep and of its folder below --results (default: date and time)")
    resume: str | None = option(RESULTS, word, "continue a sweep that was interrupted (default: that of --name, or the newest)", bare=NEWEST, metavar="NAME")
    dry_run: bool = option(RESULTS, bool, "print trials, waves and resources, and run nothing", default=False)
    probe: bool = option(RESULTS, bool, "first measure step times on this machine, from which this and later plans estimate the wall time", default=False)
    workers_per_trial: int | None = option(RUNNING, count, "number of processes that train a trial together, each on a part of every batch (default: 1)", metavar="K")
    cpus_per_trial: float | None = option(RUNNING, positive, "CPU cores, and threads, of a trial or of each of its workers", metavar="N")
    gpus_per_trial: float | None = option(RUNNING, not_negative, "GPUs of a trial or of each of its workers; a fraction such as 0.25 lets trials share a GPU (default: 0.25, or more if the model needs it)", metavar="X")
    max_concurrent: int | None = option(RUNNING, count, "most trials that run at the same time", metavar="N")
    explain: bool = option(RUNNING, bool, "at the end, replay every collapse with one thing healed at a time, as `altgrad explain` does", default=False)
    scheduler: str = option(RUNNING, str, "asha stops trials that lag behind, but never a baseline", default="none", choices=("none", "asha"))
    retries: int = option(RUNNING, count_or_zero, "number of restarts of a trial whose process died", default=2, metavar="N")
    stall_timeout: float | None = option(RUNNING, positive, "kill and restart a trial that reports nothing for this long; before its first report, while it imports and compiles, ten minutes longer (default: never)", metavar="SECONDS")
    notify: str | None = option(RUNNING, webhook, "address to which JSON is POSTed at each collapse, at each failure and at the end", environment=NOTIFY, is_secret=True, metavar="URL")
    margin: float | None = option(RUNNING, positive, MARGIN_HELP, metavar="LOSS")
    wandb: WandbMode | None = option(RUNNING, str, "mode of the copy for Weights & Biases (default: that of WANDB_DISABLED or WANDB_MODE, else offline, which needs no account)", choices=("offline", "online", "disabled"))
    address: str | None = option(RUNNING, word, "address of an existing Ray cluster, such as auto or ray://HEAD:10001")
    # fmt: on

    @property
    def first_seeds(self) -> int:
        """The number of seeds with which the sweep begins."""
        return ENOUGH_SEEDS if self.seeds == "auto" else self.seeds or 1

    @property
    def most_seeds(self) -> int | None:
        """The number of seeds up to which the sweep adds some; None without `--seeds auto`."""
        return (self.max_seeds or MOST_SEEDS) if self.seeds == "auto" else None

    def rates(self, usual: float) -> tuple[float, ...]:
        """The learning rates of a config whose own is `usual`."""
        rates = self.learning_rates or (usual,)
        if rates == ("auto",):
            return tuple(float(f"{factor * usual:.6g}") for factor in RATE_FACTORS)
        return tuple(rate for rate in rates if rate != "auto")

    @property
    def cluster(self) -> str | None:
        """The Ray cluster to use: that of `--address`, or of the Ray job around this process; None: a private Ray."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    @property
    def task_name(self) -> str | None:
        """The task that the options name; None: that of the configs."""
        named = (self.settings or {}).get("task")
        return self.task or (str(named) if named else None)

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
        usage="%(prog)s [options]",
        description="Train the same model once per number format or recipe, all at the same time, and compare with BF16.\n"
        "Without options: every config of the default sweep, at a model size that fits this machine.",
        epilog=examples(
            "sweep --formats E4M3 E5M2 E7M0 --seeds 3",
            "sweep --recipes mxfp8 nvfp4 --set max_steps=2000 --name recipes",
            "sweep --configs e4m3_stored --interventions none stochastic kahan",
            "sweep --dry-run",
            "sweep --resume recipes",
        ),
    )
    add_options(parser, SweepOptions)
    found = vars(parser.parse_args(words))
    words_of = {"settings": ("--set", found.pop("settings")), "task_args": ("--task-arg", found.pop("task_args"))}
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    if "auto" in (rates := found.get("learning_rates") or ()) and len(rates) > 1:
        parser.error("argument --lr: auto stands alone, without other rates")
    for name, (flag, pairs) in words_of.items():
        try:
            found[name] = None if pairs is None else assignments(pairs)
        except NotYaml as error:
            parser.error(f"argument {flag}: {error}")
    return SweepOptions(**found)

"""`altgrad branch`: trains a run that starts from a checkpoint of another one, with some fields changed."""

from __future__ import annotations

import argparse

from altgrad.branch import Branch
from altgrad.branch.checkpoints import checkpoint_steps
from altgrad.commands.known_folder import expect
from altgrad.commands.option_parser import Commands, count_or_zero, examples, location
from altgrad.commands.train import add_run_options, settings_of_words, train
from altgrad.storage.folder import Folder, absolute
from altgrad.text.terminal_output import unstoppable_output


def add(commands: Commands) -> None:
    """Add the command to a parser."""
    branch = commands.add_parser(
        "branch",
        help="train a run that starts from a checkpoint of another one",
        description="Train a run that starts where another one was at a step.  With --set it shows what a change "
        "would have done; without, it repeats the other run bit for bit.",
        epilog=examples("branch results/s1/e7m0-s42 --at 100 --out b1 --set rounding=stochastic"),
    )
    branch.add_argument("parent", type=location, metavar="RUN_DIR", help="run that it starts from")
    branch.add_argument(
        "--at", type=count_or_zero, metavar="STEP", help="step of the checkpoint (default: the newest); 0: the start"
    )
    add_run_options(branch, "branch")
    branch.set_defaults(command=_branch)


def _branch(options: argparse.Namespace) -> int:
    with unstoppable_output():  # a closed pipe or terminal does not end the run
        parent = Folder.at(options.parent)
        expect(parent, "run.json")
        steps = checkpoint_steps(parent)
        if options.at is None and not steps:
            raise ValueError(f"{parent}: no checkpoint in it; --at 0 starts where the run did")
        step = steps[-1] if options.at is None else options.at
        config = Branch(absolute(options.parent), step, **settings_of_words(options.set)).config()
        return train(config, Folder.at(options.out), options.baseline)

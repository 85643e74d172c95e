"""`altgrad judge`: what the collapse rules say about the log of any trainer, and from which step on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from altgrad.collapse import CollapseDetector, gap_to_baseline, judged
from altgrad.collapse.loss_log import LossLog, read_loss_log
from altgrad.commands.option_parser import Commands, count, examples, path, positive, word
from altgrad.commands.train import settings_of_words
from altgrad.config.train_config import TrainConfig, make_config
from altgrad.results import Verdict
from altgrad.text.number_text import number
from altgrad.text.terminal_output import say

COLLAPSED = 1  # exit code


def add(commands: Commands) -> None:
    """Add the command to a parser."""
    judge = commands.add_parser(
        "judge",
        help="what the collapse rules say about the log of any trainer",
        description="Read the training loss from a log that another trainer has written, and say whether a collapse "
        "rule would have stopped that run, and at which step.  The log is CSV, JSON lines, JSON, parquet, or text with "
        "pairs such as `iter 10: loss 2.31`.  Exit code: 0 if no rule judges the run, 1 if one does.",
        epilog=examples(
            "judge run.csv --vocabulary 50257",
            "judge fp8.jsonl --baseline bf16.jsonl --loss train/loss",
            "judge train.log --max-steps 100000 --set diverged_patience=200",
        ),
    )
    judge.add_argument("log", type=path, help="file with the losses of a run")
    judge.add_argument(
        "--baseline", type=path, metavar="LOG", help="log of the run in high precision on the same batches"
    )
    judge.add_argument("--loss", type=word, metavar="COLUMN", help="column of the training loss (default: by its name)")
    judge.add_argument("--step", type=word, metavar="COLUMN", help="column of the step (default: by its name)")
    judge.add_argument(
        "--vocabulary",
        type=count,
        metavar="N",
        help="the loss is a cross-entropy in nats over N classes (default: its unit is unknown)",
    )
    judge.add_argument(
        "--unigram-entropy",
        type=positive,
        metavar="NATS",
        help="entropy of the frequencies of the training tokens, asks rule no_context (default: it is unknown)",
    )
    judge.add_argument(
        "--max-steps", type=count, metavar="N", help="steps the run was planned for (default: the last of the log)"
    )
    judge.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="thresholds of the rules (repeatable)",
    )
    judge.set_defaults(command=_judge)


def _judge(options: argparse.Namespace) -> int:
    thresholds = settings_of_words(options.set)
    if others := sorted(thresholds.keys() - TrainConfig.of_kind("judging")):
        raise ValueError(f"--set {others[0]}: no threshold of a rule; `altgrad config` lists them under collapse rules")
    log = read_loss_log(Path(options.log), options.loss, options.step)
    baseline = _baseline(options, log)
    last = int(log.records[-1]["step"])
    max_steps = max(options.max_steps or last, 1)
    fields = {"max_steps": max_steps, **(_beginning(log) if log.begins_after < max_steps else {})}
    config = make_config(fields | thresholds, "--set")
    console = Console()
    say(console, _source(options.log, log))
    if baseline is not None:
        say(console, _source(options.baseline, baseline))
    verdict = verdict_on(log, config, options.vocabulary, baseline, options.unigram_entropy)
    for sentence in _sentences(log, verdict, baseline):
        say(console, sentence)
    return 0 if verdict is None else COLLAPSED


def _baseline(options: argparse.Namespace, log: LossLog) -> LossLog | None:
    if not options.baseline:
        return None
    baseline = read_loss_log(Path(options.baseline), options.loss, options.step)
    if not _by_step(baseline).keys() & _by_step(log).keys():
        raise ValueError(f"--baseline {options.baseline}: no step of it is among those of {options.log}")
    return baseline


def verdict_on(
    log: LossLog,
    config: TrainConfig,
    vocabulary: int | None = None,
    baseline: LossLog | None = None,
    unigram_entropy: float | None = None,
) -> Verdict | None:
    """The first verdict of the collapse rules on a log, or None; the numbers are those of `CollapseDetector`."""
    detector = CollapseDetector(config, vocabulary, unigram_entropy)
    gap = gap_to_baseline(config, vocabulary, _by_step(baseline)) if baseline else None
    return judged(detector, gap, log.records)


def _beginning(log: LossLog) -> dict[str, Any]:
    """Config fields of a run that goes on from weights of which the log does not say what they had learned."""
    return {"start_from": f"log@{log.begins_after}", "start_keeps": ["step"]} if log.begins_after else {}


def _by_step(log: LossLog) -> Mapping[int, float]:
    return {int(row["step"]): row["loss"] for row in log.records}


def _source(file: str, log: LossLog) -> str:
    steps = f"column {log.step_name!r}" if log.step_name else "no column has steps, so rows are counted"
    held_out = f", held-out loss from {log.held_out_name!r}" if log.held_out_name else ""
    repeated = f"; {log.repeated} rows repeat earlier steps and are left out" if log.repeated else ""
    repeated += f"; {log.without_step} rows have a loss and no step and are left out" if log.without_step else ""
    first, last = log.records[0]["step"], log.records[-1]["step"]
    losses = "1 loss" if len(log.records) == 1 else f"{len(log.records)} losses"
    return f"{file}: {losses} from {log.loss_name!r}, steps {first:.0f} to {last:.0f} ({steps}){held_out}{repeated}"


def _sentences(log: LossLog, verdict: Verdict | None, baseline: LossLog | None) -> list[str]:
    unseen = ["rules that read weights or gradients cannot be asked: stalled, rank_collapse"]
    if log.begins_after:
        unseen.append(
            f"the log begins with step {log.begins_after + 1}: never_learned and no_context take the run as one that "
            "goes on from trained weights"
        )
    if verdict is not None:
        told = f" ({verdict.detail})" if verdict.detail else ""
        return [f"collapsed: {verdict.sentence()}{told}"]
    last = number(log.records[-1]["loss"])
    compared = "" if baseline else "; without --baseline nothing is known about a run that only lags behind"
    return [f"no rule judges this run, whose last loss is {last}{compared}", *unseen]

"""Each option of a sweep is declared once: what the parser takes, the plan asks for and a resume repeats agree."""

import dataclasses
import shlex

import pytest

from altgrad.commands.option_fields import masked, options_of, without_secrets
from tune.plan.options import NOTIFY, RESULTS, RUNNING, TRIALS, SweepOptions, parse_options

# flag -> the words behind it, and the value that they are; written by hand
GIVEN = {
    "--configs": (["a.yaml", "b"], ("a.yaml", "b")),
    "--formats": (["E4M3", "E5M2"], ("E4M3", "E5M2")),
    "--seeds": (["3"], 3),
    "--lr": (["3e-4", "1"], (3e-4, 1.0)),
    "--interventions": (["none", "clip+shift"], ("none", "clip+shift")),
    "--set": (["seed=7", "scaling=none"], {"seed": 7, "scaling": "none"}),
    "--task": (["my.task:Mine"], "my.task:Mine"),
    "--task-arg": (["width=7", "kind=deep"], {"width": 7, "kind": "deep"}),
    "--from": (["results/trunk@300"], "results/trunk@300"),
    "--keep": (["step", "moments"], ("step", "moments")),
    "--model": (["micro"], "micro"),
    "--max-steps": (["9"], 9),
    "--data": (["book.txt"], "book.txt"),
    "--max-seeds": (["9"], 9),
    "--no-baseline": ([], True),
    "--results": (["/elsewhere"], "/elsewhere"),
    "--name": (["mine"], "mine"),
    "--resume": (["mine"], "mine"),
    "--dry-run": ([], True),
    "--probe": ([], True),
    "--workers-per-trial": (["2"], 2),
    "--cpus-per-trial": (["1.5"], 1.5),
    "--gpus-per-trial": (["0.25"], 0.25),
    "--max-concurrent": (["4"], 4),
    "--scheduler": (["asha"], "asha"),
    "--branch-from": (["results/trunk"], "results/trunk"),
    "--at": (["300"], 300),
    "--explain": ([], True),
    "--retries": (["0"], 0),
    "--margin": (["0.02"], 0.02),
    "--stall-timeout": (["90"], 90.0),
    "--notify": (["http://127.0.0.1:9/secret"], "http://127.0.0.1:9/secret"),
    "--wandb": (["disabled"], "disabled"),
    "--address": (["auto"], "auto"),
}
RESUMED = {name for name in GIVEN if options_of(SweepOptions)[name][1].group == RUNNING} - {"--notify"}


@pytest.fixture(autouse=True)
def no_webhook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NOTIFY, raising=False)


def test_every_field_is_an_option_that_is_tried_here() -> None:
    known = options_of(SweepOptions)
    assert {field.name for field, _ in known.values()} == {field.name for field in dataclasses.fields(SweepOptions)}
    assert set(GIVEN) <= known.keys() and known.keys() - GIVEN.keys() <= {"--recipes"}
    assert {option.group for _, option in known.values()} == {TRIALS, RESULTS, RUNNING}


def test_an_empty_command_line_is_the_record_without_arguments() -> None:
    assert parse_options([]) == SweepOptions() and parse_options([]).planning() == []
    assert shlex.split(parse_options([]).resume_command("s"))[2:] == ["--resume", "s", "--results", "results"]


@pytest.mark.parametrize("flag", GIVEN)
def test_an_option_is_parsed_planned_with_and_repeated_according_to_its_group(flag: str) -> None:
    words, value = GIVEN[flag]
    options = parse_options([flag, *words])
    field, option = options_of(SweepOptions)[flag]
    assert getattr(options, field.name) == value != field.default
    others = {f.name: getattr(options, f.name) for f in dataclasses.fields(options) if f.name != field.name}
    assert others == {name: getattr(SweepOptions(), name) for name in others}
    assert options.planning() == ([flag] if option.group == TRIALS else [])
    resumed = parse_options(shlex.split(options.resume_command("s"))[2:])
    expected = SweepOptions(resume="s", results=options.results)
    assert resumed == (dataclasses.replace(expected, **{field.name: value}) if flag in RESUMED else expected)


def test_a_secret_is_in_no_text_that_is_kept() -> None:
    secret = GIVEN["--notify"][0][0]
    for words in (["--notify", secret, "--seeds", "2"], [f"--notify={secret}", "--seeds", "2"]):
        assert secret not in repr(parse_options(words)) + parse_options(words).resume_command("s")
        assert secret not in " ".join(masked(words, SweepOptions)) and "***" in " ".join(masked(words, SweepOptions))
        assert without_secrets(words, SweepOptions) == ["--seeds", "2"]


def test_the_webhook_is_found_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NOTIFY, "http://127.0.0.1:9/other")
    assert parse_options([]).notify == "http://127.0.0.1:9/other"

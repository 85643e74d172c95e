"""Bad input through the real commands: one line that names it, exit code 2, nothing written, at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import tune.submit
import tune.sweep
from altgrad.__main__ import main as altgrad
from altgrad.config.recipe import Recipe
from altgrad.config.train_config import ConfigError
from altgrad.training import TrainConfig
from tune.plan.resources.machine import Machine

REAL = {"scale_rule": "real", "scale_format": "FP32"}
HUGE = "x" * 100_000
DEEP = "[" * 5000
CONFIG = str(Path(__file__).parents[2] / "configs" / "e4m3_uniform.yaml")
BOMB = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nlayer_formats: [*b, *b, *b]\n"
FILES = {
    "deep.yaml": f"layer_formats: {DEEP}",
    "bomb.yaml": BOMB,
    "long.yaml": "#" * 10**8,
    "twice.yaml": "seed: 1\nseed: 2\n",
    "data.yaml": 'data: ""\n',
    "root.yaml": "data: //\n",
    "true.yaml": "learning_rate: true\n",
    "yes.yaml": "use_shadow: yes\n",
    "huge.yaml": f"format: {'y' * 60_000}\n",
    "digits.yaml": f"max_steps: {'9' * 60_000}\n",
    "rounding.yaml": "rounding: neerest\n",
    "key.yaml": f"{'k' * 900}: 1\n",
}

TRAIN = ["train", CONFIG, "--out", "out"]
ALTGRAD: dict[str, tuple[Sequence[str], str]] = {
    "unknown command": (["stauts", "x"], "did you mean 'status'?"),
    "unknown option": ([*TRAIN, "--sed", "x"], "did you mean --set?"),
    "out of nothing": (["train", CONFIG, "--out", ""], "--out"),
    "long out": (["train", CONFIG, "--out", HUGE], "more than 255 bytes"),
    "long folder": (["status", HUGE], "more than 255 bytes"),
    "out at the root": (["train", CONFIG, "--out", "//"], "root of the filesystem"),
    "config of nothing": (["train", "", "--out", "out"], "no path"),
    "config that is a folder": (["train", ".", "--out", "out"], "Is a directory"),
    "config without an end": (["train", "/dev/zero", "--out", "out"], "longer than"),
    "data at a long URI": ([*TRAIN, "--set", f"data=s3://KEY:SECRET{HUGE[:1000]}@bucket/x"], "://***@"),
    "data at a URI": ([*TRAIN, "--set", "data=s3://KEY:SECRET@bucket/x"], "data='s3://***@bucket/x': a URI"),
    "baseline of nothing": ([*TRAIN, "--baseline", ""], "--baseline"),
    "baseline that is not there": ([*TRAIN, "--baseline", "nowhere"], "no run.json in it"),
    "set of no value": ([*TRAIN, "--set", "seed"], "KEY=VALUE"),
    "set of an open brace": ([*TRAIN, "--set", "layer_formats={a"], "--set: layer_formats: line 1"),
    "set of depth": ([*TRAIN, "--set", f"layer_formats={DEEP}"], "nested deeper"),
    "set of a long value": ([*TRAIN, "--set", f"format={HUGE[:60_000]}"], "known: E0M7"),
    "set of a longer value": ([*TRAIN, "--set", f"format={HUGE}"], "longer than"),
    "set of a long key": ([*TRAIN, "--set", f"{HUGE}=1"], "unknown field"),
    "a key that Python has": ([*TRAIN, "--set", "self=1"], "--set: self: unknown field"),
    "boolean rate": ([*TRAIN, "--set", "learning_rate=true"], "--set: learning_rate=True: expected a number"),
    "boolean steps": ([*TRAIN, "--set", "max_steps=true"], "expected a whole number"),
    "boolean seed": ([*TRAIN, "--set", "seed=true"], "expected a whole number"),
    "number as boolean": ([*TRAIN, "--set", "use_shadow=1"], "expected true or false"),
    "yes as boolean": ([*TRAIN, "--set", "use_shadow=yes"], "expected true or false"),
    "number in quotes": ([*TRAIN, "--set", 'seed="1"'], "expected a whole number"),
    "number with underscores": ([*TRAIN, "--set", "max_steps=1_000"], "expected a whole number"),
    "data of nothing": ([*TRAIN, "--set", "data="], "data=None: expected a text"),
    "data of two quotes": ([*TRAIN, "--set", "data=''"], "is no path"),
    "value cut at a comment": ([*TRAIN, "--set", "data=my #1.txt"], "put quotes"),
    "nearest rounding": ([*TRAIN, "--set", "rounding=neerest"], "did you mean 'nearest'?"),
    "nearest scaling": ([*TRAIN, "--set", "scaling=delay"], "did you mean 'delayed'?"),
    "nearest model": ([*TRAIN, "--set", "model=tinny"], "did you mean 'tiny'?"),
    "nearest format": ([*TRAIN, "--set", "format=e4m3"], "did you mean 'E4M3'?"),
    "text that is not there": ([*TRAIN, "--set", "data=python-docs"], "give opticks"),
    "status of nowhere": (["status", "nowhere"], "no sweep.json in it"),
    "status of nothing": (["status", ""], "no path"),
    "status of a file": (["status", "data.yaml"], "data.yaml"),
    "status every never": (["status", ".", "--every", "nan"], "a number above 0"),
    "stop of nowhere": (["stop", "nowhere"], "neither run.json nor sweep.json"),
    "stop of the root": (["stop", "/"], "root of the filesystem"),
    "report of nowhere": (["report", "nowhere"], "neither run.json nor sweep.json"),
    "report of a bucket without a name": (["report", "s3://"], "s3://BUCKET"),
    "html of nowhere": (["report", "nowhere", "--html"], "no sweep.json in it"),
    "format of nowhere": (["formats", "E4M33"], "from 1 to 15"),
    "long format": (["formats", HUGE], "known: E0M7"),
} | {
    f"{name} to train": (["train", name, "--out", "out"], said)
    for name, said in {
        "deep.yaml": "nested deeper",
        "bomb.yaml": "aliases",
        "long.yaml": "longer than",
        "twice.yaml": "seed is given twice",
        "data.yaml": "is no path",
        "root.yaml": "root of the filesystem",
        "true.yaml": "learning_rate=True: expected a number",
        "yes.yaml": "use_shadow='yes': expected true or false",
        "huge.yaml": "known: E0M7",
        "digits.yaml": "a number of 60000 digits",
        "rounding.yaml": "did you mean 'nearest'?",
        "key.yaml": "unknown field",
    }.items()
}
SWEEP: dict[str, tuple[Sequence[str], str]] = {
    "results of nothing": (["--results", ""], "--results"),
    "results at the root": (["--results", "//"], "root of the filesystem"),
    "name of nothing": (["--name", ""], "--name"),
    "resume of nothing": (["--resume", ""], "--resume"),
    "data of nothing": (["--data", ""], "--data"),
    "data at the root": (["--data", "/"], "root of the filesystem"),
    "configs of nothing": (["--configs", ""], "--configs"),
    "model of nothing": (["--model", ""], "--model"),
    "address of nothing": (["--address", ""], "--address"),
    "notify of nothing": (["--notify", ""], "--notify"),
    "format of nothing": (["--formats", ""], "format=''"),
    "intervention of nothing": (["--interventions", ""], "intervention=''"),
    "set of nothing": (["--set", ""], "KEY=VALUE"),
    "far too many seeds": (["--seeds", "100000000"], "at most 10000"),
    "seeds of many digits": (["--seeds", "9" * 5000], "a whole number from 1"),
    "boolean seeds": (["--seeds", "true"], "a whole number from 1"),
    "boolean rate": (["--lr", "true"], "a number above 0"),
    "rate with an underscore": (["--lr", "1_0"], "a number above 0"),
    "boolean in set": (["--set", "learning_rate=true"], "expected a number"),
    "open brace": (["--set", "layer_formats={a"], "argument --set: layer_formats: line 1"),
    "long data": (["--data", HUGE], "more than 255 bytes"),
    "long results": (["--results", HUGE], "--results"),
    "long config": (["--configs", HUGE], "--configs"),
    "nearest intervention": (["--interventions", "stocastic"], "did you mean 'stochastic'?"),
    "nearest format": (["--formats", "E4M3f"], "did you mean 'E4M3'?"),
    "nearest wandb": (["--wandb", "ofline"], "did you mean 'offline'?"),
    "nearest option": (["--sedes", "2"], "did you mean --seeds?"),
    "deep config": (["--configs", "deep.yaml"], "nested deeper"),
    "anchor bomb": (["--configs", "bomb.yaml"], "aliases"),
    "config of 100 MB": (["--configs", "long.yaml"], "longer than"),
    "empty data in a config": (["--configs", "data.yaml"], "is no path"),
}  # fmt: skip
SUBMIT: dict[str, tuple[Sequence[str], str]] = {
    "address of nothing": (["--address", "", "--results", "/shared"], "--address"),
    "results of nothing": (["--results", ""], "--results"),
    "results at the root": (["--results", "/"], "root of the filesystem"),
}
CASES = [
    (f"{command}: {case}", main, *what)
    for command, main, table in (
        ("altgrad", altgrad, ALTGRAD),
        ("sweep", tune.sweep.main, SWEEP),
        ("submit", tune.submit.main, SUBMIT),
    )
    for case, what in table.items()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    for name, content in FILES.items():
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(("main", "words", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_is_one_short_line_with_exit_code_2_and_writes_nothing(
    main: Callable[[Sequence[str]], int],
    words: Sequence[str],
    said: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tune.sweep.this_machine", lambda: Machine(cpus=2, gpus=0, gpu_note="no CUDA GPU found"))
    try:
        code = main(words)
    except SystemExit as stop:  # argparse
        code = int(str(stop.code))
    error = capsys.readouterr().err
    assert code == 2 and len(error.strip().splitlines()) == 1, error[:1000]
    assert said in error and "SECRET" not in error and len(error) < 500
    assert {path.name for path in folder.iterdir()} == set(FILES)


def test_options_accumulate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--set seed=1 --set max_steps=2 batch_size=3 --formats E4M3 --formats E5M2 --lr 1e-3 --lr 1e-4"
    options = tune.sweep.parse_options([*words.split(), "--interventions", "clip", "--interventions", "shift"])
    assert options.settings == {"seed": 1, "max_steps": 2, "batch_size": 3}
    assert (options.formats, options.learning_rates) == (("E4M3", "E5M2"), (1e-3, 1e-4))
    assert options.interventions == ("clip", "shift")
    seen = {}
    monkeypatch.setattr("altgrad.commands.train.load_config", lambda path, **fields: seen.update(fields) or exit(7))
    with pytest.raises(SystemExit):
        altgrad([*TRAIN, "--set", "seed=1", "--set", "max_steps=2"])
    assert seen == {"seed": 1, "max_steps": 2}


@pytest.mark.parametrize("kind", [TrainConfig, Recipe])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"rounding": "neerest"},
            "rounding='neerest': expected 'nearest', 'toward_zero' or 'stochastic'; did you mean",
        ),
        ({"roundin": "nearest"}, "roundin: unknown field; did you mean 'rounding'?"),
        ({"format": HUGE}, "known: E0M7"),
        ({"format": "nope"}, "format='nope'; known: E0M7"),
        ({"weight_format": "FP8"}, "weight_format='FP8' is not one format"),
        ({"seed": True}, "seed=True: expected a whole number"),
        ({"seed": 10**5000}, "a number of 16610 bits"),
        ({"amax_factor": True}, "amax_factor=True: expected a number"),
        ({"master_weights": 0}, "master_weights=0: expected true or false"),
        (
            {"format": "E4M3", "master_weights": False, "gemms": {"fprop": {"weight": REAL}}},
            "fprop.weight with scale_format='FP32' and master_weights=False: a real scale moves the whole grid",
        ),
        (
            {"format": "E4M3", "master_weights": False, "layer_gemms": {"h.*": {"fprop": {"amax_factor": 0.5}}}},
            "fprop.weight with amax_factor=0.5 and master_weights=False: the largest weights are cut off anew",
        ),
        ({"layer_formats": {str(i): "E4M3f" for i in range(1000)}}, "did you mean 'E4M3'?"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_python_gets_the_same_line(kind: type[Recipe], fields: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**fields)
    message = str(caught.value)
    assert said in message and "\n" not in message and len(message) < 500
    assert message.count("format=") <= 1 or "layer_formats" in fields, "the value is said once"


def test_an_empty_webhook_in_the_environment_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "ALTGRAD_NOTIFY", "")
    assert tune.sweep.parse_options([]).notify is None

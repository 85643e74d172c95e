"""`python -m altgrad`: what a person types, what they see, and one clear line for a wrong argument."""

import os
import pty
import re
import shlex
import subprocess
import sys
from importlib import metadata
from itertools import takewhile
from pathlib import Path

import pytest

from altgrad.__main__ import command_parser
from altgrad.commands.train import settings_of_words
from altgrad.config.train_config import TrainConfig
from tests.servers.polling import PATIENCE, wait_for
from tests.support.commands import altgrad
from tests.support.runs.small_runs import set_words
from tune.plan.options import parse_options

pytestmark = pytest.mark.long

CONFIGS = Path(__file__).parents[2] / "configs"
SHORT = ["--set", *set_words(
    model="micro", n_layer=1, batch_size=2, max_steps=6, diagnostic_interval=3, eval_batches=1, compile=False,
)]  # fmt: skip


def test_formats_prints_every_number_uncut_and_names_equal_grids():
    shown = altgrad("formats", COLUMNS="40").stdout
    for word in ("E0M7", "0.9921875", "1.8446744e+19", "57344", "3.4028235e+38", "E1M6 is E0M7 x 4"):
        assert word in shown
    assert "…" not in shown


def test_formats_takes_any_name_and_refuses_nonsense_in_one_line():
    assert "E4M3b11" in altgrad("formats", "E4M3b11", "E3M2").stdout
    wrong = altgrad("formats", "E4M33")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1 and "must be from 1 to 15" in wrong.stderr


def test_reading_commands_do_not_import_torch():
    code = "import sys; from altgrad.__main__ import main; main(['formats']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_train_from_another_folder_leaves_a_complete_run_and_says_where(tmp_path):
    done = altgrad("train", CONFIGS / "e7m0_uniform.yaml", "--out", "out/run", *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "completed after 6 steps" in done.stdout and str(tmp_path / "out" / "run") in done.stdout
    assert {path.name for path in (tmp_path / "out" / "run").iterdir()} >= {"run.json", "end.json", "steps", "layers"}
    again = altgrad("train", CONFIGS / "e7m0_uniform.yaml", "--out", "out/run", *SHORT, cwd=tmp_path)
    assert again.returncode == 2 and "has ended" in again.stderr


def test_a_collapse_leaves_a_report_that_can_be_rebuilt_from_the_folder_alone(tmp_path):
    arguments = ["learning_rate=1e30", "gradient_clip=0", "non_finite_patience=2", "max_steps=20", "warmup_steps=0"]
    done = altgrad("train", CONFIGS / "e5m2_short.yaml", "--out", tmp_path / "run", *SHORT, *arguments)
    assert done.returncode == 0, done.stderr
    report = tmp_path / "run" / "failure_report.md"
    assert "collapsed" in done.stdout and str(report) in done.stdout
    written = report.read_text()
    report.unlink()
    assert altgrad("report", tmp_path / "run").returncode == 0
    assert report.read_text() == written and "E5M2" in written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "nowhere.yaml", "--out", "x"], "nowhere.yaml"),
        (["train", CONFIGS / "e4m3_uniform.yaml", "--out", "x", "--set", "frmat=E4M3"], "did you mean 'format'?"),
        (["train", CONFIGS / "e4m3_uniform.yaml", "--out", "x", "--set", "format"], "expected KEY=VALUE"),
        (["train", CONFIGS / "e4m3_uniform.yaml", "--out", "x", "--set", "data=missing.txt"], "data='missing.txt'"),
        (["train", CONFIGS / "e4m3_uniform.yaml", "--out", "x", "--set", "data=empty.txt"], "the text is empty"),
        (["train", CONFIGS / "e4m3_uniform.yaml", "--out", "x", "--set", "data=short.txt"], "smaller block_size"),
        (["train", CONFIGS / "e4m3_uniform.yaml", "--out", "x", "--set", "model=huge"], "model='huge'; known"),
        (["train", CONFIGS / "e4m3_uniform.yaml", "--out", "x", "--set", "device=cuda"], "no CUDA device"),
        (["train", CONFIGS / "e4m3_uniform.yaml", "--out", "a/b/x", *SHORT, "layer_formats={no*: E5M2}"], "no layer"),
        (["train", CONFIGS / "e4m3_uniform.yaml", "--out", "file/x", *SHORT], "file/x"),
        (["report", "nothing"], "neither run.json nor sweep.json"),
    ],
    ids=lambda value: " ".join(map(str, value[-2:])) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_with_exit_code_2_and_leaves_nothing_behind(tmp_path, arguments, said):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "file").write_text("a file where a folder should be")
    before = sorted(tmp_path.rglob("*"))
    done = altgrad(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_baseline_is_a_run_that_completed_in_bf16_with_the_same_model_data_and_seed(tmp_path):
    for name, config, more in (
        ("bf16", "bf16_baseline", []),
        ("e4m3", "e4m3_uniform", []),
        ("stored", "bf16_baseline", ["master_weights=false"]),
        ("other_seed", "bf16_baseline", ["seed=7"]),
        ("longer", "bf16_baseline", ["max_steps=7"]),
    ):
        done = altgrad("train", CONFIGS / f"{config}.yaml", "--out", tmp_path / name, *SHORT, *more)
        assert done.returncode == 0, done.stderr
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished/run.json").write_bytes((tmp_path / "bf16/run.json").read_bytes())
    command = ["train", CONFIGS / "e7m0_uniform.yaml", "--out", tmp_path / "out", *SHORT, "--baseline"]
    for name, said in {
        "e4m3": "E4M3",
        "stored": "other rescues",
        "other_seed": "another model, data, seed",
        "longer": "another model, data, seed or schedule",
        "unfinished": "its status is killed",
    }.items():
        refused = altgrad(*command, tmp_path / name)
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()
        assert f"--baseline {tmp_path / name}: " in refused.stderr and said in refused.stderr
    assert altgrad(*command, tmp_path / "bf16").returncode == 0


def test_a_run_whose_terminal_is_closed_goes_on_to_its_end(tmp_path):
    terminal, its_end = pty.openpty()
    command = [sys.executable, "-m", "altgrad", "train", CONFIGS / "e7m0_uniform.yaml", "--out", tmp_path / "run"]
    seldom = dict.fromkeys(("eval_interval", "diagnostic_interval", "max_steps"), 60)
    command += [*SHORT, *set_words(block_size=16, checkpoint_interval=10, **seldom)]
    process = subprocess.Popen(
        list(map(str, command)), stdin=its_end, stdout=its_end, stderr=its_end, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, 0x540E, 0),  # TIOCSCTTY: its controlling terminal
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(its_end)
    checkpoints = tmp_path / "run" / "checkpoints"
    wait_for(lambda: checkpoints.exists() and any(checkpoints.iterdir()))
    assert not (tmp_path / "run" / "end.json").exists()
    os.close(terminal)  # sends SIGHUP, and every write fails from here on
    assert process.wait(PATIENCE) == 0
    assert '"completed"' in (tmp_path / "run" / "end.json").read_text()


COMMANDS = ["train", "branch", "report", "compare", "status", "stop", "judge", "formats", "recipes", "config"]
APPLICATIONS = ["sweep", "explain", "submit", "dashboard"]


@pytest.mark.parametrize("command", [*COMMANDS, *APPLICATIONS])
def test_the_help_of_a_command_says_what_it_is_for_and_its_examples_are_command_lines(command):
    shown = altgrad(command, "--help", COLUMNS="80").stdout
    assert all(len(line) <= 80 for line in shown.splitlines())
    about, _, lines = shown.partition("examples:\n")
    assert re.search(r"\n\n[A-Z][^\n]+", about.split("\noptions:")[0])  # a sentence after the usage
    examples = [shlex.split(line) for line in lines.splitlines()]
    assert examples and all(words[:2] == ["altgrad", command] for words in examples)
    for _, *words in examples:
        if command in COMMANDS:
            command_parser().parse_args(words)
            for at in (at for at, word in enumerate(words) if word == "--set"):  # which names fields that exist
                settings_of_words(list(takewhile(lambda word: not word.startswith("--"), words[at + 1 :])))
        elif command in ("sweep", "submit"):
            parse_options(words[1:])


def test_config_prints_every_field_with_its_whole_meaning_on_a_narrow_terminal():
    shown = altgrad("config", COLUMNS="60").stdout
    told = " ".join(shown.split())
    for name, field in TrainConfig.model_fields.items():
        meaning = " ".join(field.description.split())
        assert f" {name}: " in told and meaning in told[told.index(f" {name}: ") :], name
    one = altgrad("config", "stalled_*").stdout
    assert re.findall(r"^  (\w+):", one, re.MULTILINE) == [
        n for n in TrainConfig.model_fields if n.startswith("stalled_")
    ]
    wrong = altgrad("config", "sclaing")
    assert wrong.returncode == 2 and "did you mean 'scaling'?" in wrong.stderr and not wrong.stdout


def test_without_a_command_the_help_is_shown_and_version_is_that_of_the_package():
    helped = altgrad()
    assert helped.returncode == 2
    assert set(re.findall(r"^    ([a-z]+)", helped.stdout, re.MULTILINE)) == {*COMMANDS, *APPLICATIONS}
    assert altgrad("--version").stdout == f"altgrad {metadata.version('altgrad')}\n"

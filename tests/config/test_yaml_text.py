"""What a scalar in a config or behind `--set` means: the tables of YAML 1.2.2, section 10.3.2, by hand."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from altgrad.text.yaml_text import NotYaml, assignments, parse_value, read_yaml, to_yaml

CORE = [
    ("null", None), ("Null", None), ("~", None), ("", None), ("nULL", "nULL"),
    ("true", True), ("True", True), ("FALSE", False), ("tRUE", "tRUE"),
    ("yes", "yes"), ("no", "no"), ("on", "on"), ("Off", "Off"), ("y", "y"),
    ("0", 0), ("-19", -19), ("+12", 12), ("010", 10), ("0o7", 7), ("0o17", 15), ("0x3A", 58), ("0b11", "0b11"),
    ("1_000", "1_000"), ("1:30", "1:30"), ("2026-01-01", "2026-01-01"), ("-0x1", "-0x1"),
    ("0.", 0.0), ("-0.0", -0.0), (".5", 0.5), ("+12e03", 12000.0), ("-2E+05", -2e5), ("6e-4", 6e-4), ("1e3", 1000.0),
    (".inf", math.inf), ("-.Inf", -math.inf), ("+.INF", math.inf), ("inf", "inf"), ("nan", "nan"), (".", "."),
    ("1e5_tokens.txt", "1e5_tokens.txt"), ("6e-4x", "6e-4x"), ("1e", "1e"), ("1.2.3", "1.2.3"), ("e5", "e5"),
    ("'010'", "010"), ('"true"', "true"), ("s3://b/exp#1", "s3://b/exp#1"), ("[1, no, 010]", [1, "no", 10]),
    ("{lm_head: BF16, '*.mlp.*': E3M4, 0: null}", {"lm_head": "BF16", "*.mlp.*": "E3M4", "0": None}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), CORE, ids=[text or "empty" for text, _ in CORE])
def test_a_value_means_what_the_core_schema_says(tmp_path: Path, text: str, value: Any) -> None:
    (tmp_path / "c.yaml").write_text(f"field: {text}\n")
    for read in (parse_value(text), read_yaml(tmp_path / "c.yaml")["field"]):
        assert read == value and type(read) is type(value)
        assert not isinstance(value, float) or math.copysign(1, read) == math.copysign(1, value)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse_value(".NaN"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: a is given twice"),
        ("{a: {b: 1, b: 1}}", "b is given twice"),
        ("a: &x 1\nb: *x\n", "line 2, column 4: aliases"),
        ("layer_formats: {*: E4M3}", "line 1"),
        ("a: !!int '3'", "tags"),
        ("a: !!python/object/apply:os.system [true]", "tags"),
        ("? [a, b]\n: 1\n", "a key must be a word"),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ("a: [1\n", "line 2"),
        ("a: {", "line 1"),
        ("a\tb: \x07", "not allowed"),
        ("a: " + "9" * 5000, "a number of 5000 digits"),
        ("a: " + "[" * 5000, "nested deeper than 16"),
        ("- " * 5000 + "a", "nested deeper than 16"),
        ("".join(" " * level + "a:\n" for level in range(300)), "nested deeper than 16"),
        ("a: " + "x" * 10**6, "no config is"),
        ("<<: {a: 1}\n<<: {b: 1}\n", "<< is given twice"),
    ],
    ids=lambda value: json.dumps(value)[:30],
)
def test_what_is_refused_is_one_short_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(NotYaml) as caught:
        read_yaml(file)
    message = str(caught.value)
    assert said in message and "\n" not in message and len(message) < 300


def test_an_anchor_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    names = "abcdefghi"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in itertools.pairwise(names)]
    (tmp_path / "bomb.yaml").write_text("\n".join([*lines, "layer_formats: *i\n"]))
    with pytest.raises(NotYaml, match="aliases"):
        read_yaml(tmp_path / "bomb.yaml")


@pytest.mark.parametrize("text", ["notes #1.txt", "# all of it", "'quoted' # comment"])
def test_a_comment_on_the_command_line_is_a_value_cut_off(text: str) -> None:
    with pytest.raises(NotYaml, match="put quotes around the value"):
        parse_value(text)


def test_assignments_accumulate_and_the_last_counts() -> None:
    assert assignments(["a=1", "b=x=y", "c=", "a=2"]) == {"a": 2, "b": "x=y", "c": None}
    for wrong in ("a", "=1", ""):
        with pytest.raises(NotYaml, match="KEY=VALUE"):
            assignments([wrong])


@pytest.mark.parametrize("read", [lambda file: read_yaml(file), lambda file: yaml.safe_load(file.read_text())])
def test_what_is_written_is_read_back_by_us_and_by_yaml_1_1(tmp_path: Path, read: Any) -> None:
    fields = {
        "words": ["E4M3", "no", "true", "null", "1e5", "010", "0x1F", "1:30", "", " a ", "a: b", "#x", "-", "é\n", "~"],
        "numbers": [0, -3, 2**62, 0.1, 1e-8, 1e300, -2.5, 6e-4, 1.0, math.inf, -math.inf],
        "others": [None, True, False, {}, [], {"*.mlp.*": "E3M4", "0": "BF16", "no": "x"}],
        "on": "off",
        "data": "/home/a b/c#1.txt",
        "plain": "configs/e4m3_uniform.yaml",
    }
    (tmp_path / "c.yaml").write_text(to_yaml(fields))
    assert read(tmp_path / "c.yaml") == fields
    assert "plain: configs/e4m3_uniform.yaml\n" in to_yaml(fields)

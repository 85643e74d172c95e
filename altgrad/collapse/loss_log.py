"""The training loss in the log of any trainer: CSV, JSON lines, JSON, parquet, or text with `name value` pairs.

What a file is, its first bytes say, not its name.  The names of step and loss differ between trainers, so that they are
found by their words: `train/loss`, `lm loss` and `trl` (llm.c) are training losses, `val_loss` and `eval/loss` held-out
ones, `iter`, `global_step` and `trainer/global_step` steps.  An empty cell was not measured; `nan` was, and is NaN.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from altgrad.text.error_hints import cut, did_you_mean

_STEP_WORDS = {"step", "steps", "iter", "iters", "iteration", "iterations", "it", "s"}
_LOSS_WORDS = {"loss", "trl", "nll", "ce"}
_HELD_OUT_WORDS = {"val", "valid", "validation", "eval", "evaluation", "test", "dev", "held", "tel"}
_PLAIN = ("loss", "train_loss", "training_loss", "lm_loss", "trl")  # in this order, if several columns are losses
_GROUPED = r"\d{1,3}(?:,\d{3})+|\d{1,3}(?:_\d{3})+"  # 12,000 and 12_000
_NUMBER = rf"[-+]?(?:(?:{_GROUPED})(?:\.\d+)?|\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|nan|inf(?:inity)?)"
_PAIR = re.compile(
    rf"(?<![\w/.-])(?P<name>(?:[a-z][\w/.-]*[ ])?[a-z][\w/.-]*)(?:['\"]?\s*[:=]\s*|\s+)(?P<value>{_NUMBER})"
    r"(?!\w|[.,]\w)",
    re.IGNORECASE,
)
_IS_GROUPED = re.compile(rf"[-+]?(?:{_GROUPED})(?P<point>\.\d+)?")
_LARGEST_STEP = 2**53  # larger whole numbers are not exact in float64; no trainer counts so far
_OF_INTERVAL = 100  # losses that tell every how many steps a trainer logs
_EXTREMES = ("__MIN", "__MAX")  # columns that the export of Weights & Biases adds to each of its own
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

LogRow = Mapping[str, float]


@dataclass(frozen=True)
class LossLog:
    """The records of a log in the order of their steps, and where they were found.

    `records`: `step` and `loss` each, and `validation_loss` at the first training loss from its measurement on; a step
    at which no training loss stands is not among them.  `step_name` is None if the log has no steps: its rows were
    counted, from 1.  `repeated`: number of rows whose step is not later than an earlier one (a restart trains such
    steps again).  `without_step`: number of rows with a loss that are left out because they have no step.
    """

    records: tuple[LogRow, ...]
    loss_name: str
    step_name: str | None
    held_out_name: str | None
    repeated: int
    without_step: int = 0

    @property
    def begins_after(self) -> int:
        """The step after which the log begins, if it lacks the start of the training; else 0.

        Example: a log of every tenth step that begins with step 10 or 20 is whole, one that begins with 2010 is not.
        """
        steps = [int(row["step"]) for row in self.records[:_OF_INTERVAL]]
        interval = median(after - before for before, after in pairwise(steps)) if len(steps) > 1 else steps[0]
        return steps[0] - 1 if steps[0] > 2 * max(interval, 1) else 0


def read_loss_log(file: Path, loss: str | None = None, step: str | None = None) -> LossLog:
    """The training loss of a log; `loss`, `step`: names of its columns, if they cannot be told by their words.
    With `loss` no held-out loss is looked for.

    Raises OSError if the file cannot be read, and ValueError, with the file's name, if no loss is found or several are.
    """
    try:
        rows = _numbers(_rows(file.read_bytes()))
        names = list(dict.fromkeys(name for row in rows for name in row))
        if not names:
            raise ValueError("no numbers with a name; a CSV, JSON lines, parquet or text with pairs such as `loss 2.3`")
        loss_name = _chosen(loss, names, "--loss") if loss else _training_loss(names)
        step_name = _chosen(step, names, "--step") if step else _step_beside(rows, loss_name)
        held_out = None if loss else next(filter(_is_held_out, names), None)
        return _log(rows, loss_name, step_name, held_out)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file}: {error}") from error


def _log(rows: Sequence[LogRow], loss_name: str, step_name: str | None, held_out_name: str | None) -> LossLog:
    found: dict[int, dict[str, float]] = {}
    held_out: dict[int, float] = {}
    repeated, last = 0, -1
    for step, row in _with_steps(rows, step_name):
        if held_out_name is not None and held_out_name in row:
            held_out[step] = row[held_out_name]
        if loss_name not in row:
            continue
        if step <= last:
            repeated += 1
            continue
        found[step] = {"step": step, "loss": row[loss_name]}
        last = step
    if not found:
        raise ValueError(f"no row has both {loss_name!r} and {step_name!r}; --loss and --step name other columns")
    steps = list(found)
    for step, value in held_out.items():  # many trainers write it in a row of its own: the next training loss takes it
        found[steps[min(bisect_left(steps, step), len(steps) - 1)]]["validation_loss"] = value
    without_step = sum(loss_name in row for row in rows) - len(found) - repeated
    return LossLog(tuple(found.values()), loss_name, step_name, held_out_name, repeated, without_step)


def _with_steps(rows: Iterable[LogRow], step_name: str | None) -> Iterator[tuple[int, LogRow]]:
    for number, row in enumerate(rows, start=1):
        if step_name is None:
            yield number, row
            continue
        # an evaluation that stands in a row of its own may give its step another name
        step = next((row[name] for name in (step_name, *filter(_is_step, row)) if name in row), math.nan)
        if abs(step) <= _LARGEST_STEP:  # NaN is not
            yield int(step), row


def _rows(data: bytes) -> Iterable[Mapping[str, Any]]:
    if data[:4] == b"PAR1":
        import pyarrow.parquet as pq

        return list(pq.read_table(io.BytesIO(data)).to_pylist())
    text = _COLOUR.sub("", data.decode("utf-8-sig", errors="replace"))
    if (rows := _json_rows(text)) is not None:
        return rows
    if (mark := _delimiter(text)) is not None:
        return csv.DictReader(io.StringIO(text.lstrip()), delimiter=mark)
    return [dict(_pairs(line)) for line in text.splitlines()]


def _delimiter(text: str) -> str | None:
    """What separates the columns of a table with headings; None if the text is no such table."""
    first, *others = text.lstrip().splitlines()[:2] or [""]
    mark = max(",;\t", key=first.count)
    heading, *cells = (next(csv.reader([line], delimiter=mark), []) for line in (first, *others))
    fits = len(heading) > 1 and [len(row) for row in cells] == [len(heading)] and not any(map(_PAIR.search, others))
    return mark if (fits or any(map(_is_loss, heading))) and not _PAIR.search(first) else None


def _json_rows(text: str) -> Sequence[Mapping[str, Any]] | None:
    """The rows of JSON or JSON lines; None if the text is neither."""
    whole = _json(text)
    if isinstance(whole, dict):  # the state of a trainer has its history below a name, such as `log_history`
        lists = [value for value in whole.values() if isinstance(value, list) and value]
        whole = next((value for value in lists if all(isinstance(row, dict) for row in value)), [whole])
    if whole is None:
        lines = [line for line in text.splitlines() if line.strip()]
        whole = [_json(line) for line in lines]
        if not lines or not isinstance(whole[0], dict):
            return None
        broken = [number for number, row in enumerate(whole[:-1], start=1) if row is None]
        if broken:  # the last line may be half: a trainer was killed while it wrote
            raise ValueError(f"line {broken[0]} is no JSON, though the first one is: {cut(lines[broken[0] - 1])}")
    return [row for row in whole if isinstance(row, dict)] if isinstance(whole, list) else None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    for pair in _PAIR.finditer(line):
        name = pair["name"]
        if " " in name and not _is_loss(name):
            name = name.split(" ")[-1]  # the word before it belongs to the sentence: `INFO step 10`
        yield name, pair["value"]


def _numbers(rows: Iterable[Mapping[str, Any]]) -> list[LogRow]:
    read: list[LogRow] = []
    for row in rows:
        values = {(key := str(name).strip()): _number(_ungrouped(key, value)) for name, value in row.items()}
        values = {name: value for name, value in values.items() if not name.endswith(_EXTREMES)}
        read.append({name: value for name, value in values.items() if value is not None})
    return read


def _ungrouped(name: str, value: object) -> object:
    """`12,000` of a step as `12000`, and `4,123.5` of anything; elsewhere `4,123` may be a decimal comma: no number."""
    found = _IS_GROUPED.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or not (found["point"] or _is_step(name)):
        return value
    return found[0].replace(",", "").replace("_", "")


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):  # a whole number of JSON may have any number of digits
        return None


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z]+", name.lower()) if word]


def _is_step(name: str) -> bool:
    return bool(words := _words(name)) and words[-1] in _STEP_WORDS


def _is_held_out(name: str) -> bool:
    return bool(words := set(_words(name))) and bool(words & _HELD_OUT_WORDS) and bool(words & {*_LOSS_WORDS, "tel"})


def _is_loss(name: str) -> bool:
    return bool(set(_words(name)) & {*_LOSS_WORDS, "tel"})


def _step_beside(rows: Iterable[LogRow], loss_name: str) -> str | None:
    """The step column of most rows with a loss: nanoGPT writes `step` where it evaluates, `iter` where it trains."""
    beside = Counter(name for row in rows if loss_name in row for name in row if _is_step(name))
    return beside.most_common(1)[0][0] if beside else None


def _training_loss(names: Sequence[str]) -> str:
    losses = [name for name in names if _is_loss(name) and not _is_held_out(name)]
    for plain in _PLAIN:
        if alike := [name for name in losses if "_".join(_words(name)) == plain]:
            return alike[0]
    if len(losses) == 1:
        return losses[0]
    if losses:
        raise ValueError(f"several columns may be the training loss; --loss says which: {_listed(losses)}")
    raise ValueError(f"no column is a training loss by its name; --loss says which is: {_listed(names)}")


def _chosen(name: str, names: Sequence[str], option: str) -> str:
    if name not in names:
        raise ValueError(f"{option} {name}: no such column{did_you_mean(name, names)}; there are {_listed(names)}")
    return name


def _listed(names: Sequence[str]) -> str:
    return cut(", ".join(names), 240)

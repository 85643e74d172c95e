"""Kinds of values on the command line, each with one line about what would be right."""

from __future__ import annotations

import argparse
from typing import Any

from altgrad.notify import check_address


def webhook(text: str) -> str:
    try:
        check_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def count(text: str) -> int:
    return _number(text, int, "a whole number from 1", lambda value: value >= 1)


def count_or_zero(text: str) -> int:
    return _number(text, int, "a whole number from 0", lambda value: value >= 0)


def positive(text: str) -> float:
    return _number(text, float, "a number above 0", lambda value: 0 < value < float("inf"))


def not_negative(text: str) -> float:
    return _number(text, float, "a number from 0", lambda value: 0 <= value < float("inf"))


def _number(text: str, kind: Any, accepted: str, holds: Any) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not holds(value):
        raise argparse.ArgumentTypeError(f"{text!r}: expected {accepted}")
    return value

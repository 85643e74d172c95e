"""Converts names to those that Weights & Biases accepts; it raises for any other name.

Our run names may contain `+` and be as long as a file name, and a sweep's name is free.  A name that had to be changed
ends in a hash of the original, so that two runs never get one name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

PROJECT = "altgrad"  # the default without WANDB_PROJECT
_PLAIN = re.compile(r"[^A-Za-z0-9_.-]")
_NO_URL = re.compile(r"[/\\#?%:\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LONGEST_ID, _LONGEST = 64, 128
_REGISTRY = "wandb-registry-"  # W&B refuses this name alone for a project


def run_id(sweep: str, run: str) -> str:
    """The id by which a restarted trial continues its W&B run."""
    return _fitted(f"{sweep}-{run}", _PLAIN, _LONGEST_ID)


def artifact(sweep: str, run: str, what: str) -> str:
    """The name of an artifact of a run."""
    return _fitted(f"{sweep}-{run}-{what}", _PLAIN, _LONGEST)


def title(name: str) -> str:
    """The displayed name of a run or a group."""
    return _fitted(name, _NO_TEXT, _LONGEST)


def project(environment: Mapping[str, str]) -> tuple[str | None, str]:
    """Entity (None: the account's own) and project: `WANDB_ENTITY`, and `WANDB_PROJECT` as NAME or ENTITY/NAME."""
    before, slash, name = environment.get("WANDB_PROJECT", "").rpartition("/")
    entity = environment.get("WANDB_ENTITY", "") or (before if slash else "")
    if not name.strip() or name == _REGISTRY:
        name = PROJECT
    return (_fitted(entity, _NO_URL, _LONGEST) if entity.strip() else None), _fitted(name, _NO_URL, _LONGEST)


def _fitted(name: str, forbidden: re.Pattern[str], longest: int) -> str:
    """The name if it follows the rules, else its allowed characters and a hash."""
    allowed = forbidden.sub("-", name).strip()
    if allowed == name and 0 < len(name) <= longest:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{allowed[: longest - 13]}-{digest}".lstrip("-. ")

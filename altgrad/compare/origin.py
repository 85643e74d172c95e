"""The origin of a run: its task, its model, its initial weights and its data, as recorded in `run.json` by hashes.

Two runs with the same config may still have trained different things: the user passed another model, a data file was
edited between the runs, or the weights were loaded from a checkpoint.  A difference between their losses then says
nothing about number formats, so it is not computed.  Where a run was trained (`surroundings`) moves last digits only:
it does not forbid a comparison, but is named beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SHOWN = 8  # characters of a hash in a sentence
_WORDS: Mapping[str, str] = {
    "task_hash": "task",
    "vocabulary": "vocabulary",
    "parameters": "number of parameters",
    "initial_weights_hash": "initial weights",
    "batches_hash": "batches",
}
_HASHES = ("initial_weights_hash", "batches_hash")
_SURROUNDINGS = ("device", "threads", "workers", "compiled")
_SAME_SHARE = 0.01
_VERSIONS = ("altgrad", "torch")
NOT_RECORDED = "hashes not recorded"


@dataclass(frozen=True)
class Origin:
    """Fields of `run.json`; None if an older version did not record one, or (`vocabulary`) the model has none."""

    task_hash: Any = None
    vocabulary: Any = None
    parameters: Any = None
    initial_weights_hash: Any = None
    batches_hash: Any = None
    rounded_share: float | None = None  # of the FLOPs of the model's matrix products
    surroundings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Origin:
        """From a run's `run.json`."""
        versions = info.get("versions") or {}
        around = [(name, info[name]) for name in _SURROUNDINGS if info.get(name) is not None]
        around += [(name, versions[name]) for name in _VERSIONS if name in versions]
        coverage = info.get("coverage")
        share = coverage.get("share") if isinstance(coverage, Mapping) else None
        known = float(share) if isinstance(share, int | float) else None
        return cls(**{name: info.get(name) for name in _WORDS}, rounded_share=known, surroundings=tuple(around))

    def other_surroundings(self, other: Origin) -> list[str]:
        """What differs in hardware, threads and versions: `torch 2.13 vs 2.14`; an unrecorded one is left out."""
        theirs = dict(other.surroundings)
        return [
            f"{name} {value} vs {theirs[name]}"
            for name, value in self.surroundings
            if name in theirs and theirs[name] != value
        ]

    def other_coverage(self, other: Origin) -> str | None:
        """The rounded shares, if they differ by more than a hundredth: `10 % of the GEMM FLOPs are rounded vs 98 %`."""
        own, theirs = self.rounded_share, other.rounded_share
        if own is None or theirs is None or abs(own - theirs) <= _SAME_SHARE:
            return None
        return f"{own:.0%} of the GEMM FLOPs are rounded vs {theirs:.0%}"

    @property
    def task(self) -> tuple[Any, Any, Any] | None:
        """(task, vocabulary, parameters), which distinguish tasks and models of one config; None: not recorded."""
        found = (self.task_hash, self.vocabulary, self.parameters)
        return None if self.task_hash is None and self.parameters is None else found

    def same_task(self, task: tuple[Any, Any, Any]) -> bool:
        """Whether nothing that was recorded says that the run is of another task or model than `task`."""
        own, (task_hash, vocabulary, parameters) = self.task, task
        if own is None:
            return True
        if None not in (own[0], task_hash) and own[0] != task_hash:
            return False
        return None in (own[2], parameters) or own[1:] == (vocabulary, parameters)

    def obstacle(self, other: Origin) -> str | None:
        """Why runs from the two origins cannot be compared: `not compared: other batches (77aa… vs 03b1…)`.

        None if no recorded field differs.  Of several differences the first is named.
        """
        for name, words in _WORDS.items():
            own, others = getattr(self, name), getattr(other, name)
            unlike = own != others and own is not None and others is not None
            if unlike or (name == "vocabulary" and self._recorded and other._recorded and own != others):
                return f"not compared: other {words} ({_short(own)} vs {_short(others)})"
        return None

    def vouches_for(self, other: Origin) -> bool:
        """Whether both have recorded hashes: then `obstacle` would have found a difference."""
        return self._recorded and other._recorded

    @property
    def _recorded(self) -> bool:
        return all(getattr(self, name) is not None for name in _HASHES)


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"

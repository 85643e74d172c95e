"""What a run started from: the model, its initial weights and its data, by the hashes that its `run.json` holds.

Two runs with the same config may still have trained different things: another model was given to the runner, a data
file was edited in between, the weights came from elsewhere.  A difference between their losses then says nothing about
number formats, so it is not taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

_SHOWN = 8  # characters of a hash that are named
_WORDS: Mapping[str, str] = {
    "vocabulary": "vocabulary",
    "parameters": "number of parameters",
    "initial_weights_hash": "initial weights",
    "batches_hash": "batches",
}
_HASHES = ("initial_weights_hash", "batches_hash")
NOT_RECORDED = "hashes not recorded"


@dataclass(frozen=True)
class Origin:
    """As recorded; None = not recorded, as by older versions, or (`vocabulary`) there is none."""

    vocabulary: Any = None
    parameters: Any = None
    initial_weights_hash: Any = None
    batches_hash: Any = None

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Origin:
        """From a run's `run.json`."""
        return cls(**{field.name: info.get(field.name) for field in fields(cls)})

    @property
    def model(self) -> tuple[Any, Any] | None:
        """Tells models apart whose configs are the same; None where nothing was recorded."""
        return None if self.parameters is None else (self.vocabulary, self.parameters)

    def obstacle(self, other: Origin) -> str | None:
        """Why runs from the two origins cannot be compared: `not compared: other batches (77aa… vs 03b1…)`.

        None where they can, as far as is recorded.  Of several differences the first is named.
        """
        for name, words in _WORDS.items():
            own, others = getattr(self, name), getattr(other, name)
            unlike = own != others and own is not None and others is not None
            if unlike or (name == "vocabulary" and self._recorded and other._recorded and own != others):
                return f"not compared: other {words} ({_short(own)} vs {_short(others)})"
        return None

    def vouches_for(self, other: Origin) -> bool:
        """Whether the hashes of both are recorded, so that `obstacle` would have found a difference."""
        return self._recorded and other._recorded

    @property
    def _recorded(self) -> bool:
        return all(getattr(self, name) is not None for name in _HASHES)


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"

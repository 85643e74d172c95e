"""Text as tokens, and batches that are a function of (seed, step) alone.

Stateless batches make every format see the same data, and a resumed run go on where it was, without any position to
store.
"""

from __future__ import annotations

import glob
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from altgrad.training.config import ConfigError, TrainConfig

DEFAULT_CORPUS = "python-docs"
_HASHED_BATCHES = 64
_TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".text")

Batch = tuple[Tensor, Tensor]


class Batches(Protocol):
    """Training data of a run.  Your own: any object with these members."""

    vocabulary: int | None

    def training(self, step: int) -> Batch:
        """(inputs, targets) of a step, on the CPU; the same for every format."""
        ...

    def validation(self) -> list[Batch]:
        """Held-out batches, the same at every call."""
        ...

    def digest(self) -> str:
        """A hash that differs where the data or their order differ."""
        ...


@dataclass(frozen=True)
class Corpus:
    """Tokens split into training and validation text; vocabulary = number of token ids."""

    training: np.ndarray
    validation: np.ndarray
    vocabulary: int


class TextBatches:
    """Random windows of a corpus; inputs and targets (batch_size, block_size) int64, shifted by one."""

    def __init__(self, corpus: Corpus, config: TrainConfig, block_size: int) -> None:
        for name, tokens in (("training", corpus.training), ("validation", corpus.validation)):
            if len(tokens) < block_size + 1:
                raise ConfigError(
                    f"data={config.data!r}: the {name} text has {len(tokens)} tokens, fewer than one block of "
                    f"block_size + 1 = {block_size + 1}; use a longer text or a smaller block_size"
                )
        self.vocabulary: int | None = corpus.vocabulary
        self._corpus = corpus
        self._config = config
        self._window = np.arange(block_size + 1)

    def training(self, step: int) -> Batch:
        return self._cut(self._corpus.training, self._starts(step))

    def validation(self) -> list[Batch]:
        count = self._config.eval_batches * self._config.batch_size
        last = len(self._corpus.validation) - len(self._window)
        starts = np.unique(np.linspace(0, last, count).astype(np.int64))
        batches = -(-len(starts) // self._config.batch_size)
        return [self._cut(self._corpus.validation, part) for part in np.array_split(starts, batches)]

    def digest(self) -> str:
        """Hash of both texts' beginnings and lengths and of the windows of the first steps."""
        digest = hashlib.sha256()
        for tokens in (self._corpus.training, self._corpus.validation):
            digest.update(f"{len(tokens)},".encode() + np.ascontiguousarray(tokens[: 1 << 20]).tobytes())
        for step in range(1, min(self._config.max_steps, _HASHED_BATCHES) + 1):
            digest.update(self._starts(step).tobytes())
        return digest.hexdigest()[:16]

    def _starts(self, step: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(key=[self._config.seed, step]))
        return generator.integers(0, len(self._corpus.training) - len(self._window) + 1, self._config.batch_size)

    def _cut(self, tokens: np.ndarray, starts: np.ndarray) -> Batch:
        windows = torch.from_numpy(tokens[starts[:, None] + self._window].astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def load_corpus(config: TrainConfig) -> Corpus:
    """The corpus named by `config.data`.  Raises ConfigError where it is missing, empty or not text."""
    if config.data == DEFAULT_CORPUS:
        return _split(_bundled_text(), config)
    path = Path(config.data).expanduser()
    if (path / "train.bin").exists() or (path / "val.bin").exists():
        return _memmapped(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _TEXT_SUFFIXES and file.is_file())
        wanted = f"a folder with files ending in {', '.join(_TEXT_SUFFIXES)}, or with train.bin and val.bin"
    else:
        files = [path] if path.is_file() else sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        wanted = f"{DEFAULT_CORPUS!r}, a text file, a folder or a glob"
    content = b"\n".join(file.read_bytes() for file in files if file.is_file())
    if not files:
        raise ConfigError(f"data={config.data!r}: no such text; give {wanted}")
    if not content.strip():
        raise ConfigError(f"data={config.data!r}: the text is empty; give {wanted}")
    return _split(content, config)


def _bundled_text() -> bytes:
    """The language reference that ships inside CPython: 0.4 MB of English, nothing to download."""
    from pydoc_data import topics

    return "\n".join(topics.topics[name] for name in sorted(topics.topics)).encode()


def _split(content: bytes, config: TrainConfig) -> Corpus:
    """Byte-level tokens; the last `validation_fraction` is held out."""
    tokens = np.frombuffer(content, dtype=np.uint8)
    held_out = max(1, round(len(tokens) * config.validation_fraction))
    return Corpus(tokens[:-held_out], tokens[-held_out:], vocabulary=256)


def _memmapped(folder: Path) -> Corpus:
    """nanoGPT's layout: train.bin and val.bin, uint16 token ids."""
    parts = []
    for name in ("train.bin", "val.bin"):
        file = folder / name
        if not file.is_file() or file.stat().st_size < 2:
            raise ConfigError(
                f"data={str(folder)!r}: {name} is missing or empty; nanoGPT's layout has train.bin and val.bin"
            )
        parts.append(np.memmap(file, dtype=np.uint16, mode="r"))
    return Corpus(parts[0], parts[1], vocabulary=int(max(part.max() for part in parts)) + 1)

"""Text as tokens, and batches that depend only on (seed, step).

Because batches have no state, every format is trained on the same data, and a resumed run needs no stored position.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from altgrad.config.train_config import BYTES, ConfigError, TrainConfig
from altgrad.corpus.joined_ids import JoinedIds
from altgrad.corpus.text_files import read_text
from altgrad.corpus.token_files import TokenFile, layout_of
from altgrad.corpus.tokenised import tokens_of
from altgrad.corpus.unigram import unigram_entropy
from altgrad.text.error_hints import cut, shown, shown_path

_HASHED_BATCHES = 64

Windows = tuple[Tensor, Tensor]  # inputs, targets
Tokens = Any  # an array of ids, or `JoinedIds`


class Batches(Protocol):
    """Training data of a run; any object with these members will do.

    Batches of tokens may have a member more, `unigram_entropy`: that of the training tokens, in nats.  `whole` names
    entries of a batch that are no rows, as that of a `Task`.
    """

    vocabulary: int | None  # number of token ids; None if the inputs are not token ids

    def training(self, step: int) -> Any:
        """The batch of a step, (inputs, targets) or other tensors, on the CPU; the same for every format."""
        ...

    def validation(self) -> list[Any]:
        """Held-out batches, the same at every call; may be empty."""
        ...

    def digest(self) -> str:
        """A hash that changes if the data or their order change."""
        ...


def unigram_entropy_of(batches: Batches) -> float | None:
    """Entropy of the frequencies of the training tokens, in nats; None if the data are no tokens."""
    found: float | None = getattr(batches, "unigram_entropy", None)
    return found


@dataclass(frozen=True)
class Source:
    """Description of the data that was read, for people and for run.json.

    `token_dtype`: that of token ids on disk; None: the tokens are the bytes of a text.
    """

    data: str
    files: int
    bytes: int
    token_dtype: str | None
    training_tokens: int
    validation_tokens: int
    skipped: tuple[str, ...]

    def sentence(self) -> str:
        """One line, such as `data notes: 3 files, 81,920 bytes of text, 73,728 for training, ...; skipped: 2 .png`."""
        what = "bytes of text" if self.token_dtype is None else f"bytes of {self.token_dtype} token ids"
        shares = f"{self.training_tokens:,} tokens for training, {self.validation_tokens:,} held out"
        files = f"{self.files} file{'s' if self.files > 1 else ''}"
        left = f"; skipped: {cut(', '.join(self.skipped))}" if self.skipped else ""
        return f"data {shown_path(self.data)}: {files}, {self.bytes:,} {what}, {shares}{left}"


@dataclass(frozen=True)
class Corpus:
    """Tokens split into training and validation text; vocabulary = number of token ids.

    digest: a hash of all tokens that was computed earlier, for data too large to read at every start; else "".
    """

    training: Tokens
    validation: Tokens
    vocabulary: int
    source: Source
    digest: str = ""


class TextBatches:
    """Random windows of a corpus: inputs, and targets one token later, each (batch_size, block_size) int64."""

    whole = ()  # all tensors have rows

    def __init__(self, corpus: Corpus, config: TrainConfig, block_size: int) -> None:
        for name, tokens in (("training", corpus.training), ("validation", corpus.validation)):
            if len(tokens) < block_size + 1:
                raise ConfigError(
                    f"data={shown(config.data)}: the {name} text has {len(tokens)} tokens, fewer than one block of "
                    f"block_size + 1 = {block_size + 1}; use a longer text or a smaller block_size"
                )
        self.vocabulary: int | None = corpus.vocabulary
        self.source = corpus.source
        self._corpus = corpus
        self._seed, self._size, self._held_out = config.seed, config.batch_size, config.eval_batches
        self._window = np.arange(block_size + 1)

    def training(self, step: int) -> Windows:
        """The batch of a step, drawn by the config's seed and the step; the same in every run of the seed."""
        return self._cut(self._corpus.training, self._starts(step))

    def validation(self) -> list[Windows]:
        """At most `eval_batches` batches of windows spread evenly over the validation text; always the same."""
        count = self._held_out * self._size
        last = len(self._corpus.validation) - len(self._window)
        starts = np.unique(np.linspace(0, last, count).astype(np.int64))
        batches = -(-len(starts) // self._size)
        return [self._cut(self._corpus.validation, part) for part in np.array_split(starts, batches)]

    @functools.cached_property
    def unigram_entropy(self) -> float:
        """Entropy of the training tokens' frequencies in nats, of a sample of bounded size."""
        return unigram_entropy(self._corpus.training)

    def digest(self) -> str:
        """Hash of all tokens and of the windows of the first steps, however many of them the run trains."""
        digest = hashlib.sha256(self._corpus.digest.encode())
        for tokens in (self._corpus.training, self._corpus.validation):
            digest.update(f"{len(tokens)},".encode())
            if not self._corpus.digest:
                digest.update(np.ascontiguousarray(tokens).tobytes())
        for step in range(1, _HASHED_BATCHES + 1):
            digest.update(self._starts(step).tobytes())
        return digest.hexdigest()[:16]

    def _starts(self, step: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(key=[self._seed, step]))
        return generator.integers(0, len(self._corpus.training) - len(self._window) + 1, self._size)

    def _cut(self, tokens: Tokens, starts: np.ndarray) -> Windows:
        windows = torch.from_numpy(tokens[starts[:, None] + self._window].astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def load_corpus(config: TrainConfig) -> Corpus:
    """The corpus named by `config.data`.  Raises ConfigError if it is missing, empty, or neither text nor tokens."""
    layout = layout_of(config)
    if layout is None:
        text = read_text(config)
        tokens, vocabulary = tokens_of(text.content, config)
        training, validation = _split(tokens, config)
        dtype = None if config.tokenizer == BYTES else str(tokens.dtype)
        source = _source(config, training, validation, files=text.files, skipped=text.skipped, token_dtype=dtype)
        return Corpus(training, validation, vocabulary, source)
    if config.tokenizer != BYTES:
        raise ConfigError(f"tokenizer={shown(config.tokenizer)}: {shown(config.data)} holds token ids; leave it out")
    training = _joined(layout.training)
    if layout.validation:
        validation = _joined(layout.validation)
    else:
        training, validation = _split(training, config)
    dtype = layout.files[0].stored.dtype
    source = _source(config, training, validation, files=len(layout.files), skipped=layout.skipped, token_dtype=dtype)
    return Corpus(training, validation, layout.vocabulary, source, layout.digest)


def _joined(files: Sequence[TokenFile]) -> Tokens:
    parts = [file.stored.ids() for file in files]
    return parts[0] if len(parts) == 1 else JoinedIds(parts)


def _source(config: TrainConfig, training: Tokens, validation: Tokens, **taken: Any) -> Source:
    return Source(
        config.data,
        bytes=training.nbytes + validation.nbytes,
        training_tokens=len(training),
        validation_tokens=len(validation),
        **taken,
    )


def _split(tokens: Tokens, config: TrainConfig) -> tuple[Tokens, Tokens]:
    """(training tokens, held-out tokens): the last `validation_fraction` is held out."""
    held_out = max(1, round(len(tokens) * config.validation_fraction))
    return tokens[:-held_out], tokens[-held_out:]

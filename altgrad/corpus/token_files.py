"""Token ids on disk: nanoGPT's train.bin and val.bin, one such file, or shards of them, as uint16 or uint32.

A file name does not tell the width of an id, so it is found from the content, by these rules in order:

- the header of llm.c and modded-nanogpt: 256 int32, of which the first is 20240520 for uint16, 20240801 for uint32; a
  `token_dtype` that contradicts it is an error;
- `token_dtype`, if it is set;
- the size: a file whose size 2 does not divide has neither width; one whose size 4 does not divide has uint16, unless
  its content looks like a truncated uint32 file;
- the upper halves.  The ids 50257, 11, 198 stored as uint32 and read as uint16 are 50257 0 11 0 198 0: each odd place
  has the id divided by 65536, which is at most 63 up to a vocabulary of 2^22, the largest that is accepted.  Ids stored
  as uint16 are distributed alike at odd and even places.  So the width is uint32 if no value at an odd place is above
  63 and at least 32 values at even places are above all of those at odd places; for a uint16 file that is as
  improbable as 32 heads in a row.

Every id is read once per file, for the vocabulary and the hash; both are cached for the next start (`_Facts`).
No torch: a sweep's planning needs the vocabulary on machines without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np

from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.corpus.meta_file import NAME, vocabulary_in
from altgrad.corpus.token_paths import HEADER_BYTES, MAGIC, TokenPaths, token_paths
from altgrad.text.error_hints import shown

Width = Literal["uint16", "uint32"]
_LARGEST_VOCABULARY = 1 << 22
_PROOF = 32  # values at even places above all of those at odd ones that prove uint32
_SAMPLE = 1 << 20  # ids read at the start, in the middle and at the end of a file
_CHUNK = 1 << 22  # ids read at a time
_CACHED_FROM = 1 << 24  # bytes; smaller files are not cached, since reading them is fast


@dataclass(frozen=True)
class _Facts:
    """Cached results of reading a whole file.  `state`: size, times and inode of the file when it was read."""

    state: list[int]
    dtype: str
    largest: int
    digest: str


@dataclass(frozen=True)
class _StoredIds:
    """Where ids are stored: the file, their width, and `offset`, the bytes of the header before them."""

    path: Path
    dtype: Width
    offset: int

    @property
    def type(self) -> str:
        return "<u2" if self.dtype == "uint16" else "<u4"  # little-endian, whatever the machine

    def ids(self) -> np.ndarray:
        """All ids as a read-only memory map."""
        return np.memmap(self.path, dtype=self.type, mode="r", offset=self.offset)


@dataclass(frozen=True)
class TokenFile:
    """A file of token ids that was read whole: the largest id, and a hash of all ids."""

    stored: _StoredIds
    largest: int
    digest: str

    @classmethod
    def read(cls, stored: _StoredIds) -> Self:
        """Read every id once; a large file that has not changed since the last time is taken from the cache."""
        facts = _facts_of(stored)
        return cls(stored, facts.largest, facts.digest)


@dataclass(frozen=True)
class TokenLayout:
    """The token files of a split each; `validation` is empty if a part of the training ids is held out.

    vocabulary: the size in a meta.pkl beside them, else the largest id plus one.
    """

    training: tuple[TokenFile, ...]
    validation: tuple[TokenFile, ...]
    vocabulary: int
    skipped: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[TokenFile, ...]:
        """The files of both splits."""
        return (*self.training, *self.validation)

    @property
    def digest(self) -> str:
        """A hash of all ids."""
        return "".join(file.digest for file in self.files)


def layout_of(config: TrainConfig) -> TokenLayout | None:
    """The token files that `data` names, see `token_paths`; None if it names none.  Raises ConfigError."""
    paths = token_paths(config)
    if paths is None:
        return None
    read = {stored.path: TokenFile.read(stored) for stored in _stored_ids(paths, config)}
    files = list(read.values())
    for file in files:
        if file.largest >= _LARGEST_VOCABULARY:
            raise ConfigError(
                f"{_field(config)}: {file.stored.path}: the largest {file.stored.dtype} id is {file.largest}, which is "
                "no token of any vocabulary; is token_dtype right?"
            )
    found = max(file.largest for file in files) + 1
    said = vocabulary_in(files[0].stored.path.parent / NAME, _field(config))
    if said is not None and said < found:
        raise ConfigError(f"{_field(config)}: the largest id is {found - 1}, but {NAME} says vocab_size {said}")
    training, validation = (tuple(read[path] for path in split) for split in (paths.training, paths.validation))
    return TokenLayout(training, validation, found if said is None else said, paths.skipped)


def sampled_vocabulary(config: TrainConfig) -> int | None:
    """An estimate of `vocabulary` from the first ids alone, for a sweep's planning; None if `data` names no tokens.

    Raises ConfigError, as `layout_of`.
    """
    paths = token_paths(config)
    if paths is None:
        return None
    files = _stored_ids(paths, config)
    said = vocabulary_in(files[0].path.parent / NAME, _field(config))
    return max(int(file.ids()[:_SAMPLE].max()) + 1 for file in files) if said is None else said


def _stored_ids(paths: TokenPaths, config: TrainConfig) -> list[_StoredIds]:
    """The files, not yet read whole.  Raises ConfigError if one is damaged or the width is unknown."""
    widths = {path: _width(path, config) for path in (*paths.training, *paths.validation)}
    known = {width for width, _ in widths.values() if width is not None}
    if len(known) > 1:
        pair = ", ".join(f"{path.name} {width}" for path, (width, _) in widths.items())
        raise ConfigError(f"{_field(config)}: the files differ in the width of their ids ({pair}); write both alike")
    if widths and not known:
        raise ConfigError(
            f"{_field(config)}: {next(iter(widths))}: the ids are too few or too small to tell uint16 from uint32; "
            "give token_dtype"
        )
    return [_StoredIds(path, dtype, offset) for path, (_, offset) in widths.items() for dtype in known]


def _field(config: TrainConfig) -> str:
    """The field that names the files, with which an error begins."""
    return f"data={shown(config.data)}"


def _width(path: Path, config: TrainConfig) -> tuple[Width | None, int]:
    """Width of a file's ids (None: undecidable) and bytes of its header.  Raises ConfigError if it has no token ids."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    where = f"{_field(config)}: {path}"
    chosen: Width | None = None if config.token_dtype == "auto" else config.token_dtype
    magic = int.from_bytes(head[:4], "little")
    if magic in MAGIC and len(head) == HEADER_BYTES:
        written = MAGIC[magic]
        if chosen not in (None, written):
            raise ConfigError(f"{where}: its header says {written}, token_dtype={chosen}; leave token_dtype out")
        count = int.from_bytes(head[8:12], "little")
        if size != HEADER_BYTES + count * np.dtype(written).itemsize:
            raise ConfigError(
                f"{where}: its header says {count} ids of {written}, which are not {size} bytes; is it cut off?"
            )
        return written, HEADER_BYTES
    bytes_each = 2 if chosen is None else np.dtype(chosen).itemsize
    if not size or size % bytes_each:
        raise ConfigError(
            f"{where}: {size} bytes are no whole number of {chosen or 'uint16'} token ids; is it cut off?"
        )
    if chosen is not None:
        return chosen, 0
    if _is_text(head):
        raise ConfigError(f"{where}: holds text, no token ids; call it {path.stem}.txt to train on its bytes")
    width = _width_of(path, where)
    if size % 4 and width == "uint32":
        raise ConfigError(f"{where}: looks like uint32 token ids, but {size} bytes are no whole number; is it cut off?")
    return ("uint16" if size % 4 else width), 0


def _is_text(head: bytes) -> bool:
    """Whether bytes are printable UTF-8.  Token ids below 256 have an upper byte of 0, which is not printable."""
    text = head.decode("utf-8", errors="ignore")
    return len(text.encode()) > len(head) - 4 and all(sign.isprintable() or sign in "\t\n\r\f" for sign in text)


def _width_of(path: Path, where: str) -> Width | None:
    """Width by the upper halves (see the module); None if undecidable.  Raises ConfigError for int64 and big-endian."""
    values = np.memmap(path, dtype="<u2", mode="r")
    halves = values[: len(values) // 2 * 2].reshape(-1, 2)
    if not len(halves):
        return None
    starts = {0, *(max(0, place // 2 * 2) for place in ((len(halves) - _SAMPLE) // 2, len(halves) - _SAMPLE))}
    sample = np.concatenate([halves[start : start + _SAMPLE] for start in sorted(starts)])
    low, high = sample[:, 0], sample[:, 1]
    if not sample[1::2].any() and np.count_nonzero(low) >= _PROOF:
        raise ConfigError(f"{where}: looks like int64 token ids; write them as uint16 or uint32")
    upper, lower = low.byteswap(), high.byteswap()  # of ids that were written with the largest byte first
    if upper.max() < _LARGEST_VOCABULARY >> 16 and np.count_nonzero(lower > upper.max()) >= _PROOF:
        raise ConfigError(f"{where}: looks like big-endian token ids; write them little-endian, as x86 and ARM do")
    highest = int(high.max())
    above = int(np.count_nonzero(low > highest))
    if highest < _LARGEST_VOCABULARY >> 16 and above >= _PROOF:
        return "uint32"
    # If all odd values are 0, it may be uint16 ids or few uint32 ones; with few pairs, chance decides.
    return "uint16" if highest and (highest >= _LARGEST_VOCABULARY >> 16 or len(sample) >= 2 * _PROOF) else None


def _read_all(stored: _StoredIds) -> tuple[int, str]:
    """The largest id, and a SHA-256 hash of all ids."""
    digest, largest, ids = hashlib.sha256(), 0, stored.ids()
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        largest = max(largest, int(chunk.max()))
        digest.update(chunk.tobytes())
    return largest, digest.hexdigest()


def _facts_of(stored: _StoredIds) -> _Facts:
    """The facts of a file from the user's cache folder if the file has not changed; else it is read, and cached.

    If the cache cannot be read or written, the file is read again; nothing else fails.
    """
    found = stored.path.stat()
    state = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    name = hashlib.sha256(f"{stored.path.resolve()}\0{stored.dtype}".encode()).hexdigest()[:32]
    file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "altgrad" / "tokens" / f"{name}.json"
    if found.st_size >= _CACHED_FROM:
        with suppress(OSError, ValueError, TypeError):
            facts = _Facts(**json.loads(file.read_bytes()))
            if (facts.state, facts.dtype) == (state, stored.dtype) and isinstance(facts.largest, int):
                return facts
    facts = _Facts(state, stored.dtype, *_read_all(stored))
    if found.st_size >= _CACHED_FROM:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{uuid.uuid4().hex[:8]}")
            temporary.write_text(json.dumps(asdict(facts)))
            temporary.replace(file)
    return facts

"""Token ids on disk: nanoGPT's train.bin and val.bin, or one such file, as uint16 or uint32.

The names say nothing about what is inside, so the files are looked into.  What settles the width of an id:

- the header of llm.c and modded-nanogpt (256 int32, of which the first is 20240520 for uint16, 20240801 for uint32);
- the size: 2 does not divide it, so it is neither; 4 does not divide it, so it is uint16, unless it looks like a uint32
  file that was cut off;
- the upper halves.  Read as uint16, ids 50257, 11, 198 stored as uint32 are 50257 0 11 0 198 0: at odd places stands
  the id divided by 65536, which is at most 63 up to the largest vocabulary that is believed (2^22).  Ids stored as
  uint16 are alike at odd and even places.  So it is uint32 where no odd value is above 63 while at least 32 even ones
  are above all odd ones, which 32 fair coins in a row would have to fake;
- else `token_dtype`, which also overrules the above.

Every id is read once per file, for the vocabulary and the hash; both are kept for the next start (`_Facts`).
No torch: plans need the vocabulary on machines without it.
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
from altgrad.text.error_hints import shown

Width = Literal["uint16", "uint32"]
SUFFIX = ".bin"
LAYOUT = ("train.bin", "val.bin")
_HEADER_BYTES = 1024
_MAGIC: dict[int, Width] = {20240520: "uint16", 20240801: "uint32"}  # llm.c: GPT-2 and Llama 3 tokens
_LARGEST_VOCABULARY = 1 << 22
_COINS = 32
_SAMPLE = 1 << 20  # ids looked at in each of three places
_CHUNK = 1 << 22  # ids read at a time
_KEEP_FROM = 1 << 24  # bytes: smaller files are read faster than looked up


@dataclass(frozen=True)
class _Facts:
    """What reading a whole file showed.  `state`: size, times and inode of the file it was true of."""

    state: list[int]
    dtype: str
    largest: int
    digest: str


@dataclass(frozen=True)
class _Place:
    """Where ids lie: in which file, of which width, behind how many bytes of header."""

    path: Path
    dtype: Width
    offset: int

    @property
    def type(self) -> str:
        return "<u2" if self.dtype == "uint16" else "<u4"  # little-endian, whatever the machine

    def ids(self) -> np.ndarray:
        """All ids, mapped into memory."""
        return np.memmap(self.path, dtype=self.type, mode="r", offset=self.offset)


@dataclass(frozen=True)
class TokenFile:
    """A file of token ids, all of which were read: the largest, and a hash of all."""

    place: _Place
    largest: int
    digest: str

    @classmethod
    def read(cls, place: _Place) -> Self:
        """Reads every id once, unless the file is the one that was read before."""
        facts = _kept(place)
        return cls(place, facts.largest, facts.digest)


def layout_of(config: TrainConfig) -> tuple[TokenFile, TokenFile | None] | None:
    """Training file and validation file (None: a part of the first) that `data` means; None where it means no tokens.

    `data` is a folder with train.bin and val.bin, or a file `*.bin`; train.bin stands for its folder where val.bin lies
    beside it.  Raises ConfigError.
    """
    files = [TokenFile.read(place) for place in _places(config)]
    for file in files:
        if file.largest >= _LARGEST_VOCABULARY:
            raise ConfigError(
                f"{_said(config)}: {file.place.path}: the largest {file.place.dtype} id is {file.largest}, which is no "
                "token of any vocabulary; is token_dtype right?"
            )
    if not files:
        return None
    return files[0], files[1] if len(files) > 1 else None


def sampled_vocabulary(config: TrainConfig) -> int | None:
    """About `vocabulary`, from the first ids alone, for plans; None where `data` means no tokens.  Raises as above."""
    return max((int(place.ids()[:_SAMPLE].max()) + 1 for place in _places(config)), default=None)


def _places(config: TrainConfig) -> list[_Place]:
    """The files of `layout_of`, unread.  Raises ConfigError where they are damaged, or where their width is unknown."""
    widths = {path: _width(path, config) for path in _paths(config)}
    known = {width for width, _ in widths.values() if width is not None}
    if len(known) > 1:
        pair = ", ".join(f"{path.name} {width}" for path, (width, _) in widths.items())
        raise ConfigError(f"{_said(config)}: the files differ in the width of their ids ({pair}); write both alike")
    if widths and not known:
        raise ConfigError(
            f"{_said(config)}: {next(iter(widths))}: the ids are too few or too small to tell uint16 from uint32; give "
            "token_dtype"
        )
    return [_Place(path, dtype, offset) for path, (_, offset) in widths.items() for dtype in known]


def vocabulary(training: TokenFile, validation: TokenFile | None) -> int:
    """The largest id of both files, plus one."""
    return max(file.largest for file in (training, validation) if file is not None) + 1


def _said(config: TrainConfig) -> str:
    return f"data={shown(config.data)}"


def _paths(config: TrainConfig) -> list[Path]:
    """The token files that `data` means, the training file first; empty where it means something else."""
    path = Path(config.data).expanduser()
    try:
        is_file = path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise ConfigError(f"{_said(config)}: cannot be read: {error.strerror}") from error
    if is_file:
        if path.suffix != SUFFIX:
            return []
        if path.name != LAYOUT[0] or not (path.parent / LAYOUT[1]).is_file():
            return [path]
        path = path.parent
    paths = [path / name for name in LAYOUT]
    if not any(file.exists() for file in paths):
        return []
    for file in paths:
        if not file.is_file() or not file.stat().st_size:
            raise ConfigError(
                f"{_said(config)}: {file.name} is missing or empty; nanoGPT's layout has {LAYOUT[0]} and "
                f"{LAYOUT[1]}; a single token file is given by its own path"
            )
    return paths


def _width(path: Path, config: TrainConfig) -> tuple[Width | None, int]:
    """Width of a file's ids (None: it does not tell) and bytes of its header.  Raises ConfigError for what is none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    where = f"{_said(config)}: {path}"
    chosen: Width | None = None if config.token_dtype == "auto" else config.token_dtype
    magic = int.from_bytes(head[:4], "little")
    if magic in _MAGIC and len(head) == _HEADER_BYTES:
        written = _MAGIC[magic]
        if chosen not in (None, written):
            raise ConfigError(f"{where}: its header says {written}, token_dtype={chosen}; leave token_dtype out")
        count = int.from_bytes(head[8:12], "little")
        if size != _HEADER_BYTES + count * np.dtype(written).itemsize:
            raise ConfigError(
                f"{where}: its header says {count} ids of {written}, which are not {size} bytes; is it cut off?"
            )
        return written, _HEADER_BYTES
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
    """Whether bytes are printable UTF-8.  Token ids below 256 have an upper byte of 0, which no text has."""
    text = head.decode("utf-8", errors="ignore")
    return len(text.encode()) > len(head) - 4 and all(sign.isprintable() or sign in "\t\n\r\f" for sign in text)


def _width_of(path: Path, where: str) -> Width | None:
    """Width by the upper halves (see the module); None where they do not tell.  Raises ConfigError for int64."""
    values = np.memmap(path, dtype="<u2", mode="r")
    halves = values[: len(values) // 2 * 2].reshape(-1, 2)
    if not len(halves):
        return None
    starts = {0, *(max(0, place // 2 * 2) for place in ((len(halves) - _SAMPLE) // 2, len(halves) - _SAMPLE))}
    sample = np.concatenate([halves[start : start + _SAMPLE] for start in sorted(starts)])
    low, high = sample[:, 0], sample[:, 1]
    if not sample[1::2].any() and np.count_nonzero(low) >= _COINS:
        raise ConfigError(f"{where}: looks like int64 token ids; write them as uint16 or uint32")
    upper, lower = low.byteswap(), high.byteswap()  # of ids that were written with the largest byte first
    if upper.max() < _LARGEST_VOCABULARY >> 16 and np.count_nonzero(lower > upper.max()) >= _COINS:
        raise ConfigError(f"{where}: looks like big-endian token ids; write them little-endian, as x86 and ARM do")
    highest = int(high.max())
    above = int(np.count_nonzero(low > highest))
    if highest < _LARGEST_VOCABULARY >> 16 and above >= _COINS:
        return "uint32"
    # Without values at odd places it is two ids or one, with few pairs it is a matter of chance.
    return "uint16" if highest and (highest >= _LARGEST_VOCABULARY >> 16 or len(sample) >= 2 * _COINS) else None


def _read_all(place: _Place) -> tuple[int, str]:
    """Largest id and hash of all of them."""
    digest, largest, ids = hashlib.sha256(), 0, place.ids()
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        largest = max(largest, int(chunk.max()))
        digest.update(chunk.tobytes())
    return largest, digest.hexdigest()


def _kept(place: _Place) -> _Facts:
    """The facts of a file as kept in the user's cache folder, if it has not changed since; else read now, and kept.

    A cache that cannot be read or written costs the reading of the file, nothing else.
    """
    found = place.path.stat()
    state = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    name = hashlib.sha256(f"{place.path.resolve()}\0{place.dtype}".encode()).hexdigest()[:32]
    file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "altgrad" / "tokens" / f"{name}.json"
    if found.st_size >= _KEEP_FROM:
        with suppress(OSError, ValueError, TypeError):
            facts = _Facts(**json.loads(file.read_bytes()))
            if (facts.state, facts.dtype) == (state, place.dtype) and isinstance(facts.largest, int):
                return facts
    facts = _Facts(state, place.dtype, *_read_all(place))
    if found.st_size >= _KEEP_FROM:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{uuid.uuid4().hex[:8]}")
            temporary.write_text(json.dumps(asdict(facts)))
            temporary.replace(file)
    return facts

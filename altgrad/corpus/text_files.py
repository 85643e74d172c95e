"""Text as training data: the text that ships with altgrad, a file, a folder or a glob.

A model would train on the bytes of an archive, a Parquet table or UTF-16 text without any error, so every file must be
valid UTF-8 before it is used.  No torch: a sweep's planning reads `data` on machines without it.
"""

from __future__ import annotations

import glob
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.corpus import columns
from altgrad.text.error_hints import shown

SUFFIXES = (".txt", ".text", ".md", ".rst", ".py")
_BUILT_IN = {"opticks": "2c6cf12042a452d378d82df6ea3fe05e9056ec165deab0d7911f77c37c96c982"}  # SHA-256 of texts/*.txt
_KINDS = {
    b"\x1f\x8b": "a gzip file; unpack it",
    b"PK\x03\x04": "a zip file; unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it",
    b"BZh": "a bzip2 file; unpack it",
    b"PAR1": "a Parquet file; call it .parquet",
    b"%PDF": "a PDF; export its text",
    b"\x93NUMPY": "a NumPy array; write its token ids with `.astype('uint16').tofile('train.bin')`",
    b"\xff\xfe": "UTF-16 text; convert it to UTF-8",
    b"\xfe\xff": "UTF-16 text; convert it to UTF-8",
}
_FOREIGN_SHARE = 0.01  # share of a file's bytes that may be invalid UTF-8, such as a stray Latin-1 word
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Text:
    """Bytes to train on, the number of their files, and the skipped files with the reason (`3 .png`, `1 empty`)."""

    content: bytes
    files: int
    skipped: tuple[str, ...] = ()


def read_text(config: TrainConfig) -> Text:
    """Read the text that `data` names.  Raises ConfigError if there is none, or if a file named in it is not text."""
    if config.data in _BUILT_IN:
        return Text(_built_in(config.data), 1)
    path = Path(config.data).expanduser()
    if path.is_dir():
        return _folder(path, config)
    files = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    files = [file for file in files if file.is_file()]
    wanted = f"{', '.join(_BUILT_IN)} (built in), a text file, a folder, a glob, or train.bin"
    if not files:
        raise ConfigError(f"data={shown(config.data)}: no such text; give {wanted}")
    content = [_text_of(file, config) for file in files]
    for file, text in zip(files, content, strict=True):
        if obstacle := _no_text(text):
            raise ConfigError(f"data={shown(config.data)}: {file}: {obstacle}")
    return Text(_joined(content, config, wanted), len(files))


def _folder(folder: Path, config: TrainConfig) -> Text:
    """All text files below a folder; hidden files and hidden folders are skipped."""
    taken: list[bytes] = []
    skipped: Counter[str] = Counter()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            skipped["hidden"] += 1
        elif file.suffix.lower() not in (*SUFFIXES, *columns.SUFFIXES):
            skipped[file.suffix or "without a suffix"] += 1
        elif not (content := _text_of(file, config)).strip():
            skipped["empty"] += 1
        elif _no_text(content):
            skipped["not text inside"] += 1
        else:
            taken.append(content)
    counts = tuple(f"{count} {what}" for what, count in skipped.most_common())
    wanted = f"a folder with files ending in {', '.join((*SUFFIXES, *columns.SUFFIXES))}, or with train.bin and val.bin"
    if not taken:
        left = f" (skipped: {', '.join(counts[:8])})" if counts else ""
        raise ConfigError(f"data={shown(config.data)}: no such text in this folder{left}; give {wanted}")
    return Text(_joined(taken, config, wanted), len(taken), counts)


def _joined(content: Sequence[bytes], config: TrainConfig, wanted: str) -> bytes:
    text = b"\n".join(content)
    if not text.strip():
        raise ConfigError(f"data={shown(config.data)}: the text is empty; give {wanted}")
    return text


def _text_of(file: Path, config: TrainConfig) -> bytes:
    """The bytes of a text file, or the texts in the column of a table."""
    if file.suffix.lower() in columns.SUFFIXES:
        return columns.read_column(file, config.text_column, f"data={shown(config.data)}")
    return _read(file, config)


def _read(file: Path, config: TrainConfig) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"data={shown(config.data)}: {file}: cannot be read: {error.strerror}") from error


def _no_text(content: bytes) -> str | None:
    """Why these bytes are not text, and what would be right; None if they are text."""
    for magic, kind in _KINDS.items():
        if content.startswith(magic):
            return kind
    if b"\0" in content:
        return "not text (it has NUL bytes); give UTF-8 text, or token ids as uint16 in a file called train.bin"
    foreign = 0
    for start in range(0, len(content), _CHUNK):
        chunk = content[start : start + _CHUNK]
        foreign += len(chunk) - len(chunk.decode("utf-8", errors="ignore").encode())
    if foreign > _FOREIGN_SHARE * len(content):
        return f"not UTF-8 ({foreign / len(content):.0%} of its bytes are not); convert it, as in `iconv -t utf-8`"
    return None


def _built_in(name: str) -> bytes:
    """A text that ships with altgrad.  Raises ConfigError if its bytes were changed: their hash must match."""
    content = (resources.files("altgrad.corpus") / "texts" / f"{name}.txt").read_bytes()
    if hashlib.sha256(content).hexdigest() != _BUILT_IN[name]:
        raise ConfigError(f"data={name}: the text that ships with altgrad was changed; install altgrad again")
    return content

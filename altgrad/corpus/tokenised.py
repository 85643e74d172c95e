"""Text as the ids of a named tokenizer: of tiktoken by its encoding's name, or of `tokenizers` by a tokenizer.json.

Ids are kept in the user's cache folder under a hash of text and tokenizer, because encoding takes a minute per 100 MB.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from altgrad.config.train_config import BYTES, ConfigError, TrainConfig
from altgrad.text.error_hints import cut, did_you_mean, shown

_CHUNK = 1 << 20  # bytes that are encoded at a time, up to the next line


def tokens_of(text: bytes, config: TrainConfig) -> tuple[np.ndarray, int]:
    """(ids of a text, size of the vocabulary).

    Raises ConfigError for a tokenizer that is not known, or whose package is not installed.
    """
    name = config.tokenizer
    if name == BYTES:
        return np.frombuffer(text, dtype=np.uint8), 256
    encode, vocabulary, said = _tokenizer(name)
    dtype: Any = np.uint16 if vocabulary <= 1 << 16 else np.uint32
    place = _place(hashlib.sha256(f"{said}\0".encode() + text).hexdigest()[:32])
    with suppress(OSError, ValueError):
        kept = np.load(place, mmap_mode="r", allow_pickle=False)
        if kept.dtype == dtype and kept.ndim == 1:
            return kept, vocabulary
    ids = np.concatenate([np.asarray(encode(part), dtype) for part in _parts(text.decode(errors="replace"))])
    with suppress(OSError):  # without a cache it is encoded again
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f"{uuid.uuid4().hex}.npy")
        np.save(temporary, ids)
        temporary.replace(place)
    return ids, vocabulary


def _place(name: str) -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "altgrad" / "encoded" / f"{name}.npy"


def _parts(text: str) -> Iterator[str]:
    """The text in parts that end with a line feed, where most tokenizers split words anyway."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _CHUNK) + 1 or len(text)
        yield text[start:end]
        start = end


def _tokenizer(name: str) -> tuple[Callable[[str], list[int]], int, str]:
    """(encoder, size of the vocabulary, what tells it from others)."""
    where = f"tokenizer={shown(name)}"
    if name.endswith(".json"):
        if find_spec("tokenizers") is None:
            raise ConfigError(f"{where}: needs tokenizers, which is not installed: pip install tokenizers")
        return _of_file(Path(name).expanduser(), where)
    if find_spec("tiktoken") is None:
        raise ConfigError(f"{where}: needs tiktoken, which is not installed: pip install tiktoken; or give {BYTES}")
    import tiktoken

    known = tiktoken.list_encoding_names()
    if name not in known:
        there = f"{BYTES}, a tokenizer.json, {', '.join(known)}"
        raise ConfigError(f"{where}: no encoding of tiktoken; known: {there}{did_you_mean(name, known)}")
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:  # of requests: tiktoken fetches an encoding that it does not have yet
        raise ConfigError(f"{where}: tiktoken cannot load it here ({cut(str(error))}); use a tokenizer.json") from error
    return encoding.encode_ordinary, encoding.n_vocab, f"tiktoken {name}"


def _of_file(file: Path, where: str) -> tuple[Callable[[str], list[int]], int, str]:
    from tokenizers import Tokenizer

    try:
        content = file.read_text(encoding="utf-8")
        found: Any = Tokenizer.from_str(content)
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from error
    except Exception as error:  # tokenizers raises plain Exception
        raise ConfigError(f"{where}: is no tokenizer of `tokenizers` ({cut(str(error))})") from error

    def encode(text: str) -> list[int]:
        ids: list[int] = found.encode(text, add_special_tokens=False).ids
        return ids

    return encode, int(found.get_vocab_size()), hashlib.sha256(content.encode()).hexdigest()

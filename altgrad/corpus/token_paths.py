"""Which token files `data` names: nanoGPT's folder, a single file, or shards as llm.c and modded-nanogpt write them.

Shards are told apart by their names: those with `val` in it are held out, the others are trained on.  A folder counts
as one of shards if all its files of ids (*.bin) have the header of llm.c: other binary files are no ids.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.text.error_hints import shown

SUFFIX = ".bin"
LAYOUT = ("train.bin", "val.bin")
HEADER_BYTES = 1024
MAGIC: Mapping[int, Literal["uint16", "uint32"]] = {
    20240520: "uint16",
    20240801: "uint32",
}  # llm.c: GPT-2 and Llama 3 tokens


@dataclass(frozen=True)
class TokenPaths:
    """Files of ids by split; `skipped`: what else lies beside shards (`3 .txt`)."""

    training: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    skipped: tuple[str, ...] = ()


def token_paths(config: TrainConfig) -> TokenPaths | None:
    """The token files that `data` names; None if it names something else.

    `data` is a folder with train.bin and val.bin or with shards, a glob of shards, or a file `*.bin`; a train.bin
    beside a val.bin counts as its folder.  Raises ConfigError if a file of such a layout is missing or cannot be read.
    """
    path = Path(config.data).expanduser()
    try:
        is_file = path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise ConfigError(f"data={shown(config.data)}: cannot be read: {error.strerror}") from error
    if is_file:
        if path.suffix != SUFFIX:
            return None
        if path.name != LAYOUT[0] or not (path.parent / LAYOUT[1]).is_file():
            return TokenPaths((path,))
        path = path.parent
    paths = [path / name for name in LAYOUT]
    if not any(file.exists() for file in paths):
        return _shards(path, config)
    for file in paths:
        if not file.is_file() or not file.stat().st_size:
            raise ConfigError(
                f"data={shown(config.data)}: {file.name} is missing or empty; nanoGPT's layout has {LAYOUT[0]} and "
                f"{LAYOUT[1]}; a single token file is given by its own path"
            )
    return TokenPaths((paths[0],), (paths[1],))


def _shards(path: Path, config: TrainConfig) -> TokenPaths | None:
    there = path.iterdir() if path.is_dir() else map(Path, glob.glob(str(path)))
    files = sorted(file for file in there if file.is_file() and not file.name.startswith("."))
    shards = [file for file in files if file.suffix == SUFFIX]
    if not shards or not all(map(_has_header, shards)):
        return None
    held_out = [file for file in shards if "val" in file.name]
    training = [file for file in shards if file not in held_out]
    if not training:
        raise ConfigError(
            f"data={shown(config.data)}: all shards have `val` in their names; give those to train on too"
        )
    left = Counter(file.suffix or "without a suffix" for file in files if file not in shards)
    skipped = tuple(f"{count} {what}" for what, count in left.most_common())
    return TokenPaths(tuple(training), tuple(held_out), skipped)


def _has_header(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.read(HEADER_BYTES)
    return len(head) == HEADER_BYTES and int.from_bytes(head[:4], "little") in MAGIC

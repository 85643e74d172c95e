"""Weights to start a run from: a checkpoint of a run, a safetensors or PyTorch file, or a folder with such files.

Of files only tensors are taken; a checkpoint of a run can also give its moments, its step and its place in the data.
A safetensors file is parsed here: eight bytes with the length of a JSON header, which gives dtype, shape and place of
each tensor, then their bytes.  PyTorch files are loaded without unpickling code.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from altgrad.branch.checkpoints import checkpoint_named
from altgrad.branch.parent import parent_config
from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.experiment.checkpoints.checkpoint import load_checkpoint
from altgrad.storage.folder import Folder
from altgrad.text.error_hints import cut, shown
from altgrad.training.starting_point import Start

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_LONGEST_HEADER = 100_000_000  # bytes; also the limit of the safetensors library
_INSIDE = ("model", "state_dict", "model_state_dict", "module")  # where a PyTorch checkpoint keeps the weights
_FOLDER = ("model.safetensors", "pytorch_model.bin", "ckpt.pt")
_KINDS = "RUN@STEP, a .safetensors or .pt file, or a folder with model.safetensors"


def stored_weights(source: str) -> dict[str, Tensor]:
    """The tensors by name that `start_from` names.  Raises ConfigError, one line, if there are none."""
    where = f"start_from={shown(source)}"
    run, step = checkpoint_named(source)
    if run is not None:
        return _weights(_of_run(run, step, where))
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _of_folder(path, where)
        if not path.is_file():
            raise ConfigError(f"{where}: no such file or folder; give {_KINDS}")
        return _of_file(path, where)
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror or error}") from error


def stored_start(config: TrainConfig) -> Start | None:
    """What the run of a config begins with; None without `start_from`.  Raises ConfigError, one line, as above."""
    source, kept = config.start_from, config.start_keeps
    if source is None:
        return None
    run, step = checkpoint_named(source)
    if run is None or not kept:
        return Start(stored_weights(source))
    state = _of_run(run, step, f"start_from={shown(source)}")
    place = state["step"] + state.get("ahead", 0) + parent_config(run).skip_batches
    begin = state["step"] if "step" in kept else 0
    return Start(
        _weights(state),
        state["optimizer"] if "moments" in kept else None,
        begin,
        state["tokens"] if begin else 0,
        place - begin,
    )


def _weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = state["model"]
    return found


def _of_run(run: Folder, step: int | None, where: str) -> dict[str, Any]:
    """The trainer's state in a checkpoint of a run."""
    if not run.has("run.json"):
        raise ConfigError(f"{where}: no run in {run}; give the folder of a run and one of its checkpoints' steps")
    folder = run / "checkpoints"
    state, corrupt = load_checkpoint(folder, step)
    if state is None:
        steps = sorted({int(info.base_name[5:14]) for info in folder.list() if info.base_name.startswith("step-")})
        there = f"checkpoints of the steps {', '.join(map(str, steps))}" if steps else "no checkpoint"
        damaged = f" ({', '.join(corrupt)} is damaged)" if corrupt else ""
        raise ConfigError(f"{where}: {run} has {there}{damaged}")
    found: dict[str, Any] = state["trainer"]
    return found


def _of_folder(folder: Path, where: str) -> dict[str, Tensor]:
    if (folder / "run.json").is_file():
        return _weights(_of_run(Folder.at(folder), None, where))
    for index in folder.glob("*.index.json"):
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{where}: {index.name} has no weight_map ({type(error).__name__})") from error
        found: dict[str, Tensor] = {}
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise ConfigError(f"{where}: {index.name} names {shown(name)}, which is not there")
            found |= _of_file(folder / name, where)
        return found
    for name in _FOLDER:
        if (folder / name).is_file():
            return _of_file(folder / name, where)
    raise ConfigError(f"{where}: the folder has none of {', '.join(_FOLDER)}, no index of shards, and no run.json")


def _of_file(file: Path, where: str) -> dict[str, Tensor]:
    return _safetensors(file, where) if file.suffix == ".safetensors" else _pytorch(file, where)


def _safetensors(file: Path, where: str) -> dict[str, Tensor]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ConfigError(f"{where}: {file.name}: is no whole safetensors file")
        header = opened.read(length)
    content = np.memmap(file, np.uint8, "r", offset=8 + length) if size > 8 + length else np.empty(0, np.uint8)
    found = {}
    try:
        for name, entry in json.loads(header).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            dtype, shape = _DTYPES[entry["dtype"]], [int(side) for side in entry["shape"]]
            if not 0 <= begin <= end <= len(content) or int(np.prod(shape)) * dtype.itemsize != end - begin:
                raise ConfigError(f"{where}: {file.name}: {shown(name)} lies outside of the file; is it cut off?")
            values = torch.from_numpy(np.array(content[begin:end]))
            found[str(name)] = values.view(dtype).reshape(shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: {file.name}: its header cannot be read ({cut(repr(error))})") from error
    return found


def _pytorch(file: Path, where: str) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        reason = cut(str(error).split("\n")[0])
        raise ConfigError(
            f"{where}: {file.name}: is no PyTorch file of tensors ({reason}); save the model's state_dict, or use "
            "safetensors"
        ) from error
    for name in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    found = {} if not isinstance(content, Mapping) else {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not found:
        raise ConfigError(f"{where}: {file.name}: holds no tensors by name; save the model's state_dict")
    return found

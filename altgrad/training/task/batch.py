"""A batch: tensors in tuples and dicts of any depth; its rows are divided among ranks and micro-batches.

What a task's data yields is brought into this form once, where it enters: lists become tuples, mappings dicts, numpy
arrays tensors.  Numbers, texts and None are passed on unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from altgrad.config.train_config import ConfigError
from altgrad.text.error_hints import cut, kind
from altgrad.training.task.protocol import Batch

_PASSED_ON = (int, float, bool, str, bytes, type(None))


def as_batch(found: Any, whose: str) -> Batch:
    """A batch from tensors, numpy arrays and numbers in tuples, lists and mappings.

    whose: origin of the batch, for the error.  Raises ConfigError for any other object, and if there is no tensor.
    """
    batch = _taken(found, whose, "")
    if next(tensors(batch), None) is None:
        raise ConfigError(f"{whose}: a batch has no tensor (found {type(found).__name__}); give tensors, or a dict")
    return batch


def _taken(found: Any, whose: str, where: str) -> Batch:
    if isinstance(found, (Tensor, *_PASSED_ON)):
        return found
    if isinstance(found, np.ndarray) and found.dtype.kind in "biufc":
        return torch.from_numpy(found if found.flags.writeable else found.copy())
    if isinstance(found, Mapping):
        return {key: _taken(value, whose, f"{where}[{key!r}]") for key, value in found.items()}
    if isinstance(found, tuple | list):
        return tuple(_taken(value, whose, f"{where}[{number}]") for number, value in enumerate(found))
    at = f" at {cut(where)}" if where else ""
    raise ConfigError(
        f"{whose}: a batch has {kind(found)}{at}; give tensors, numpy arrays or numbers, in tuples or dicts"
    )


def changed(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every tensor changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {key: changed(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(changed(value, change) for value in batch)
    return batch


def tensors(batch: Batch) -> Iterator[Tensor]:
    """All tensors of a batch, in its order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict | tuple | list):
        for value in batch.values() if isinstance(batch, dict) else batch:
            yield from tensors(value)


def rows(batch: Batch) -> int:
    """Number of rows: the length of the first tensor that has a dimension; 1 without one."""
    return next((len(tensor) for tensor in tensors(batch) if tensor.ndim), 1)


def count(batch: Batch) -> int:
    """Number of examples, or of tokens if the first tensor holds whole numbers (token ids, but no pixels of uint8)."""
    first = next(tensors(batch))
    are_pixels = first.dtype == torch.uint8 and first.ndim > 2
    return rows(batch) if first.is_floating_point() or first.is_complex() or are_pixels else first.numel()


def without(batch: Batch, whole: Collection[str | int]) -> Batch:
    """The batch without the entries that are no rows: keys of a dict, positions of a tuple."""
    if isinstance(batch, dict):
        return {key: value for key, value in batch.items() if key not in whole}
    return tuple(one for place, one in enumerate(batch) if place not in whole) if isinstance(batch, tuple) else batch


def part(batch: Batch, number: int, parts: int, whole: Collection[str | int] = ()) -> Batch:
    """The rows of a batch that belong to part `number` of `parts` equal ones.

    whole: entries (keys of a dict, positions of a tuple) that belong to every part.  So does a tensor of another
    length, or without dimensions.  Raises ConfigError if the rows do not divide.
    """
    if parts == 1:
        return batch
    length = rows(without(batch, whole))
    if length % parts:
        raise ConfigError(f"a batch of {length} rows does not divide into {parts} parts; use a multiple of them")
    share = length // parts

    def cut_out(tensor: Tensor) -> Tensor:
        return tensor[number * share : (number + 1) * share] if has_rows(tensor, length) else tensor

    if isinstance(batch, dict):
        return {key: value if key in whole else changed(value, cut_out) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(value if place in whole else changed(value, cut_out) for place, value in enumerate(batch))
    return changed(batch, cut_out)


def has_rows(tensor: Tensor, length: int) -> bool:
    """Whether a tensor has one entry for each of so many rows."""
    return tensor.ndim > 0 and len(tensor) == length


def update_digest(digest: Any, batch: Batch) -> None:
    """Add the content of a batch to a hash."""
    if isinstance(batch, Tensor):
        content = batch.detach().cpu().contiguous()
        digest.update(f"{content.dtype}{tuple(content.shape)}".encode())
        digest.update(content.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(batch, dict | tuple | list):
        for key, value in batch.items() if isinstance(batch, dict) else enumerate(batch):
            digest.update(repr(key).encode())
            update_digest(digest, value)
    else:
        digest.update(repr(batch).encode())

"""A task's data as batches that depend only on (seed, step), so that every format and a restarted run gets the same.

Whatever a task gives (see `protocol`), a batch is found by its number alone: no iterator has to be brought to a place.
A Dataset is cut into batches along one sequence of shuffled epochs, of which each has its own permutation of the seed.
A DataLoader is asked once per epoch for the indices of its batches, with its generator seeded by the epoch, and its
items are then loaded here: workers that prefetch would draw random numbers that no step can repeat.  Of an iterable
dataset, which has no places, batches are counted from its beginning.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.text.error_hints import cut, kind, shown
from altgrad.training.data import Source
from altgrad.training.step.step_random import StepRandom
from altgrad.training.task.batch import as_batch, update_digest
from altgrad.training.task.protocol import Batch, Split, Step

_HASHED_BATCHES = 3  # of the training data, by content
_HASHED_STEPS = 64  # of which the indices are hashed, where there are any


@dataclass(frozen=True)
class ByStep:
    """Data as a function of the step that knows more about itself: a hash of all splits, and what was read.

    function: as in `Task.data`.  digest: computes a hash that covers the task's data of both splits.
    unigram_entropy: of the training tokens, in nats; None if the data are no tokens.
    """

    function: Step
    digest: Callable[[], str]
    source: Source | None = None
    unigram_entropy: float | None = None

    def __call__(self, step: int) -> Batch:
        return self.function(step)


class TaskBatches:
    """The batches of a task (see `Batches`); each is checked and brought into one form.

    vocabulary: number of classes of a cross-entropy in nats, else None.  whose: name of the task, for errors.
    whole: entries that are no rows, see `Task.whole`; None: not said.  Items that are stacked have nothing but rows.
    """

    def __init__(
        self,
        config: TrainConfig,
        training: Any,
        validation: Any,
        vocabulary: int | None,
        whose: str,
        whole: Collection[str | int] | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.source: Source | None = getattr(training, "source", None)
        self.unigram_entropy: float | None = getattr(training, "unigram_entropy", None)
        self._whose, self._seed = whose, config.seed
        self._own_digest: Callable[[], str] | None = getattr(training, "digest", None)
        if training is None:
            raise ConfigError(f"{whose}: data(config, 'training') gave None; give a function, Dataset or DataLoader")
        self._training = _by_step(training, config, "training", whose)
        self._validation = None if validation is None else _by_step(validation, config, "validation", whose)
        self._held_out = config.eval_batches
        stacked = isinstance(training, Dataset) and not isinstance(training, IterableDataset)
        self.whole = () if whole is None and stacked else _entries(whole, whose)

    def training(self, step: int) -> Batch:
        """The batch of a step.  Raises ConfigError for a batch of an unknown kind."""
        return self._checked(self._training(step), "training")

    def validation(self) -> list[Batch]:
        """Held-out batches; none if the task has no held-out data."""
        if self._validation is None:
            return []
        found = (self._validation(number) for number in range(1, self._held_out + 1))
        return [self._checked(batch, "validation") for batch in itertools.takewhile(lambda one: one is not None, found)]

    def digest(self) -> str:
        """The hash that the task's data have of themselves, or one of the first batches and of the sequence of items.

        The random generators are seeded as in a step, and restored.
        """
        if self._own_digest is not None:
            return self._own_digest()
        digest, random = hashlib.sha256(), StepRandom(torch.device("cpu"))
        for data in (self._training, self._validation):
            if isinstance(data, _Items):
                digest.update(data.order(_HASHED_STEPS))
        with random.borrowed():
            for step in range(1, _HASHED_BATCHES + 1):
                random.seed("batch", self._seed, step)
                update_digest(digest, self.training(step))
            random.seed("validation", self._seed)
            update_digest(digest, tuple(self.validation()[:1]))
        return digest.hexdigest()[:16]

    def _checked(self, found: Any, split: Split) -> Batch:
        batch = as_batch(found, f"{self._whose}, {split}")
        if self.vocabulary is not None and self._own_digest is None:  # data with a digest know their own classes
            _check_classes(batch, self.vocabulary, self._whose)
        return batch


def _entries(whole: Any, whose: str) -> tuple[str | int, ...] | None:
    if whole is None:
        return None
    if isinstance(whole, str) or not isinstance(whole, Collection):
        raise ConfigError(f"{whose}: whole={shown(whole)}; give a tuple of keys or positions, such as ('table',)")
    return tuple(whole)


def _check_classes(batch: Batch, classes: int, whose: str) -> None:
    """Raise ConfigError if a target is no class: on a GPU it would end the process without a word about it."""
    targets = _targets(batch)
    if targets is None or targets.is_floating_point() or not targets.numel():
        return
    largest = int(targets.max())
    if largest >= classes:
        raise ConfigError(f"{whose}: the data have the class {largest}, but classes={classes}: from 0 to {classes - 1}")


def _targets(batch: Batch) -> torch.Tensor | None:
    """The targets of (inputs, targets), or those of a dict by their usual names; None if there are none."""
    if isinstance(batch, dict):
        found = next((batch[name] for name in ("labels", "targets", "target", "label") if name in batch), None)
    else:
        found = batch[1] if isinstance(batch, tuple) and len(batch) == 2 else None  # a third may be lengths, weights
    return found if isinstance(found, torch.Tensor) else None


class _Items:
    """Batches whose items have places in a dataset.

    places: those of a batch by its number, from 1; None: the end.
    """

    def __init__(
        self, dataset: Any, places: Callable[[int], Sequence[Any] | None], collate: Callable[[list[Any]], Any]
    ) -> None:
        self._dataset, self._places, self._collate = dataset, places, collate

    def __call__(self, number: int) -> Any:
        places = self._places(number)
        if places is None:
            return None
        several = getattr(self._dataset, "__getitems__", None)
        items = several(places) if several is not None else [self._dataset[place] for place in places]
        return self._collate(items)

    def order(self, batches: int) -> bytes:
        """The places of the first batches, for a hash."""
        return repr([self._places(number) for number in range(1, batches + 1)]).encode()


class _Stream:
    """Batches of a loader over an iterable dataset: the n-th one from its beginning, which is sought where needed.

    Training data begin anew at their end; held-out data end there, since a batch must not count twice.  `empty`: the
    error of a loader without any batch.
    """

    def __init__(self, loader: DataLoader[Any], seed: int, split: Split, empty: str) -> None:
        self._loader, self._seed, self._split, self._empty = loader, seed, split, empty
        self._random = StepRandom(torch.device("cpu"))
        self._iterator: Iterator[Any] = iter(())
        self._next, self._epoch = 0, -1
        self._first = 0  # number of the first batch of this epoch

    def __call__(self, number: int) -> Any:
        if number < self._next or self._epoch < 0:
            self._next, self._epoch = 1, -1
            self._begin()
        while True:
            found = self._following()
            if found is None:
                if self._split == "validation":
                    self._epoch = -1
                    return None
                if self._next == self._first:
                    raise ConfigError(self._empty)
                self._begin()
                continue
            self._next += 1
            if self._next > number:
                return found

    def _following(self) -> Any:
        """The next batch; what the dataset draws for it depends on its number alone, and not on where a run resumed."""
        with self._random.borrowed():
            self._random.seed("stream", self._seed, self._epoch, self._next)
            return next(self._iterator, None)

    def _begin(self) -> None:
        self._epoch, self._first = self._epoch + 1, self._next
        with _seeded(self._loader, self._seed, self._epoch):
            self._iterator = iter(self._loader)


def _by_step(data: Any, config: TrainConfig, split: Split, whose: str) -> Callable[[int], Any]:
    """The data of a split as a function of a batch's number.  Raises ConfigError for an object of another kind."""
    if isinstance(data, DataLoader):
        return _of_loader(data, config, split, whose)
    if callable(data) and not hasattr(data, "__getitem__"):
        return data
    if isinstance(data, IterableDataset):
        raise ConfigError(f"{whose}: data(config, {split!r}) gave an IterableDataset; give a DataLoader over it")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        if not len(data):
            raise ConfigError(f"{whose}: data(config, {split!r}) is empty; give None where there is no held-out data")
        places = _shuffled(len(data), config) if split == "training" else _spread(len(data), config)
        return _Items(data, places, functools.partial(_stacked, f"{whose}: data(config, {split!r})"))
    raise ConfigError(
        f"{whose}: data(config, {split!r}) gave {kind(data)}; give a function of the step, a map-style "
        "Dataset or a DataLoader"
    )


def _stacked(where: str, items: list[Any]) -> Any:
    """Items of a Dataset as one batch.  Raises ConfigError where their shapes or kinds do not allow it."""
    try:
        return default_collate(items)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{where}: its items cannot be put into one batch ({cut(str(error))}); give a DataLoader with a collate_fn"
        ) from error


def _shuffled(length: int, config: TrainConfig) -> Callable[[int], Sequence[int]]:
    """Places along shuffled epochs: batch n has the items from (n - 1) x batch_size on, across the end of an epoch."""
    size = config.batch_size
    kept: dict[int, np.ndarray] = {}

    def epoch(number: int) -> np.ndarray:
        if number not in kept:
            for old in [known for known in kept if known < number - 1]:
                del kept[old]
            kept[number] = np.random.Generator(np.random.Philox(key=[config.seed, number])).permutation(length)
        return kept[number]

    def places(number: int) -> list[int]:
        wanted = range((number - 1) * size, number * size)
        return [int(epoch(place // length)[place % length]) for place in wanted]

    return places


def _spread(length: int, config: TrainConfig) -> Callable[[int], Sequence[int] | None]:
    """Places of the held-out batches: as many items as they hold, spread evenly over the data, each once."""
    count = min(length, config.eval_batches * config.batch_size)
    chosen = np.unique(np.linspace(0, length - 1, count).astype(np.int64)).tolist()
    size = config.batch_size
    return lambda number: chosen[(number - 1) * size : number * size] or None


def _of_loader(loader: DataLoader[Any], config: TrainConfig, split: Split, whose: str) -> Callable[[int], Any]:
    empty = f"{whose}: the DataLoader of {split!r} yields no batch; is drop_last set?"
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return _Stream(loader, config.seed, split, empty)
    epochs: dict[int, list[Sequence[int]]] = {}
    ends: list[
        int
    ] = []  # number of the last batch of each epoch; a sampler may make more batches in one than in another

    def epoch(number: int) -> list[Sequence[int]]:
        if number not in epochs:
            epochs.clear()
            with _seeded(loader, config.seed, number):
                epochs[number] = [list(places) for places in loader.batch_sampler or ()]
            if not epochs[number]:
                raise ConfigError(empty)
        return epochs[number]

    def places(number: int) -> Sequence[int] | None:
        while not ends or ends[-1] < number:
            if ends and split == "validation":
                return None
            ends.append((ends[-1] if ends else 0) + len(epoch(len(ends))))
        at = bisect_left(ends, number)
        return epoch(at)[number - 1 - (ends[at - 1] if at else 0)]

    return _Items(loader.dataset, places, loader.collate_fn)


@contextmanager
def _seeded(loader: DataLoader[Any], seed: int, epoch: int) -> Iterator[None]:
    """Context in which what a loader shuffles with is seeded for an epoch: its generators, or torch's global one."""
    word = int(np.random.Generator(np.random.Philox(key=[seed, epoch])).integers(2**62))
    samplers: list[Any] = [loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]
    generators = {id(g): g for g in (getattr(one, "generator", None) for one in samplers) if g is not None}
    for generator in generators.values():
        generator.manual_seed(word)
    for sampler in samplers:
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
    random = StepRandom(torch.device("cpu"))
    with random.borrowed():
        random.seed("epoch", seed, epoch)
        yield

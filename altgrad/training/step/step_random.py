"""The random numbers of a step: those of dropout and of the user's own code depend on the seed and the step alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


class StepRandom:
    """The global random generators of torch (CPU and device in use), numpy and Python, seeded by words.

    Dropout then has the same masks in all runs of one seed, in any format, and after a restart, and so has what a model
    or data of the user draws from `numpy.random` or `random`.  Seeding does not synchronise with the device, because
    the state of a generator lies on the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            torch.cuda.init()
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generators.append(torch.cuda.default_generators[index])

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Context in which the generators may be seeded; on exit their states are restored."""
        states = [generator.get_state() for generator in self._generators]
        others = random.getstate(), np.random.get_state()
        try:
            yield
        finally:
            random.setstate(others[0])
            np.random.set_state(others[1])
            for generator, state in zip(self._generators, states, strict=True):
                generator.set_state(state)

    def seed(self, purpose: str, *words: int) -> None:
        """Seed the generators with `purpose` and `words`; the same words give different numbers for each purpose."""
        digest = hashlib.blake2b(repr((purpose, *words)).encode(), digest_size=8).digest()
        for generator in self._generators:
            generator.manual_seed(int.from_bytes(digest, "big"))
        random.seed(digest)
        np.random.seed(np.frombuffer(digest, np.uint32))

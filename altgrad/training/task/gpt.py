"""The built-in task: a GPT on the config's text or token ids; its loss is the cross-entropy of the next token."""

from __future__ import annotations

from torch import nn

from altgrad.config.train_config import TrainConfig
from altgrad.training.data import Batches, TextBatches, load_corpus
from altgrad.training.model import build_gpt
from altgrad.training.task.protocol import Batch, Split
from altgrad.training.task.task_batches import ByStep


class NextToken:
    """Data of a language model: windows of the config's text or token ids.  One object serves one config.

    batches: read before; None: the config's.
    """

    unit = "nats"
    whole = ()

    def __init__(self, batches: Batches | None = None) -> None:
        self._batches = batches

    def batches(self, config: TrainConfig) -> Batches:
        """The windows of both splits, which are read once."""
        if self._batches is None:
            self._batches = TextBatches(load_corpus(config), config, config.shape.block_size)
        return self._batches

    def data(self, config: TrainConfig, split: Split) -> ByStep:
        """The windows of a split, with the hash that covers both."""
        batches = self.batches(config)
        if split == "training":
            source = batches.source if isinstance(batches, TextBatches) else None
            return ByStep(batches.training, batches.digest, source, getattr(batches, "unigram_entropy", None))
        held_out: list[Batch] = []

        def validation(number: int) -> Batch | None:
            if not held_out:
                held_out.extend(batches.validation())
            return held_out[number - 1] if number <= len(held_out) else None

        return ByStep(validation, batches.digest)

    def classes(self, config: TrainConfig) -> int | None:
        """Number of token ids."""
        return self.batches(config).vocabulary


class BuiltInGPT(NextToken):
    """The built-in GPT, with the sizes of the config."""

    def model(self, config: TrainConfig) -> nn.Module:
        """The GPT for the vocabulary of the data.  Raises ValueError if the caller's batches have none."""
        vocabulary = self.classes(config)
        if vocabulary is None:
            raise ValueError("batches.vocabulary is None, which the built-in GPT needs; give your own model too")
        return build_gpt(config, vocabulary)

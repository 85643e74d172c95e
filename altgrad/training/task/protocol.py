"""A task: everything that a run trains, in one object with a few methods, so that it can be swept by its name.

The trainer, the collapse rules and the comparison know nothing else about a run's model and data.  A task of one's own
need not inherit from anything here; of the members below `unit`, `model` and `data` are needed, the others have the
default that is given at each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from altgrad.config.train_config import TrainConfig

Split = Literal["training", "validation"]
Batch = Any  # tensors in tuples and dicts, see `batch`
Loss = Tensor | tuple[Tensor, Mapping[str, Tensor]]
Step = Callable[[int], Batch]


class Task(Protocol):
    """What `--task` names: an object with these members, or a class or function that returns one.

    unit: that of the loss.  "nats" is a cross-entropy, whose collapse rules have margins in nats if the number of
    classes is known.  Any other name, and "", means a loss whose size says nothing: its margins go by what the run has
    learned, so that a loss multiplied by a constant leads to the same verdicts.
    """

    unit: str

    def model(self, config: TrainConfig) -> nn.Module:
        """The model on the CPU, in training mode; torch's, numpy's and Python's generators are seeded before."""
        ...

    def data(self, config: TrainConfig, split: Split) -> Any:
        """The data of a split; None, for "validation" only, if there is none.  It is one of

        - a function of the step (from 1), or of the number of the held-out batch (from 1; None ends them early),
        - a map-style Dataset, of which batches of `batch_size` items are drawn, each item once per epoch,
        - a DataLoader, whose batches are taken; its items are loaded in the training process, in order.
        """
        ...

    # optional members, with what holds without them

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The mean loss of a batch (0-d), and maybe metrics by name (0-d each).  Default: what the model returns.

        A tuple is passed to the model as arguments, a dict as keywords.  A model may return the loss, `(logits, loss)`,
        or an object or dict with `loss`.
        """
        ...

    def weight(self, batch: Batch) -> float:
        """What the loss of this part of a batch counts beside others: the number of tokens it is the mean of, say.

        Batches are divided by `accumulate` and among ranks.  Default: equal parts count the same, held-out batches as
        their rows.
        """
        ...

    @property
    def whole(self) -> Collection[str | int]:
        """Entries of a batch (keys of a dict, positions of a tuple) that every part gets whole, such as tables.

        Default: a tensor whose first dimension has the length of the batch is divided.
        """
        ...

    def classes(self, config: TrainConfig) -> int | None:
        """Number of classes of a cross-entropy in nats.  Default: None, unknown."""
        ...

    def optimizer(self, model: nn.Module, config: TrainConfig) -> Optimizer:
        """The optimizer, whose rates are `config.learning_rate` or multiples of it.  Default: AdamW by the config.

        At every step they are set to that of the config's schedule, in the proportions that they have here.
        """
        ...

    @property
    def identity(self) -> str:
        """A text that differs if the task does.  Default: its name and arguments."""
        ...

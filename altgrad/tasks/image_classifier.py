"""Image classification: a model of torchvision or timm, or a small own one, on an .npz file or sklearn's digits.

    python tune/sweep.py --task image_classifier --task-arg model=resnet18 data=cifar10.npz --formats E4M3 E5M2

The file has `images`, (count, height, width) or (count, height, width, channels), and `labels`, (count,), whole numbers
from 0.  Images of whole numbers are divided by 255.  The last `validation_fraction` of a fixed permutation is held out.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.text.error_hints import shown, shown_path
from altgrad.training.task.protocol import Split

OWN = "convnet"
DIGITS = "digits"
_ORDER = 0x0D16  # seed of the permutation


class ConvNet(nn.Module):
    """Two convolutions of stride 2 and two linear layers; images (batch, channels, height, width)."""

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Linear(8 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, classes))

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.features(images))
        return found


class ImageClassifier:
    """The task.

    model: convnet, or a model's name in torchvision or timm, prefixed by `timm:` where both have it.  data: an .npz
    file, or digits; torchvision's models see grey images as coloured ones.  size: side length in pixels to which
    images are resized; None: as they are.
    """

    unit = "nats"

    def __init__(self, model: str = OWN, data: str = DIGITS, size: int | None = None) -> None:
        self._model, self._data, self._size = model, data, size
        self._read: tuple[Tensor, Tensor] | None = None
        self._repeated = 1  # times that the channel of grey images is repeated for a model of coloured ones

    def model(self, config: TrainConfig) -> nn.Module:
        """The named model for the images and classes of the data.  Raises ConfigError for an unknown one."""
        images, classes = self._examples()[0], self.classes(config)
        if self._model == OWN:
            return ConvNet(images.shape[1], classes)
        library, _, name = self._model.rpartition(":")
        makers = [library] if library else ["torchvision", "timm"]
        for maker in makers:
            if find_spec(maker) is not None:
                model = _made(maker, name, classes, images.shape[1])
                if model is not None:
                    self._repeated = 3 if maker == "torchvision" and images.shape[1] == 1 else 1
                    return model
        there = [maker for maker in makers if find_spec(maker) is not None]
        if not there:
            raise ConfigError(
                f"model={shown(self._model)}: neither torchvision nor timm is installed; pip install timm"
            )
        raise ConfigError(f"model={shown(self._model)}: no such model in {' and '.join(there)}; or give {OWN}")

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The cross-entropy in nats, and the accuracy."""
        images, labels = batch
        logits = model(images if self._repeated == 1 else images.expand(-1, self._repeated, -1, -1))
        right = (logits.argmax(-1) == labels).float().mean()
        return nn.functional.cross_entropy(logits, labels), {"accuracy": right}

    def data(self, config: TrainConfig, split: Split) -> TensorDataset:
        """The images and labels of a split.  Raises ConfigError for a file that holds none."""
        images, labels = self._examples()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_ORDER))
        held_out = max(1, round(len(order) * config.validation_fraction))
        chosen = order[-held_out:] if split == "validation" else order[:-held_out]
        return TensorDataset(images[chosen], labels[chosen])

    def classes(self, config: TrainConfig) -> int:
        """The largest label plus one."""
        return int(self._examples()[1].max()) + 1

    def _examples(self) -> tuple[Tensor, Tensor]:
        """(images (count, channels, height, width) float32, labels (count,) int64), read once."""
        if self._read is None:
            images, labels = _digits() if self._data == DIGITS else _stored(Path(self._data).expanduser())
            if self._size is not None:
                images = nn.functional.interpolate(images, size=(self._size, self._size), mode="bilinear")
            self._read = images, labels
        return self._read


def _made(library: str, name: str, classes: int, channels: int) -> nn.Module | None:
    """A model without weights of a library; None if it has no such model."""
    if library == "torchvision":
        from torchvision.models import get_model, list_models

        if name not in list_models():
            return None
        if channels not in (1, 3):
            raise ConfigError(f"model={shown(name)}: torchvision's models take images of 3 channels, or grey ones")
        return get_model(name, num_classes=classes)
    if library == "timm":
        import timm

        known: Any = timm
        return known.create_model(name, num_classes=classes, in_chans=channels) if known.is_model(name) else None
    raise ConfigError(f"model={shown(f'{library}:{name}')}: give torchvision:NAME or timm:NAME")


def _digits() -> tuple[Tensor, Tensor]:
    """sklearn's 1797 handwritten digits of 8 x 8 pixels, from 0 to 1."""
    if find_spec("sklearn") is None:
        raise ConfigError("data=digits: scikit-learn is not installed; pip install scikit-learn, or give an .npz file")
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images / 16, dtype=torch.float32)[:, None], torch.tensor(found.target, dtype=torch.int64)


def _stored(file: Path) -> tuple[Tensor, Tensor]:
    where = f"data={shown_path(file)}"
    try:
        with np.load(file, allow_pickle=False) as stored:
            images, labels = np.asarray(stored["images"]), np.asarray(stored["labels"])
    except KeyError as error:
        raise ConfigError(
            f"{where}: {' '.join(str(error).split())}; an .npz file with `images` and `labels`"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{where}: cannot be read ({type(error).__name__}); give an .npz file, or {DIGITS}"
        ) from error
    if (
        images.ndim not in (3, 4)
        or labels.shape != images.shape[:1]
        or not len(labels)
        or labels.dtype.kind not in "iu"
    ):
        raise ConfigError(
            f"{where}: images {images.shape}, labels {labels.shape} {labels.dtype}; give (count, height, width[, "
            "channels]) and whole numbers (count,)"
        )
    if labels.min() < 0:
        raise ConfigError(f"{where}: the label {labels.min()}; labels count from 0")
    scale = 255 if images.dtype.kind in "iu" else 1
    pixels = torch.tensor(images, dtype=torch.float32) / scale
    pixels = pixels[:, None] if images.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return pixels, torch.tensor(labels.astype(np.int64))


task = ImageClassifier

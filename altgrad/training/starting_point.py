"""What happens before the first step: the device is found, weights are loaded and hashed, and ranks are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.config.train_config import ConfigError
from altgrad.quantization.kernel.ranks import Ranks

_PREFIXES = ("_orig_mod.", "module.", "model.")
# masks and tables that older versions of transformers and nanoGPT stored with the weights
_NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class Start:
    """What a run begins with: weights by name, and what else it keeps of a checkpoint (see `start_keeps`).

    optimizer: its state dict, with the moments; None: they are new.  step, tokens: trained before; 0 unless the step
    is kept.  ahead: number of batches that the first steps leave out, beyond those of `step`.
    """

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any] | None = None
    step: int = 0
    tokens: int = 0
    ahead: int = 0


def device_named(name: str) -> torch.device:
    """The device that a config names; `auto` is a GPU if there is one.  Raises ValueError if it does not exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name!r}: no CUDA device here; use device=cpu or auto")
    return torch.device(name)


def check_device(resources: Mapping[str, float], name: str) -> None:
    """Raise ConfigError if a run has reserved GPUs (`resources`) but would train on the CPU.

    It would if torch cannot use the GPUs that the driver counts: its build has no CUDA, or is too new for the driver.
    """
    gpus = resources.get("gpus", 0)
    if gpus > 0 and device_named(name).type == "cpu":
        found = "torch finds no CUDA device" if name == "auto" else "the config asks for the CPU"
        raise ConfigError(
            f"device={name!r}: this run holds {gpus:g} GPU but {found}; use a torch build for this machine's GPUs, or "
            "device=cpu and --gpus-per-trial 0"
        )


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights by name into a model; any dtype is converted.  Raises ConfigError where names or shapes differ.

    A prefix that `torch.compile` or a wrapper adds to all names is dropped.  A name may be lacking if another one of
    the same tensor is there, as for a head that shares the embedding.
    """
    own = model.state_dict()
    found = _without_prefix(weights, own)
    found = {name: tensor for name, tensor in found.items() if name in own or not name.endswith(_NOT_WEIGHTS)}
    there = {tensor.data_ptr() for name, tensor in own.items() if name in found}
    lacking = [name for name, tensor in own.items() if name not in found and tensor.data_ptr() not in there]
    unknown = [name for name in found if name not in own]
    if lacking or unknown:
        said = [f"{what} {_some(names)}" for what, names in (("lacks", lacking), ("has", unknown)) if names]
        raise ConfigError(f"start_from: the checkpoint is another model's: it {' and '.join(said)}")
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)} in the checkpoint and {tuple(own[name].shape)} in the model"
            raise ConfigError(f"start_from: the checkpoint is another model's: {name} is {shapes}")
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)


def load_moments(optimizer: torch.optim.Optimizer, kept: Mapping[str, Any]) -> None:
    """Give an optimizer the moments of a state dict; its settings stay.  Raises ConfigError if that is another kind's.

    Two optimizers are of one kind if their groups have the same settings by name, and as many parameters.
    """
    own, theirs = optimizer.state_dict()["param_groups"], kept["param_groups"]
    if [(len(one["params"]), one.keys()) for one in own] != [(len(one["params"]), one.keys()) for one in theirs]:
        raise ConfigError(
            "start_keeps: moments: the checkpoint's optimizer has other settings or groups of parameters than this "
            "run's; leave moments out, or use the optimizer of that run"
        )
    groups = [{**group, "params": old["params"]} for group, old in zip(own, theirs, strict=True)]
    optimizer.load_state_dict({"state": deepcopy(kept["state"]), "param_groups": groups})


def _without_prefix(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = dict(weights)
    for prefix in _PREFIXES:
        if found and all(name.startswith(prefix) for name in found) and not any(n.startswith(prefix) for n in own):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def hash_weights(model: nn.Module) -> str:
    """Hash of all parameters with their names; called before anything is rounded."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode() + parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_alike(ranks: Ranks, device: torch.device, weights: str, batches: str) -> None:
    """Raise ValueError if the ranks have different initial weights or batches (hashes), or all name one GPU."""
    if ranks.alone:
        return
    if device.index is not None:
        raise ValueError(f"device='{device}' is one GPU; with several workers use device=cuda or auto")
    starts = ranks.of_all((weights, batches))
    for rank, start in enumerate(starts):
        if start != starts[0]:
            raise ValueError(f"rank {rank} has other initial weights or batches than rank 0; seed them alike")

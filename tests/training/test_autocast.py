"""`autocast`: what no recipe rounds is computed in bfloat16, in every forward pass of a run and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from altgrad.quantization.quantize import quantize_model
from altgrad.training import TrainConfig
from altgrad.training.data import TextBatches, load_corpus
from altgrad.training.model import build_gpt
from altgrad.training.optim import build_optimizer, learning_rate
from altgrad.training.process_settings import full_precision_sums
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import BARE

STEPS = 12
SMALL = BARE | {"compile": False, "diagnostic_interval": 1, "max_steps": STEPS}


class _AttentionTypes(TorchDispatchMode):
    """Dtypes of the tensors that attention multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        if "scaled_dot_product" in str(operator) and "backward" not in str(operator):
            self.seen |= {part.dtype for part in arguments[:3]}
        return operator(*arguments, **(keywords or {}))


@pytest.mark.parametrize(
    ("autocast", "expected"), [("auto", torch.float32), (False, torch.float32), (True, torch.bfloat16)]
)
def test_attention_multiplies_bfloat16_in_training_validation_and_shadow(autocast, expected):
    trainer = Trainer(TrainConfig(**SMALL, autocast=autocast, use_shadow=True))
    for call in (trainer.step, trainer.validation_loss):
        with _AttentionTypes() as attention:
            call()
        assert attention.seen == {expected}


@pytest.mark.parametrize("fields", [{"format": "E4M3"}, {"format": "BF16"}, {"recipe": "mxfp8"}], ids=str)
def test_a_run_is_the_loop_with_torchs_own_autocast_around_the_forward_pass(fields):
    config = TrainConfig(**SMALL, **fields, autocast=True)
    trainer = Trainer(config)
    batches = TextBatches(load_corpus(config), config, config.shape.block_size)
    model = build_gpt(config, batches.vocabulary)
    quantized = quantize_model(model, config)
    optimizer = build_optimizer(model, config)
    with full_precision_sums():
        for step in range(1, STEPS + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            quantized.begin_step(config.seed, step)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(*batches.training(step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
            optimizer.step()
            quantized.after_optimizer(optimizer)
            assert trainer.step().record["loss"] == loss.item()
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_it_changes_the_losses_and_rounding_to_bfloat16_little():
    """Attention in bfloat16 moves the loss, by far less than training does."""
    losses = []
    for autocast in (False, True):
        trainer = Trainer(TrainConfig(**SMALL, autocast=autocast))
        losses.append([trainer.step().record["loss"] for _ in range(STEPS)])
    differences = [abs(a - b) for a, b in zip(*losses, strict=True)]
    assert any(differences)
    assert max(differences) < 0.02 < losses[0][0] - losses[0][-1]

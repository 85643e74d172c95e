"""The rounded share of models: what is measured is what a count of the operands' bits finds, and at least 95 %."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.config.recipe import Recipe
from altgrad.quantization.quantize import quantize_model
from tests.support.rounding.rounded_products import counted_share

Made = tuple[nn.Module, Callable[[], Tensor]]
LEAST = 0.95


def of_tensor(model: nn.Module, x: Tensor) -> Made:
    def loss() -> Tensor:
        y = model(x)
        return (y[0] if isinstance(y, tuple) else y).square().mean()

    return model, loss


def encoder() -> Made:
    layer = nn.TransformerEncoderLayer(64, 2, 128, dropout=0.0, batch_first=True)
    return of_tensor(nn.TransformerEncoder(layer, 2), torch.randn(2, 8, 64))


def attention() -> Made:
    layer, x = nn.MultiheadAttention(64, 2), torch.randn(4, 3, 64)
    return layer, lambda: layer(x, x, x)[0].square().mean()


def convolutions() -> Made:
    parts = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten()]
    return of_tensor(nn.Sequential(*parts, nn.Linear(8 * 16, 5)), torch.randn(2, 3, 8, 8))


def recurrent() -> Made:
    return of_tensor(nn.LSTM(16, 32, 2, bidirectional=True), torch.randn(6, 2, 16))


def language_model(name: str, **fields: Any) -> Callable[[], Made]:
    def made() -> Made:
        transformers = pytest.importorskip("transformers")
        config = getattr(transformers, f"{name}Config")(vocab_size=64, **fields)
        family = f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
        model, tokens = getattr(transformers, family)(config).eval(), torch.randint(0, 64, (2, 16))
        return model, lambda: model(input_ids=tokens, labels=tokens).loss

    return made


def classifier(name: str, size: int, **fields: Any) -> Callable[[], Made]:
    def made() -> Made:
        transformers = pytest.importorskip("transformers")
        config = getattr(transformers, f"{name}Config")(num_labels=10, **fields)
        model = getattr(transformers, f"{name}ForImageClassification")(config)
        x = torch.randn(2, 3, size, size)
        return model, lambda: model(pixel_values=x).logits.square().mean()

    return made


TEXT = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
SMALL = {"encoder": encoder, "attention": attention, "convolutions": convolutions, "lstm": recurrent}
WHOLE = {
    "gpt2": language_model("GPT2", n_positions=16, n_embd=64, n_layer=2, n_head=2),
    "llama": language_model("Llama", **TEXT),
    "mixtral": language_model("Mixtral", num_local_experts=4, **TEXT),
    "qwen3_moe": language_model(
        "Qwen3Moe", moe_intermediate_size=128, num_experts=4, num_experts_per_tok=2, head_dim=32, **TEXT
    ),
    "resnet18": classifier(
        "ResNet", 32, embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[2, 2, 2, 2], layer_type="basic"
    ),
    "convnext": classifier("ConvNext", 64, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 2, 1]),
    "vit": classifier(
        "ViT", 32, image_size=32, patch_size=8, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=256,
    ),
}  # fmt: skip


def check(made: Callable[[], Made], attention_gemms: bool = False) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, loss = made()
        keys = list(model.state_dict())
        quantized = quantize_model(model, Recipe(format="E4M3", attention_gemms=attention_gemms))
        coverage = quantized.coverage(loss)
        assert coverage is not None and coverage.note == "" and coverage.share is not None
        counted = counted_share(model, loss)
    assert coverage.share >= (0.995 if attention_gemms else LEAST), coverage.sentence()
    assert counted == pytest.approx(coverage.share, abs=0.005)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", SMALL)
def test_the_measured_share_of_a_small_model_is_that_of_its_operands(name: str) -> None:
    check(SMALL[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_the_measured_share_of_a_whole_model_is_that_of_its_operands(name: str) -> None:
    check(WHOLE[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
def test_with_the_products_of_attention_nothing_of_a_transformer_is_left_out(name: str) -> None:
    check(WHOLE[name], attention_gemms=True)

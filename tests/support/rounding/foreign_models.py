"""Models of other libraries with random weights, small; `python -m tests.support.rounding.foreign_models` runs them.

It prints, as JSON, for each model the rounded share as we measure it and as a count of the operands' bits finds it, the
share of what no kind of layer covers, why a part could not be run, whether the state dict kept its keys, and the share
with `attention_gemms`: as it is foretold, and as it is.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.config.recipe import Recipe
from altgrad.config.train_config import TrainConfig
from altgrad.quantization.adapters.filters import lora_adapters
from altgrad.quantization.quantize import quantize_model
from altgrad.training.trainer import Trainer
from tests.support.rounding.rounded_products import counted_share

Made = tuple[nn.Module, Callable[[], Tensor]]
TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0,
}  # fmt: skip
MIXTURE = {"moe_intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 32}


def of_tokens(architecture: str, **fields: Any) -> Callable[[], Made]:
    """A causal language model of transformers."""

    def made() -> Made:
        import transformers

        auto: Any = transformers
        config = auto.AutoConfig.for_model(architecture, **fields)
        model = auto.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        tokens = torch.randint(1, 64, (2, 16))
        return model, lambda: model(input_ids=tokens, labels=tokens).loss

    return made


def of_masked_tokens() -> Made:
    """An encoder of transformers."""
    import transformers

    fields = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    model = transformers.BertForMaskedLM(transformers.BertConfig(**fields)).eval()
    tokens = torch.randint(1, 64, (2, 16))
    return model, lambda: model(input_ids=tokens, labels=tokens).loss


def of_two_texts() -> Made:
    """An encoder with a decoder."""
    import transformers

    sizes = {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 2, "d_kv": 32, "vocab_size": 64}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0)).eval()
    tokens = torch.randint(2, 64, (2, 16))
    return model, lambda: model(input_ids=tokens, labels=tokens).loss


def with_adapters() -> Made:
    """GPT-2 of which peft trains adapters alone."""
    import peft

    model, _ = MODELS["gpt2"]()
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
    tokens = torch.randint(1, 64, (2, 16))
    return model, lambda: model(input_ids=tokens, labels=tokens).loss


def of_images(library: str, name: str, size: int = 64) -> Callable[[], Made]:
    """A model of torchvision or timm, as the task `image_classifier` makes it."""

    def made() -> Made:
        from altgrad.tasks.image_classifier import ImageClassifier

        task = ImageClassifier(model=f"{library}:{name}", size=size)
        images = torch.randn(2, 3, size, size)
        task._read = images, torch.tensor([0, 9])
        model = task.model(TrainConfig())
        batch = images, torch.tensor([0, 9])
        return model, lambda: task.loss(model, batch)[0]

    return made


def of_torch(model: Callable[[], nn.Module], *shape: int) -> Callable[[], Made]:
    """A model of torch itself; of several outputs the first counts."""

    def made() -> Made:
        one, x = model(), torch.randn(shape)

        def loss() -> Tensor:
            y = one(x)
            return (y[0] if isinstance(y, tuple) else y).square().mean()

        return one, loss

    return made


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 2, 128, batch_first=True), 2)


MODELS: dict[str, Callable[[], Made]] = {
    "gpt2": of_tokens("gpt2", n_positions=16, n_embd=64, n_layer=2, n_head=2, vocab_size=64),
    "gpt_neox": of_tokens("gpt_neox", **TEXT),
    "opt": of_tokens("opt", **TEXT, ffn_dim=128, word_embed_proj_dim=64, max_position_embeddings=32),
    "llama": of_tokens("llama", **TEXT),
    "mistral": of_tokens("mistral", **TEXT),
    "qwen2": of_tokens("qwen2", **TEXT),
    "qwen3": of_tokens("qwen3", **TEXT, head_dim=32),
    "gemma2": of_tokens("gemma2", **TEXT, head_dim=32),
    "phi3": of_tokens("phi3", **TEXT),
    "mixtral": of_tokens("mixtral", **TEXT, num_local_experts=4),
    "qwen3_moe": of_tokens("qwen3_moe", **TEXT, **MIXTURE),
    "olmoe": of_tokens("olmoe", **TEXT, num_experts=4, num_experts_per_tok=2),
    "mamba": of_tokens("mamba", hidden_size=64, num_hidden_layers=2, vocab_size=64, state_size=8),
    "bert": of_masked_tokens,
    "t5": of_two_texts,
    "lora": with_adapters,
    "encoder": of_torch(encoder, 2, 16, 64),
    "lstm": of_torch(lambda: nn.LSTM(64, 64, 2), 8, 4, 64),
    "gru": of_torch(lambda: nn.GRU(64, 64, 2), 8, 4, 64),
    "resnet18": of_images("torchvision", "resnet18"),
    "convnext_tiny": of_images("torchvision", "convnext_tiny"),
    "vit_tiny_patch16_224": of_images("timm", "vit_tiny_patch16_224", 224),
    "mixer_s32_224": of_images("timm", "mixer_s32_224", 224),
}


def let_torchvision_in() -> torch.library.Library:
    """Names that torchvision asks for when it is imported: its wheel cannot load them beside a torch without CUDA.

    They are gone with the object that is returned.
    """
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def trained(name: str) -> list[float]:
    """The losses of some steps of an image model on scikit-learn's digits, and its accuracy in the last one."""
    config = TrainConfig(
        format="E4M3", task="image_classifier", task_args={"model": name, "size": 32}, max_steps=12, batch_size=16,
        warmup_steps=1, learning_rate=2e-3, eval_batches=1, compile=False,
    )  # fmt: skip
    trainer = Trainer(config)
    outcomes = [trainer.step() for _ in range(config.max_steps)]
    return [one.record["loss"] for one in outcomes] + [outcomes[-1].own["accuracy"]]


def main(names: list[str]) -> None:
    """Print the shares of the models of these names, or of all."""
    warnings.simplefilter("ignore")
    kept = let_torchvision_in()
    found: dict[str, Any] = {}
    for name in names or MODELS:
        torch.manual_seed(0)
        model, loss = MODELS[name]()
        keys = list(model.state_dict())
        filter_fn = None if name != "lora" else lambda module, path: not lora_adapters(module, path)
        quantized = quantize_model(model, Recipe(format="E4M3"), filter_fn=filter_fn)
        coverage = quantized.coverage(loss)
        assert coverage is not None
        torch.manual_seed(1)
        left = sum(one.flops for one in coverage.uncovered) / coverage.total_flops
        alike = keys == list(model.state_dict())
        found[name] = [coverage.share, counted_share(model, loss), left, coverage.note, alike]
        whole = quantize_model(model, Recipe(format="E4M3", attention_gemms=True), filter_fn=filter_fn).coverage(loss)
        assert whole is not None
        found[name] += [(coverage.rounded_flops + coverage.attention_flops) / coverage.total_flops, whole.share]
        print(name, found[name], file=sys.stderr, flush=True)  # what was measured before one that fails
    if not names:
        found["trained"] = {name: trained(name) for name in ("torchvision:resnet18", "timm:convnext_atto")}
    print(json.dumps(found))
    del kept


if __name__ == "__main__":
    main(sys.argv[1:])

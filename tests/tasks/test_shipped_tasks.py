"""The shipped tasks against what can be known of them without them."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from altgrad.config.train_config import SHIPPED_TASKS, ConfigError
from altgrad.results import read_run
from altgrad.storage.folder import Folder
from altgrad.tasks import image_classifier
from altgrad.training import run_format_experiment
from altgrad.training.model import build_gpt
from altgrad.training.task.found_task import find_task
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import SMALL


def test_nanogpt_is_a_gpt_without_biases_and_with_a_tied_head() -> None:
    """The built-in GPT, whose biases are 0, computes the same from the same weights."""
    config = SMALL.altered(task="nanogpt", n_layer=2)
    task = find_task(config)
    model, other = task.model(config).eval(), build_gpt(config.altered(tied_head=True), 256)
    names = {"attn.c_attn": "attn.qkv", "attn.c_proj": "attn.proj", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}
    theirs = other.state_dict()
    for name, tensor in model.state_dict().items():
        ours = name.removeprefix("transformer.")
        for one, another in names.items():
            ours = ours.replace(one, another)
        assert theirs[ours].shape == tensor.shape
        theirs[ours].copy_(tensor)
    tokens, targets = task.batches(config).training(1)
    loss = model(tokens, targets).item()
    assert loss == pytest.approx(other(tokens, targets).item(), rel=1e-6)
    assert loss == pytest.approx(np.log(256), abs=0.05)  # it has learned nothing yet
    half = targets.clone()
    half[:, ::2] = -1  # targets that do not count
    assert model(tokens, half).item() != loss


@pytest.mark.parametrize("task", ["gpt", "nanogpt", "hf_causal_lm", "regression"])
def test_a_task_of_tokens_knows_the_entropy_of_their_frequencies(task: str) -> None:
    if task == "hf_causal_lm":
        pytest.importorskip("transformers")
    config = SMALL.altered(task=task)
    found = find_task(config).batches(config).unigram_entropy
    assert found == (None if task == "regression" else pytest.approx(3.164, abs=1e-3))  # of the bytes of `opticks`


def test_a_run_stores_the_entropy_and_is_judged_by_it(tmp_path: Path) -> None:
    """Asked for 1.5 nats below the frequencies, and a fall of 10: from step 20, its first average, it has 100 steps."""
    config = SMALL.altered(
        max_steps=140, eval_interval=140, diagnostic_interval=140, no_context_fraction=0.1, never_learned_fraction=1.0,
        never_learned_margin=1.5, stalled_slope=10.0,
    )  # fmt: skip
    result = run_format_experiment(config, tmp_path / "run")
    assert result.verdict is not None and (result.verdict.rule, result.verdict.step) == ("no_context", 120)
    stored = read_run(Folder.at(tmp_path / "run")).info["unigram_entropy"]
    assert stored == pytest.approx(3.164, abs=1e-3) and result.verdict.limit == pytest.approx(stored - 1.5)


def test_the_proxy_s_student_with_the_teacher_s_weights_is_wrong_by_the_noise() -> None:
    config = SMALL.altered(task="mx_proxy", task_args={"width": 32, "depth": 2, "layer_norm": False, "noise": 0.1})
    task = find_task(config)
    inputs, targets = task.batches(config.altered(batch_size=2000)).training(1)
    student = task.model(config)
    assert task.loss(student, (inputs, targets)).item() > 0.1**2 * 2
    student.load_state_dict(task.task._made_teacher().state_dict())
    assert task.loss(student, (inputs, targets)).item() == pytest.approx(0.1**2, rel=0.02)
    assert inputs.std().item() == pytest.approx(1, rel=0.02)
    other = find_task(config).batches(config.altered(batch_size=2000, seed=7))
    again = [other.training(1)[0], other.training(2)[0], *(batch[0] for batch in other.validation()), inputs]
    assert len({float(one[0, 0]) for one in again}) == len(again)  # other data of the same teacher, all of them
    assert task.loss(student, other.validation()[0]).item() == pytest.approx(0.1**2, rel=0.02)


def test_the_regression_s_targets_have_the_variance_one() -> None:
    config = SMALL.altered(task="regression", batch_size=4000, task_args={"functions": 3})
    _, targets = find_task(config).batches(config).training(1)
    assert targets.shape == (4000, 1) and float(targets.var()) == pytest.approx(1, rel=0.1)
    easy = {"inputs": 4, "functions": 1, "width": 32, "depth": 1}
    trainer = Trainer(SMALL.altered(task="regression", task_args=easy, max_steps=80, learning_rate=0.02, batch_size=64))
    losses = [trainer.step().record["loss"] for _ in range(80)]
    assert sum(losses[-10:]) / 10 < 0.5 * losses[0]


def images(folder: Path, **changes: Any) -> Path:
    """Bright left or right halves."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    pixels = rng.integers(0, 100, (200, 8, 8))
    for picture, label in zip(pixels, labels, strict=True):
        picture[:, 4 * label : 4 * label + 4] += 150
    np.savez(folder / "halves.npz", **({"images": pixels.astype("uint8"), "labels": labels} | changes))
    return folder / "halves.npz"


def test_an_image_classifier_learns_from_a_file(tmp_path: Path) -> None:
    arguments = {"data": str(images(tmp_path))}
    config = SMALL.altered(
        task="image_classifier", task_args=arguments, max_steps=40, learning_rate=0.01, batch_size=32
    )
    trainer = Trainer(config.altered(format="E4M3", eval_interval=40, eval_batches=4))
    outcomes = [trainer.step() for _ in range(40)]
    assert outcomes[-1].own["validation_accuracy"] > 0.9 and trainer.batches.vocabulary == 2
    train, held_out = (trainer.task.task.data(config, split) for split in ("training", "validation"))
    assert len(train) == 180 and len(held_out) == 20
    bright = held_out.tensors[0][0, 0]
    assert float(bright.max()) <= 1 and bright.shape == (8, 8)


def test_a_model_of_torchvision_sees_grey_images_as_coloured_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_model(name: str, num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    models = types.SimpleNamespace(get_model=get_model, list_models=lambda: ["resnet18"])
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setattr(image_classifier, "find_spec", lambda name: name == "torchvision")
    task = image_classifier.ImageClassifier("resnet18", data=str(images(tmp_path)))
    model, grey = task.model(SMALL), torch.rand(4, 1, 8, 8)
    labels = torch.zeros(4, dtype=torch.int64)
    expected = nn.functional.cross_entropy(model(torch.cat([grey] * 3, 1)), labels)
    assert torch.equal(task.loss(model, (grey, labels))[0], expected)
    two = image_classifier.ImageClassifier("resnet18", data=str(images(tmp_path, images=np.zeros((200, 8, 8, 2)))))
    with pytest.raises(ConfigError, match=r"take images of 3 channels, or grey ones$"):
        two.model(SMALL)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": np.zeros(3, int)}, "images (200, 8, 8), labels (3,)"),
        ({"labels": np.full(200, -1)}, "the label -1; labels count from 0"),
        ({"labels": np.array([{}] * 200)}, "cannot be read (ValueError)"),  # a pickle, which is not read
    ],
)
def test_images_that_fit_no_labels_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    config = SMALL.altered(task="image_classifier", task_args={"data": str(images(tmp_path, **changes))})
    with pytest.raises(ConfigError) as caught:
        Trainer(config)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_sklearn_s_digits_are_learned() -> None:
    pytest.importorskip("sklearn")
    config = SMALL.altered(task="image_classifier", max_steps=120, learning_rate=0.003, batch_size=64, format="E4M3")
    trainer = Trainer(config.altered(eval_interval=120, eval_batches=2))
    outcomes = [trainer.step() for _ in range(120)]
    assert outcomes[-1].own["validation_accuracy"] > 0.85 and trainer.batches.vocabulary == 10


LLAMA = {
    "model": "llama", "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize("arguments", [LLAMA, {"model": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2}])
def test_a_model_of_transformers_has_the_loss_that_it_computes_itself(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    config = SMALL.altered(task="hf_causal_lm", task_args=arguments)
    task = find_task(config)
    model, (tokens, targets) = task.model(config).eval(), task.batches(config).training(1)
    whole = torch.cat([tokens, targets[:, -1:]], 1)
    assert task.loss(model, (tokens, targets)).item() == pytest.approx(
        model(input_ids=whole, labels=whole).loss.item(), rel=1e-5
    )
    model.save_pretrained(tmp_path / "stored")
    again = config.altered(task_args={"model": str(tmp_path / "stored")})
    loaded = find_task(again).model(again)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    (tmp_path / "large").mkdir()
    np.arange(1000).astype("uint16").tofile(tmp_path / "large" / "all.bin")
    with pytest.raises(ConfigError, match=r"1000 ids, but .* has a vocabulary of 256"):
        find_task(again).model(again.altered(data=str(tmp_path / "large" / "all.bin"), token_dtype="uint16"))


def test_what_is_not_installed_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("hf_causal_lm", "image_classifier"):
        __import__(f"altgrad.tasks.{module}")
        monkeypatch.setattr(f"altgrad.tasks.{module}.find_spec", lambda name: None)
    refused: dict[str, tuple[dict[str, Any], str]] = {
        "hf_causal_lm": ({}, "needs transformers, which is not installed: pip install transformers"),
        "image_classifier": ({}, "scikit-learn is not installed"),
    }
    for name, (arguments, said) in refused.items():
        with pytest.raises(ConfigError, match=said):
            Trainer(SMALL.altered(task=name, task_args=arguments))


@pytest.mark.parametrize("name", [name for name in SHIPPED_TASKS if name not in ("hf_causal_lm", "image_classifier")])
def test_a_shipped_task_starts_alike_for_every_format(name: str) -> None:
    starts = set()
    for number_format in ("BF16", "E4M3"):
        trainer = Trainer(SMALL.altered(task=name, format=number_format))
        starts.add((trainer.initial_weights_hash, trainer.batches.digest(), trainer.task.digest))
    assert len(starts) == 1
    assert isinstance(trainer.model, nn.Module) and isinstance(next(trainer.model.parameters()), Tensor)

"""Batches at their edges: the first and the last window, what a hash sees, what is refused, what is said."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.training.data import Corpus, Source, TextBatches, load_corpus
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import SMALL

BLOCK = 4
SOURCE = Source("text", 1, 30, None, 20, 10, ())
RECORDED = {  # first tokens of the windows of (seed, step), numpy 2
    (1, 2): [11, 4, 2, 5, 6, 0, 9, 15],
    (2, 1): [8, 8, 3, 13, 1, 1, 2, 14],
    (1, 3): [4, 10, 13, 9, 1, 1, 12, 0],
}
CONFIG = SMALL.altered(batch_size=64, eval_batches=2, max_steps=5)


def batches(training: Any = range(20), validation: Any = range(100, 110), **fields: Any) -> TextBatches:
    """Tokens that say where they stand: held-out ones from 100."""
    block = fields.pop("block", BLOCK)
    digest = fields.pop("digest", "")
    tokens = np.array(training, dtype=np.int32), np.array(validation, dtype=np.int32)
    return TextBatches(Corpus(*tokens, 256, SOURCE, digest), CONFIG.altered(**fields), block)


def test_a_model_is_made_for_the_vocabulary_of_the_batches_that_are_given() -> None:
    tokens = np.arange(20, dtype=np.int32)
    trainer = Trainer(CONFIG, batches=TextBatches(Corpus(tokens, tokens, 77, SOURCE, ""), CONFIG, BLOCK))
    assert trainer.model.get_parameter("wte.weight").shape[0] == 77


@pytest.mark.parametrize("length", [BLOCK + 1, BLOCK + 2, 9])
def test_every_window_of_a_short_text_is_drawn_the_last_one_too(length: int) -> None:
    data = batches(range(length))
    inputs, targets = data.training(1)
    assert set(inputs[:, 0].tolist()) == set(range(length - BLOCK))
    assert (targets == inputs + 1).all() and inputs.shape == targets.shape == (64, BLOCK)


@pytest.mark.parametrize(
    ("length", "starts"), [(BLOCK + 1, [100]), (BLOCK + 3, [100, 101, 102]), (9, [100, 101, 102, 103, 104])]
)
def test_no_held_out_window_is_read_twice(length: int, starts: list[int]) -> None:
    parts = batches(validation=range(100, 100 + length)).validation()
    assert [start for inputs, _ in parts for start in inputs[:, 0].tolist()] == starts
    assert [len(inputs) for inputs, _ in parts] == [len(starts)]


def test_held_out_windows_lie_at_even_distances_in_batches_of_the_batch_size() -> None:
    parts = batches(validation=range(100, 125), batch_size=3, eval_batches=2).validation()
    assert [inputs[:, 0].tolist() for inputs, _ in parts] == [[100, 104, 108], [112, 116, 120]]
    assert all((targets == inputs + 1).all() for inputs, targets in parts)


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_text_of_less_than_one_block_and_its_target_is_refused(part: str) -> None:
    batches(**{part: range(BLOCK + 1)})
    with pytest.raises(ConfigError) as caught:
        batches(**{part: range(BLOCK)}, data="short.txt")
    assert str(caught.value) == (
        f"data='short.txt': the {part} text has 4 tokens, fewer than one block of block_size + 1 = 5; use a longer "
        "text or a smaller block_size"
    )


OTHERS = {
    "a training token": {"training": [*range(19), 99]},
    "a held-out token": {"validation": [*range(100, 109), 99]},
    "the split": {"training": range(21), "validation": range(101, 110)},
    "where the text is cut": {"training": range(19), "validation": [19, *range(100, 110)]},
    "the seed": {"seed": 43},
    "the batch size": {"batch_size": 63},
    "the block": {"block": BLOCK + 1},
    "a large corpus": {"digest": "a"},
}


@pytest.mark.parametrize("fields", OTHERS.values(), ids=OTHERS)
def test_another_corpus_or_order_has_another_hash(fields: dict[str, Any]) -> None:
    assert batches().digest() == batches().digest() and len(batches().digest()) == 16
    assert batches(**fields).digest() != batches().digest()


def test_the_hash_is_that_of_the_data_however_long_a_run_is_and_of_a_large_corpus_by_its_own_hash() -> None:
    assert len({batches(max_steps=steps).digest() for steps in (4, 63, 64, 65)}) == 1
    large = [batches(digest=digest).digest() for digest in ("a", "b")]
    assert large[0] != large[1]
    assert batches(training=[*range(19), 99], digest="a").digest() == large[0]  # its tokens are not read again


def test_the_hash_is_of_the_lengths_the_tokens_and_the_first_64_batches() -> None:
    """A run that goes on under a later version is refused if this changes."""
    data, digest = batches(), hashlib.sha256()
    for length, tokens in ((b"20,", range(20)), (b"10,", range(100, 110))):
        digest.update(length + np.array(tokens, dtype=np.int32).tobytes())
    for step in range(1, 65):
        digest.update(data.training(step)[0][:, 0].numpy().astype(np.int64).tobytes())
    assert data.digest() == digest.hexdigest()[:16] and data.vocabulary == 256


def test_seed_and_step_decide_and_always_alike() -> None:
    """Recorded: a run that goes on under a later version must see the batches that it would have seen."""
    starts = {
        (seed, step): batches(seed=seed, batch_size=8).training(step)[0][:, 0].tolist()
        for seed, step in ((1, 2), (2, 1), (1, 3))
    }
    assert starts == RECORDED


def config_of(tmp_path: Any, content: bytes, **fields: Any) -> TrainConfig:
    (tmp_path / "text.txt").write_bytes(content)
    return CONFIG.altered(data=str(tmp_path / "text.txt"), **fields)


@pytest.mark.parametrize(("fraction", "held_out"), [(0.25, 3), (0.2, 2), (0.001, 1), (0.5, 6)])
def test_the_end_of_the_text_is_held_out(tmp_path: Any, fraction: float, held_out: int) -> None:
    """Of 12 bytes: a share, rounded, but never none."""
    corpus = load_corpus(config_of(tmp_path, b"abcdefghijkl", validation_fraction=fraction))
    assert bytes(corpus.training) == b"abcdefghijkl"[:-held_out]
    assert bytes(corpus.validation) == b"abcdefghijkl"[-held_out:]
    source = corpus.source
    assert (source.files, source.bytes, source.token_dtype, source.skipped) == (1, 12, None, ())
    assert source.data == str(tmp_path / "text.txt")
    assert (source.training_tokens, source.validation_tokens) == (12 - held_out, held_out)
    assert (corpus.vocabulary, corpus.digest) == (256, "")


def test_two_token_files_are_training_and_held_out_and_one_is_split(tmp_path: Any) -> None:
    for name, count in (("train.bin", 4000), ("val.bin", 1000), ("ids.bin", 4000)):
        (np.arange(count) % 50 + (name == "val.bin")).astype(np.uint16).tofile(tmp_path / name)
    config = CONFIG.altered(data=str(tmp_path), token_dtype="uint16", validation_fraction=0.1)
    corpus = load_corpus(config)
    assert (len(corpus.training), len(corpus.validation), corpus.vocabulary) == (4000, 1000, 51)
    assert (corpus.training[0], corpus.validation[0]) == (0, 1)
    assert (corpus.source.files, corpus.source.bytes, corpus.source.token_dtype) == (2, 10_000, "uint16")
    assert (corpus.source.data, corpus.source.skipped) == (str(tmp_path), ())
    both = corpus.digest
    (np.arange(1000) % 50).astype(np.uint16).tofile(tmp_path / "val.bin")
    changed = load_corpus(config)
    assert changed.digest != both and changed.vocabulary == 50
    alone = load_corpus(config.altered(data=str(tmp_path / "ids.bin")))
    assert (len(alone.training), len(alone.validation), alone.source.files) == (3600, 400, 1)
    assert (alone.source.training_tokens, alone.source.validation_tokens) == (3600, 400)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (SOURCE, "data text: 1 file, 30 bytes of text, 20 tokens for training, 10 held out"),
        (
            Source("d", 2, 10_000, "uint16", 4000, 1000, ("2 .png", "1 empty")),
            "data d: 2 files, 10,000 bytes of uint16 token ids, 4,000 tokens for training, 1,000 held out; skipped: "
            "2 .png, 1 empty",
        ),
    ],
)
def test_what_was_taken_is_said_in_a_line(source: Source, sentence: str) -> None:
    assert source.sentence() == sentence

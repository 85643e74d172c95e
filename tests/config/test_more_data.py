"""Data in tables, shards and named tokens: what is read is what is there, and a pickle runs nothing."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import entropy

from altgrad.config.train_config import ConfigError
from altgrad.corpus import columns
from altgrad.corpus.joined_ids import JoinedIds
from altgrad.corpus.unigram import SAMPLE, unigram_entropy
from altgrad.training import TrainConfig
from altgrad.training.data import Corpus, TextBatches, load_corpus

ROWS = ["It was the best of times,", "es war die schlechteste der Zeiten: äöü", "c'était l'âge de la sagesse"] * 20


def load(data: Path | str, **fields: Any) -> Corpus:
    return load_corpus(TrainConfig(data=str(data), **fields))


def refusal(data: Path | str, **fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(data, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def whole(corpus: Corpus) -> bytes:
    return bytes(corpus.training) + bytes(corpus.validation)


def write_lines(file: Path, column: str) -> None:
    file.write_text("".join(json.dumps({"id": n, column: text}) + "\n\n" for n, text in enumerate(ROWS)))


def write_parquet(file: Path, column: str) -> None:
    pq.write_table(pa.table({"id": range(len(ROWS)), column: ROWS}), file)


@pytest.mark.parametrize(("name", "write"), [("a.jsonl", write_lines), ("a.parquet", write_parquet)])
def test_the_texts_of_a_column_are_read_in_order(tmp_path: Path, name: str, write: Callable[[Path, str], None]) -> None:
    write(tmp_path / name, "body")
    expected = "\n".join(ROWS).encode()
    assert whole(load(tmp_path / name, text_column="body")) == expected
    (tmp_path / "b.txt").write_text("and more")
    (tmp_path / "c.png").write_bytes(b"\x89PNG")
    folder = load(tmp_path, text_column="body")
    assert whole(folder) == expected + b"\nand more" and folder.source.skipped == ("1 .png",)
    said = refusal(tmp_path / name, text_column="bodi")
    assert "text 'bodi'" in said and "there: id, body" in said and "did you mean 'body'?" in said


def test_half_of_a_surrogate_pair_in_a_text_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one \\ud83d"}\n{"text": "two \\ud83d\\ude00"}\n')
    assert columns.read_column(tmp_path / "a.jsonl", "text", "data") == "one ?\ntwo \U0001f600".encode()


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": 7}\n')
    assert "line 2 has no text 'text'" in refusal(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"text":')
    assert "line 2 is no JSON" in refusal(tmp_path / "b.jsonl")
    write_parquet(tmp_path / "c.parquet", "text")
    assert "holds int64, no texts" in refusal(tmp_path / "c.parquet", text_column="id")
    (tmp_path / "c.parquet").write_bytes((tmp_path / "c.parquet").read_bytes()[:-9])
    assert "is no whole Parquet file" in refusal(tmp_path / "c.parquet")


def shard(file: Path, ids: np.ndarray) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(ids)
    file.write_bytes(header.tobytes() + ids.astype("<u2").tobytes())


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 50257, 5000)
    for number, part in enumerate(np.split(ids, [100, 1500, 4000]), start=1):
        shard(tmp_path / f"fineweb_{'val' if number == 4 else 'train'}_{number:06d}.bin", part)
    (tmp_path / "readme.md").write_text("not tokens")
    config = TrainConfig(data=str(tmp_path), batch_size=64)
    corpus = load_corpus(config)
    assert corpus.source.files == 4 and corpus.source.skipped == ("1 .md",) and corpus.vocabulary == ids.max() + 1
    assert np.array_equal(corpus.training[np.arange(4000)], ids[:4000]) and np.array_equal(
        corpus.validation, ids[4000:]
    )
    one_file = tmp_path / "one" / "all.bin"
    one_file.parent.mkdir()
    shard(one_file, ids)
    shards = load(tmp_path / "fineweb_*_*.bin")
    assert np.array_equal(shards.validation, ids[4000:])
    split = load(tmp_path / "fineweb_train_*.bin", validation_fraction=0.3)
    assert len(split.training) == 2800 and np.array_equal(split.validation[np.arange(1200)], ids[2800:4000])
    windows = TextBatches(corpus, config, 32)
    joined, plain = windows.training(3)[0].numpy(), np.lib.stride_tricks.sliding_window_view(ids[:4000], 32)
    assert all((plain == row).all(1).any() for row in joined)
    assert windows.digest() != TextBatches(split, config, 32).digest()


def test_joined_ids_are_indexed_as_one_array() -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 9, 60)
    joined = JoinedIds(np.split(ids, [7, 7, 20, 45]))
    assert len(joined) == 60 and joined.nbytes == ids.nbytes
    places = rng.integers(0, 60, (50, 4))
    assert np.array_equal(joined[places], ids[places])
    for start, stop in [(0, 60), (3, 8), (20, 45), (44, 46), (-10, None), (0, -10), (30, 30)]:
        cut = joined[start:stop]
        assert isinstance(cut, JoinedIds) and np.array_equal(cut[np.arange(len(cut))], ids[start:stop])


def tokens(folder: Path) -> None:
    ids = np.random.default_rng(2).integers(0, 40, 3000).astype("uint16")
    ids[0] = 300  # tells the width
    for name in ("train.bin", "val.bin"):
        ids.tofile(folder / name)


class Runs:
    """A pickle of it runs a command when it is read."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._file),)


def test_meta_pkl_gives_the_vocabulary_and_runs_nothing(tmp_path: Path) -> None:
    tokens(tmp_path)
    assert load(tmp_path).vocabulary == 301
    meta = tmp_path / "meta.pkl"
    meta.write_bytes(pickle.dumps({"vocab_size": 512, "itos": {0: "a"}, "stoi": {"a": 0}}))
    assert load(tmp_path).vocabulary == 512
    meta.write_bytes(pickle.dumps({"vocab_size": 65}))
    assert "the largest id is 300, but meta.pkl says vocab_size 65" in refusal(tmp_path)
    for content in ({"vocab_size": 512, "x": Runs(tmp_path / "ran")}, {"vocab": 3}, [1], {"vocab_size": "512"}):
        meta.write_bytes(pickle.dumps(content))
        assert str(meta) in refusal(tmp_path)
    meta.write_bytes(b"no pickle")
    assert "cannot be taken" in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_encodes_the_text_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("tokenizers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = sorted({word for row in ROWS for word in row.split()})
    made = library.Tokenizer(library.models.WordLevel({word: n for n, word in enumerate(["?", *words])}, unk_token="?"))
    made.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("\n".join(ROWS))
    for _ in range(2):  # the second time from the cache
        corpus = load(tmp_path / "a.txt", tokenizer=str(tmp_path / "tokenizer.json"))
        ids = [*corpus.training.tolist(), *corpus.validation.tolist()]
        assert [(["?", *words])[one] for one in ids] == " ".join(ROWS).split()
        assert corpus.vocabulary == len(words) + 1
        monkeypatch.setattr(library.Tokenizer, "encode", None, raising=False)


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text " * 100)
    assert "tokenizer='" in refusal(tmp_path / "a.txt", tokenizer="gpt5")
    assert "tokenizer='" in refusal(tmp_path / "a.txt", tokenizer=str(tmp_path / "nowhere.json"))
    tokens(tmp_path)
    assert "holds token ids; leave it out" in refusal(tmp_path, tokenizer="gpt2")


def test_the_entropy_of_counted_frequencies_is_corrected_for_their_number() -> None:
    """By hand: two ids of four, alike: ln 2, and (2 - 1) / (2 x 4); one id alone has no entropy."""
    assert unigram_entropy(np.array([7, 7, 9, 9], np.uint16)) == pytest.approx(np.log(2) + 1 / 8)
    assert unigram_entropy(np.full(10, 3, np.uint32)) == 0.0
    corpus = load("opticks")
    counts = np.bincount(corpus.training)
    plain = entropy(counts[counts > 0])
    assert unigram_entropy(corpus.training) == pytest.approx(plain + 92 / (2 * counts.sum()), abs=1e-12)
    assert plain == pytest.approx(3.164, abs=1e-3)


def test_a_million_ids_of_a_large_vocabulary_tell_its_entropy_and_no_more_are_read() -> None:
    shares = 1.0 / np.arange(1, 50_001)
    shares /= shares.sum()
    ids = np.random.default_rng(0).choice(50_000, 3 * SAMPLE, p=shares).astype(np.uint16)
    asked: list[np.ndarray] = []

    class Watched:
        def __len__(self) -> int:
            return len(ids)

        def __getitem__(self, places: np.ndarray) -> np.ndarray:
            asked.append(places)
            found: np.ndarray = ids[places]
            return found

    found = unigram_entropy(Watched())
    assert found == pytest.approx(entropy(shares), abs=0.01)
    assert found == unigram_entropy(ids) == unigram_entropy(JoinedIds([ids[:5], ids[5:]]))
    (places,) = asked
    assert places.size == np.unique(places).size == SAMPLE == 1 << 20
    assert (places.min(), places.max()) == (0, len(ids) - 1)

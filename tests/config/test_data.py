"""What `data` means: the files are looked into, and what is no text and no token ids is refused in one line."""

from __future__ import annotations

import gzip
import hashlib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from altgrad.config.train_config import ConfigError
from altgrad.corpus.token_files import sampled_vocabulary
from altgrad.results import read_run
from altgrad.training import TrainConfig, run_format_experiment
from altgrad.training.data import Corpus, TextBatches, load_corpus

RNG = np.random.default_rng(0)
GPT2, LLAMA3, CHARACTERS = 50257, 128256, 65


def zipf(vocabulary: int, count: int = 20_000) -> np.ndarray:
    """Token ids as frequent as words are: the share of the n-th goes like 1/n; the largest id occurs."""
    ids = np.minimum(RNG.zipf(1.2, count), vocabulary) - 1
    ids = RNG.permutation(vocabulary)[ids]
    ids[:2] = vocabulary - 1
    return ids


def load(data: Path | str, **fields: object) -> Corpus:
    return load_corpus(TrainConfig(data=str(data), **fields))


def refusal(data: Path | str, **fields: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(data, **fields)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("data=")
    return message


# token files


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("vocabulary", [CHARACTERS, 256, 1000, GPT2, 65536, LLAMA3, 262144], ids=str)
def test_the_width_of_token_ids_is_found_in_the_file(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    if vocabulary > 65536 and dtype == "uint16":
        pytest.skip("uint16 holds no such ids")
    training, validation = zipf(vocabulary), zipf(vocabulary, 4000)
    for name, ids in (("train.bin", training), ("val.bin", validation)):
        ids.astype(dtype).tofile(tmp_path / name)
    corpus = load(tmp_path)
    assert np.array_equal(corpus.training, training) and np.array_equal(corpus.validation, validation)
    assert corpus.vocabulary == vocabulary == sampled_vocabulary(TrainConfig(data=str(tmp_path)))
    assert corpus.source.token_dtype == dtype


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_token_dtype_overrules_what_the_file_suggests(tmp_path: Path, dtype: str) -> None:
    file = tmp_path / "alternating.bin"
    np.tile([7, 0], 2000).astype("uint16").tofile(file)  # uint16 whose every second id is 0, or uint32 below 65536
    assert load(file, token_dtype=dtype).vocabulary == 8
    assert len(load(file, token_dtype=dtype).training) == {"uint16": 3600, "uint32": 1800}[dtype]


def test_a_large_file_is_sampled_at_even_places(tmp_path: Path) -> None:
    count = (1 << 21) + 8
    np.tile(zipf(LLAMA3, 1 << 10), count // 1024)[: count - 3].astype("int64").tofile(tmp_path / "x.bin")
    assert "looks like int64" in refusal(tmp_path / "x.bin")


def test_ids_that_do_not_tell_their_width_need_token_dtype(tmp_path: Path) -> None:
    np.zeros(4000, "uint16").tofile(tmp_path / "zeros.bin")
    assert "give token_dtype" in refusal(tmp_path / "zeros.bin")


@pytest.mark.parametrize(("magic", "dtype", "vocabulary"), [(20240520, "uint16", GPT2), (20240801, "uint32", LLAMA3)])
def test_the_header_of_llm_c_is_read_and_is_no_token(tmp_path: Path, magic: int, dtype: str, vocabulary: int) -> None:
    ids = zipf(vocabulary)
    header = np.zeros(256, "<i4")
    header[:3] = magic, 1, len(ids)
    shard = tmp_path / "fineweb_train_000001.bin"
    shard.write_bytes(header.tobytes() + ids.astype(dtype).tobytes())
    corpus = load(shard)
    assert np.array_equal(np.concatenate([corpus.training, corpus.validation]), ids)
    other = {"uint16": "uint32", "uint32": "uint16"}[dtype]
    assert f"its header says {dtype}" in refusal(shard, token_dtype=other)
    shard.write_bytes(shard.read_bytes()[:-2])
    assert "cut off" in refusal(shard)


def test_train_bin_stands_for_its_folder_or_is_split(tmp_path: Path) -> None:
    ids = zipf(GPT2)
    ids.astype("uint16").tofile(tmp_path / "train.bin")
    alone = load(tmp_path / "train.bin", validation_fraction=0.25)
    assert np.array_equal(alone.training, ids[:15000]) and np.array_equal(alone.validation, ids[15000:])
    ids[::-1].astype("uint16").tofile(tmp_path / "val.bin")
    layout = load(tmp_path / "train.bin")
    assert np.array_equal(layout.training, ids) and np.array_equal(layout.validation, ids[::-1])
    assert "val.bin" in refusal(missing_val(tmp_path))


def missing_val(folder: Path) -> Path:
    (folder / "val.bin").unlink()
    return folder


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (zipf(GPT2).astype("uint16").tobytes()[:-1], "no whole number of uint16"),
        (zipf(GPT2).astype("uint32").tobytes()[:-2], "looks like uint32 token ids, but"),
        (zipf(LLAMA3).astype("uint32").tobytes()[:-2], "looks like uint32 token ids, but"),
        (zipf(GPT2).astype("int64").tobytes(), "looks like int64"),
        (zipf(LLAMA3).astype("int64").tobytes(), "looks like int64"),
        (zipf(LLAMA3).astype(">u4").tobytes(), "looks like big-endian"),
        (b"It was the best of times. " * 100, "holds text"),
    ],
    ids=["odd size", "cut uint32", "cut uint32 beyond 65536", "int64", "int64 beyond 65536", "big-endian", "text"],
)
def test_a_damaged_token_file_is_refused_by_its_name(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "train.bin").write_bytes(content)
    zipf(GPT2).astype("uint16").tofile(tmp_path / "val.bin")
    message = refusal(tmp_path)
    assert str(tmp_path / "train.bin") in message and said in message


def test_files_of_unlike_width_and_ids_of_no_vocabulary_are_refused(tmp_path: Path) -> None:
    zipf(GPT2).astype("uint16").tofile(tmp_path / "train.bin")
    zipf(GPT2).astype("uint32").tofile(tmp_path / "val.bin")
    assert "train.bin uint16, val.bin uint32" in refusal(tmp_path)
    zipf(GPT2).astype("uint16").tofile(tmp_path / "val.bin")
    assert "is token_dtype right?" in refusal(tmp_path, token_dtype="uint32")


def test_the_vocabulary_of_a_large_file_is_kept_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("altgrad.corpus.token_files._CACHED_FROM", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, ids = tmp_path / "x.bin", zipf(GPT2).astype("uint16")
    ids.tofile(file)
    assert load(file).vocabulary == GPT2
    with monkeypatch.context() as unread:
        unread.setattr("altgrad.corpus.token_files._read_all", lambda place: pytest.fail("read again"))
        first = load(file)
        assert first.vocabulary == GPT2
    ids[-1] = 60000
    ids.tofile(file)
    assert load(file).vocabulary == 60001
    assert load(file).digest != first.digest
    for kept in (tmp_path / "cache").rglob("*.json"):
        kept.write_text("{}")
    assert load(file).vocabulary == 60001


def test_the_digest_sees_every_token(tmp_path: Path) -> None:
    config = TrainConfig(data=str(tmp_path / "text.txt"), max_steps=1)
    digests = set()
    for last in "ab":
        (tmp_path / "text.txt").write_text("x" * (1 << 21) + last + "y" * (1 << 19))
        digests.add(TextBatches(load_corpus(config), config, 8).digest())
    assert len(digests) == 2


def test_the_digest_is_the_same_for_runs_of_any_length(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcdefgh" * 100)
    configs = [TrainConfig(data=str(tmp_path / "text.txt"), max_steps=steps) for steps in (1, 20, 64, 5000)]
    assert len({TextBatches(load_corpus(config), config, 8).digest() for config in configs}) == 1
    other = configs[0].altered(seed=7)
    assert (
        TextBatches(load_corpus(other), other, 8).digest()
        != TextBatches(load_corpus(configs[0]), configs[0], 8).digest()
    )


# text


def test_the_text_that_ships_is_the_one_that_was_chosen() -> None:
    content = (resources.files("altgrad.corpus") / "texts" / "opticks.txt").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "2c6cf12042a452d378d82df6ea3fe05e9056ec165deab0d7911f77c37c96c982"
    assert (resources.files("altgrad.corpus") / "texts" / "LICENCE.md").is_file()
    corpus = load_corpus(TrainConfig())
    assert corpus.training.tobytes() + corpus.validation.tobytes() == content


def test_a_changed_built_in_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altgrad.corpus.text_files._BUILT_IN", {"opticks": "0" * 64})
    assert "install altgrad again" in refusal("opticks")


def test_a_folder_says_what_was_taken_and_what_was_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first text " * 50)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.MD").write_text("second text " * 50)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "packed.txt").write_bytes(gzip.compress(b"third text " * 50))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "notes.txt").write_text("hidden text " * 50)
    source = load(tmp_path).source
    assert (source.files, source.bytes) == (2, len("first text " * 50 + "\n" + "second text " * 50))
    assert set(source.skipped) == {"1 empty", "1 not text inside", "1 .png", "1 hidden"}
    assert source.sentence().startswith(
        f"data {tmp_path}: 2 files, 1,151 bytes of text, 1,036 tokens for training, 115"
    )
    (tmp_path / "a.txt").unlink()
    (tmp_path / "sub" / "b.MD").unlink()
    assert "1 .png" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"text " * 1000), "gzip"),
        ("Größe ".encode("utf-16") * 100, "UTF-16"),
        ("Größe ".encode("latin-1") * 100, "not UTF-8"),
        (np.arange(1000, dtype=np.uint16).tobytes(), "NUL bytes"),
        (b"PK\x03\x04" + b"x" * 1000, "zip"),
        (b"PAR1" + b"x" * 1000, "parquet"),
    ],
    ids=["gzip", "UTF-16", "Latin-1", "binary", "zip", "parquet"],
)
def test_what_is_no_text_is_refused_by_name_with_what_would_be_right(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "book.txt").write_bytes(content)
    for data in (tmp_path / "book.txt", tmp_path / "*.txt"):
        message = refusal(data)
        assert said in message and "book.txt" in message


def test_utf8_text_with_a_stray_byte_is_text(tmp_path: Path) -> None:
    content = "Größe, Æther, 光 ".encode() * 100 + b"\xff"
    (tmp_path / "book.txt").write_bytes(content)
    corpus = load(tmp_path / "book.txt")
    assert corpus.training.tobytes() + corpus.validation.tobytes() == content


@pytest.mark.parametrize("data", ["python-docs", "no/such/text", "x" * 5000, "no*such"])
def test_what_is_not_there_is_refused_with_what_there_is(data: str) -> None:
    message = refusal(data)
    assert "opticks" in message or "more than 255 bytes" in message
    assert len(message) < 300


def test_a_run_says_in_its_folder_what_it_was_trained_on(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("some text " * 200)
    fields = {"model": "micro", "max_steps": 2, "eval_batches": 1, "compile": False}
    result = run_format_experiment(TrainConfig(data=str(tmp_path / "book.txt"), **fields), tmp_path / "run")
    stored = read_run(result.folder).folder.read_json("run.json")["data"]
    assert (stored["files"], stored["bytes"], stored["training_tokens"]) == (1, 2000, 1800)

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The samples themselves: shapes, content, blends, splits, caches; compared with the engine's."""

import os
from pathlib import Path

import pytest
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from k2_megatron.data import index_cache
from k2_megatron.data.datasets import TokenSamples, build_datasets
from k2_megatron.data.index_cache import filled_aside, wait_until_visible
from k2_megatron.data.prepare import prepare
from k2_megatron.data.tokenizer import build_tokenizer
from k2_megatron.errors import DataError
from tests.data.conftest import MakeCorpus

SEQ_LENGTH = 16


def build(
    corpora: list[tuple[str, float]], train: int, valid: int, fraction: float, cache: Path | None
) -> tuple[TokenSamples, TokenSamples]:
    sets = build_datasets(
        corpora,
        seq_length=SEQ_LENGTH,
        seed=3,
        train_samples=train,
        valid_samples=valid,
        valid_fraction=fraction,
        cache_folder=cache,
    )
    assert sets[0] is not None and sets[1] is not None
    return sets[0], sets[1]


def letters(samples: TokenSamples) -> set[str]:
    ids = {i for index in range(len(samples)) for i in samples[index]["tokens"].tolist()}
    return {chr(i) for i in ids if i != 256}


class EngineTokenizer:
    vocab_size = 257
    eod = 256
    unique_identifiers = ("byte",)


def engine_sets(
    blend: tuple[list[str], list[float] | None], sizes: list[int], split: str, cache: Path
) -> list[GPTDataset]:
    config = GPTDatasetConfig(
        random_seed=3,
        sequence_length=SEQ_LENGTH,
        blend=blend,
        split=split,
        path_to_cache=str(cache) if len(blend[0]) == 1 else None,
        tokenizer=EngineTokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    built = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()
    return list(built[:2])


def assert_same_samples(ours: TokenSamples, theirs: GPTDataset) -> None:
    assert len(ours) <= len(theirs)
    for index in range(len(ours)):
        for key, value in ours[index].items():
            assert torch.equal(value, theirs[index][key]), (index, key)


def test_sample_keys_shapes_and_dtypes(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    prefix = make_corpus("c", num_documents=30, num_characters=40).prefix
    train, valid = build([(prefix, 1.0)], 50, 4, 0.1, tmp_path / "x")
    assert (len(train), len(valid)) == (50, 4)
    sample = train[49]
    assert {key: (value.dtype, tuple(value.shape)) for key, value in sample.items()} == {
        "tokens": (torch.int64, (SEQ_LENGTH,)),
        "labels": (torch.int64, (SEQ_LENGTH,)),
        "loss_mask": (torch.float32, (SEQ_LENGTH,)),
        "position_ids": (torch.int64, (SEQ_LENGTH,)),
    }
    assert torch.equal(sample["tokens"][1:], sample["labels"][:-1])
    assert sample["position_ids"].tolist() == list(range(SEQ_LENGTH))
    for index in (-1, 50):
        with pytest.raises(IndexError, match=f"sample {index} of 50"):
            train[index]


def test_loss_goes_over_document_bounds(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    prefix = make_corpus("c", num_documents=30, num_characters=5).prefix
    train, _ = build([(prefix, 1.0)], 8, 1, 0.2, tmp_path / "x")
    for index in range(8):
        assert 256 in train[index]["tokens"].tolist()
        assert train[index]["loss_mask"].tolist() == [1.0] * SEQ_LENGTH


def test_training_and_validation_share_no_document(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    prefix = make_corpus("c", num_documents=20, num_characters=40).prefix
    train, valid = build([(prefix, 1.0)], 200, 40, 0.25, tmp_path / "x")
    assert letters(train) == set("abcdefghijklmno")
    assert letters(valid) == set("pqrst")


def test_one_corpus_equals_the_engines_builder(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    prefix = make_corpus("c", num_documents=30, num_characters=40).prefix
    train, valid = build([(prefix, 2.0)], 170, 12, 0.15, tmp_path / "x")
    theirs = engine_sets(([prefix], None), [170, 12, 0], "0.85,0.15,0", tmp_path / "y")
    assert_same_samples(train, theirs[0])
    assert_same_samples(valid, theirs[1])


def test_blend_equals_the_engines_builder(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    prefixes = [
        make_corpus("a", num_documents=30, num_characters=40).prefix,
        make_corpus("b", num_documents=20, num_characters=70).prefix,
        make_corpus("c", num_documents=25, num_characters=10).prefix,
    ]
    weights = [0.5, 0.3, 0.2]
    blend = list(zip(prefixes, weights, strict=True))
    train, valid = build(blend, 190, 17, 0.2, tmp_path / "x")
    theirs = engine_sets((prefixes, weights), [190, 17, 0], "0.8,0.2,0", tmp_path / "y")
    assert_same_samples(train, theirs[0])
    assert_same_samples(valid, theirs[1])


def test_blend_honours_weights(
    make_corpus: MakeCorpus, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = make_corpus("one", num_documents=20, num_characters=40, letter="x").prefix
    two = make_corpus("two", num_documents=20, num_characters=40, letter="y").prefix
    train, valid = build([(one, 3.0), (two, 1.0)], 200, 40, 0.2, tmp_path / "x")
    for samples in (train, valid):
        ofone = sum(ord("x") in samples[i]["tokens"].tolist() for i in range(len(samples)))
        assert abs(ofone - 0.75 * len(samples)) <= 1
    assert set(train[0]) == {"tokens", "labels", "loss_mask", "position_ids"}
    assert capfd.readouterr().err == ""


def test_more_than_one_epoch_sees_every_document_again(
    make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    prefix = make_corpus("c", num_documents=13, num_characters=31).prefix
    # 13 * 32 tokens = 26 samples an epoch less the first token's: three epochs exactly used.
    train, _ = build([(prefix, 1.0)], 60, 1, 0.1, tmp_path / "x")
    seen = [i for index in range(60) for i in train[index]["tokens"].tolist()]
    counts = [seen.count(ord(letter)) for letter in "abcdefghijkl"]
    assert min(counts) >= 31 and max(counts) <= 3 * 31


def test_valid_set_can_be_left_out(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    prefix = make_corpus("c", num_documents=20, num_characters=40).prefix
    train, valid = build_datasets(
        [(prefix, 1.0)],
        seq_length=SEQ_LENGTH,
        seed=3,
        train_samples=200,
        valid_samples=0,
        valid_fraction=0.25,
        cache_folder=tmp_path / "x",
    )
    assert valid is None and train is not None
    assert letters(train) == set("abcdefghijklmno")


def test_default_cache_is_beside_the_corpus_and_reused(
    make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    prefix = make_corpus("c", num_documents=20, num_characters=40).prefix
    build([(prefix, 1.0)], 20, 2, 0.2, None)
    (folder,) = (tmp_path / "index_cache").iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 8
    build([(prefix, 1.0)], 20, 2, 0.2, None)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not (tmp_path / "c").exists()


def test_cache_of_other_data_or_settings_is_not_used(
    make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    prefix = make_corpus("c", num_documents=20, num_characters=40).prefix
    build([(prefix, 1.0)], 20, 2, 0.2, tmp_path / "x")
    # The same name, the same lengths, other text: and only half of the documents.
    (tmp_path / "new.jsonl").write_text('{"text": "%s"}\n' % ("z" * 40) * 10)
    prepare([tmp_path / "new.jsonl"], prefix, build_tokenizer("byte"), overwrite=True)
    train, _ = build([(prefix, 1.0)], 20, 2, 0.2, tmp_path / "x")
    assert letters(train) == {"z"}
    for fraction in (0.2, 0.2001):  # the same documents, though the engine names its files apart
        build([(prefix, 1.0)], 20, 2, fraction, tmp_path / "x")
    assert len(list((tmp_path / "x").iterdir())) == 3


def test_cache_that_cannot_be_written(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    prefix = make_corpus("c", num_documents=20, num_characters=40).prefix
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write the sample indices in .*data\.cache_folder"):
        build([(prefix, 1.0)], 20, 2, 0.2, tmp_path / "file")


def test_cache_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "cache" / "key"
    with pytest.raises(KeyboardInterrupt), filled_aside(final) as aside:
        (aside / "half").touch()
        assert not final.exists()
        raise KeyboardInterrupt
    assert os.listdir(tmp_path / "cache") == []
    # Two runs at once: the first to finish wins, the second must not disturb its readers.
    with filled_aside(final) as aside:
        (aside / "second").touch()
        final.mkdir()
        (final / "first").touch()
    assert os.listdir(tmp_path / "cache") == ["key"]
    assert os.listdir(final) == ["first"]


def test_cache_folder_that_other_nodes_do_not_see(tmp_path: Path) -> None:
    assert index_cache.VISIBLE_WITHIN_SECONDS >= 60
    with pytest.raises(DataError, match=r"host .* does not see .*key, .* that all nodes share"):
        wait_until_visible(tmp_path / "key", seconds=0.3)

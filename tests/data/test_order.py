# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The rules of the sample order, compared with the engine, and the fingerprint built on them."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from k2_megatron.data.datasets import TokenSamples, build_datasets
from k2_megatron.data.order import data_fingerprint, plan_order
from k2_megatron.data.prepare import prepare
from k2_megatron.data.tokenizer import build_tokenizer
from k2_megatron.errors import DataError
from tests.data.conftest import MakeCorpus

SEQ_LENGTH = 16


@pytest.fixture
def numbered(tmp_path: Path) -> str:
    """A corpus whose every stretch of text occurs once: 40 documents, 100 samples an epoch."""
    path = tmp_path / "n.jsonl"
    lines = [json.dumps({"text": f"{i:04}" * 10}) for i in range(40)]
    path.write_text("\n".join(lines))
    return prepare([path], tmp_path / "n", build_tokenizer("byte")).prefix


def train_set(corpora: list[tuple[str, float]], train_samples: int, cache: Path) -> TokenSamples:
    train, valid = build_datasets(
        corpora,
        seq_length=SEQ_LENGTH,
        seed=7,
        train_samples=train_samples,
        valid_samples=0,
        valid_fraction=0.0,
        cache_folder=cache,
    )
    assert train is not None and valid is None
    return train


def tokens_of(samples: TokenSamples, count: int) -> list[list[int]]:
    return [samples[index]["tokens"].tolist() for index in range(count)]


def fingerprint(corpora: list[tuple[str, float]], train_samples: int, **other: object) -> str:
    arguments = {"seq_length": SEQ_LENGTH, "seed": 7, "valid_fraction": 0.0} | other
    return data_fingerprint(corpora, train_samples=train_samples, **arguments)  # type: ignore[arg-type]


def assert_prefix_changes_with_fingerprint(
    corpora: list[tuple[str, float]], sizes: list[int], cache: Path
) -> int:
    """Compare all pairs of schedules; returns how many different orders there are."""
    orders = {}
    for size in sizes:
        orders[size] = (
            fingerprint(corpora, size),
            tokens_of(train_set(corpora, size, cache), min(sizes)),
        )
    for one, (print_one, order_one) in orders.items():
        for two, (print_two, order_two) in orders.items():
            assert (print_one == print_two) == (order_one == order_two), (one, two)
    return len({print_ for print_, _ in orders.values()})


def test_longer_schedule_keeps_the_order_exactly_if_the_fingerprint_says_so(
    numbered: str, tmp_path: Path
) -> None:
    # 40 documents of 41 tokens: 102 samples an epoch. 103..183 need a second epoch shuffled apart
    # (under 80 % of it), 184..204 one shuffled in, 205.. a third.
    sizes = [60, 80, 102, 103, 150, 182, 190, 204, 206, 260]
    assert assert_prefix_changes_with_fingerprint([(numbered, 1.0)], sizes, tmp_path / "x") == 4


def test_same_for_blends(numbered: str, make_corpus: MakeCorpus, tmp_path: Path) -> None:
    other = make_corpus("o", num_documents=30, num_characters=40).prefix
    corpora = [(numbered, 3.0), (other, 1.0)]
    assert assert_prefix_changes_with_fingerprint(corpora, [60, 130, 140, 400], tmp_path / "x") == 3


def test_epochs_are_the_engines(numbered: str, tmp_path: Path) -> None:
    for size in range(95, 320, 5):
        plan = plan_order(
            [(numbered, 1.0)],
            seq_length=SEQ_LENGTH,
            seed=7,
            train_samples=size,
            valid_samples=0,
            valid_fraction=0.0,
        )
        engine = train_set([(numbered, 1.0)], size, tmp_path / "x")._samples
        (share,) = plan.train
        assert share.num_epochs == len(engine.document_index) // 40, size
        before_last = engine.document_index[: (share.num_epochs - 1) * 40]
        counts = np.bincount(before_last, minlength=40)
        apart = share.num_epochs > 1 and set(counts) == {share.num_epochs - 1}
        assert share.final_epoch_apart == apart, size


def test_order_is_pinned(numbered: str, tmp_path: Path) -> None:
    """Fails when an engine or numpy changes the order under runs that are under way."""
    train = train_set([(numbered, 1.0)], 150, tmp_path / "x")
    starts = [bytes(t for t in ids if t < 256)[:8] for ids in tokens_of(train, 6)]
    assert starts == [b"02300230", b"00100010", b"40014001", b"30003002", b"31003100", b"40028002"]


def test_fingerprint_names_all_that_changes_the_order(
    numbered: str, make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    one = [(numbered, 1.0)]
    other = make_corpus("o", num_documents=30, num_characters=40).prefix
    blend = [(numbered, 1.0), (other, 1.0)]
    different = [
        fingerprint(one, 60),
        fingerprint(one, 110),
        fingerprint(one, 60, seq_length=17),
        fingerprint(one, 60, seed=8),
        fingerprint(one, 60, valid_fraction=0.1),
        fingerprint([(other, 1.0)], 60),
        fingerprint(blend, 60),
        fingerprint(blend[::-1], 60),
        fingerprint([(numbered, 1.0), (other, 2.0)], 60),
    ]
    assert len(set(different)) == len(different)
    for suffix in (".bin", ".idx", ".json"):
        Path(numbered + suffix).rename(tmp_path / f"moved{suffix}")
    assert fingerprint([(str(tmp_path / "moved"), 5.0)], 61) == different[0]


def test_split_is_by_documents_and_rounded(make_corpus: MakeCorpus) -> None:
    prefix = make_corpus("c", num_documents=30, num_characters=40).prefix
    plan = plan_order(
        [(prefix, 1.0)],
        seq_length=SEQ_LENGTH,
        seed=1,
        train_samples=5,
        valid_samples=5,
        valid_fraction=0.1,
    )
    (train,), (valid,) = plan.train, plan.valid
    assert (train.first_document, train.end_document, train.num_tokens) == (0, 27, 27 * 41)
    assert (valid.first_document, valid.end_document, valid.num_tokens) == (27, 30, 3 * 41)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpora": []}, "no corpus given"),
        ({"weight": 0.0}, "c: weight 0.0; allowed: a finite number above 0"),
        ({"weight": math.nan}, "c: weight nan; allowed: a finite number above 0"),
        ({"weight": math.inf}, "c: weight inf; allowed: a finite number above 0"),
        ({"seq_length": 1}, "seq_length: 1; allowed: 2.."),
        ({"seed": -1}, "seed: -1; allowed: 0..4294967295"),
        ({"train_samples": 0}, "train_samples: 0; allowed: 1.."),
        ({"valid_samples": -1}, "valid_samples: -1; allowed: 0.."),
        ({"valid_fraction": 1.0}, "valid_fraction: 1.0; allowed: 0 or more and below 1"),
        ({"valid_fraction": 0.0}, "valid_fraction: 0 holds out no document, but 5 validation"),
        (
            {"valid_fraction": 0.01},
            "c: data.valid_fraction 0.01 of 30 documents holds out none; allowed: at least 0.0167 ",
        ),
        (
            {"seq_length": 2000},
            "c: its train part has 1107 tokens in 27 documents.* needs 2001;"
            " data.valid_fraction holds out the other 3$",
        ),
        (
            {"valid_fraction": 0.99},
            "c: its train part has 0 tokens in 0 documents.*; data.valid_fraction holds out the"
            " other 30$",
        ),
        (
            {"seq_length": 123},
            "its valid part has 123 tokens in 3 documents.* needs 124; data.valid_fraction:"
            " allowed: at least 0.117 for this corpus",
        ),
        (
            {"seq_length": 700},
            "its valid part has 123 tokens.*; data.valid_fraction: allowed: none; with seq_length"
            " 700 this corpus is too small for a training and a validation part",
        ),
    ],
)
def test_refusals(change: dict[str, object], message: str, make_corpus: MakeCorpus) -> None:
    prefix = make_corpus("c", num_documents=30, num_characters=40).prefix
    corpora = change.pop("corpora", [(prefix, change.pop("weight", 1.0))])
    arguments: dict[str, object] = {
        "seq_length": SEQ_LENGTH,
        "seed": 1,
        "train_samples": 5,
        "valid_samples": 5,
        "valid_fraction": 0.1,
    }
    with pytest.raises(DataError, match=message):
        plan_order(corpora, **(arguments | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("num_documents", [3, 8, 30, 40, 1759])
def test_allowed_valid_fraction_is_the_smallest_of_three_digits(
    num_documents: int, make_corpus: MakeCorpus
) -> None:
    prefix = make_corpus("c", num_documents=num_documents, num_characters=40).prefix
    arguments = {"seq_length": 16, "seed": 1, "train_samples": 1, "valid_samples": 1}
    with pytest.raises(DataError) as caught:
        plan_order([(prefix, 1.0)], valid_fraction=1e-6, **arguments)
    (text,) = re.findall(r"allowed: at least (0\.0*[1-9]\d{0,2}) for", str(caught.value))
    plan_order([(prefix, 1.0)], valid_fraction=float(text), **arguments)
    digit = 10.0 ** (math.floor(math.log10(float(text))) - 2)
    with pytest.raises(DataError, match="holds out none"):
        plan_order([(prefix, 1.0)], valid_fraction=float(text) - digit, **arguments)


def test_corpus_given_twice(numbered: str) -> None:
    with pytest.raises(DataError, match="n: given twice; give it once, with the sum of the"):
        fingerprint([(numbered, 1.0), (numbered, 2.0)], 5)

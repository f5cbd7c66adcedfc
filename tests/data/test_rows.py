# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A run that changes the length of its sequences: rows of samples that share the documents out."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from k2_megatron.config.loader import load_config
from k2_megatron.data.datasets import build_datasets
from k2_megatron.data.order import SplitShare, data_fingerprint, plan_order
from k2_megatron.data.prepare import prepare
from k2_megatron.data.request import DataOrder, data_order, requests_of
from k2_megatron.data.tokenizer import build_tokenizer

NUM_DOCUMENTS, LENGTH = 50, 41  # 40 bytes and the end of a document


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Fifty documents, each of one character of its own."""
    path = tmp_path / "n.jsonl"
    lines = [json.dumps({"text": chr(33 + index) * (LENGTH - 1)}) for index in range(NUM_DOCUMENTS)]
    path.write_text("\n".join(lines))
    return prepare([path], tmp_path / "n", build_tokenizer("byte")).prefix


def share(corpus: str, rows: list[tuple[int, int]], **change: Any) -> SplitShare:
    """The share of the last of the rows."""
    *before, (seq_length, samples) = rows
    given = {"seed": 7, "valid_samples": 0, "valid_fraction": 0.0, "rows_before": before} | change
    plan = plan_order([(corpus, 1.0)], seq_length=seq_length, train_samples=samples, **given)
    return plan.train[0]


def documents(corpus: str, rows: list[tuple[int, int]], **change: Any) -> list[int]:
    return share(corpus, rows, **change).documents(7).tolist()


def test_rows_take_what_they_need_and_no_document_twice(corpus):
    rows = [(16, 20), (40, 10), (8, 3)]
    taken = [documents(corpus, rows[: count + 1]) for count in range(3)]
    # A sample of n tokens needs n, and the whole row one more for the last label.
    needed = [math.ceil((length * samples + 1) / LENGTH) for length, samples in rows]
    assert [len(row) for row in taken] == needed
    assert len({document for row in taken for document in row}) == sum(needed)
    assert all(row == sorted(row) for row in taken)
    assert taken[0] != list(range(needed[0])), "the line is shuffled"
    assert documents(corpus, rows[:1]) != share(corpus, rows[:1]).documents(8).tolist()


def test_earlier_rows_do_not_depend_on_later_ones(corpus):
    """A phase of another length may be added to a run that is under way."""
    first = share(corpus, [(16, 20)])
    assert share(corpus, [(16, 20)], rows_before=()) == first
    second = share(corpus, [(16, 20), (40, 10)])
    assert first.taken is not None and second.taken is not None
    assert first.taken[1] == second.taken[0]


def test_line_begins_anew_when_all_documents_are_taken(corpus):
    rows = [(16, 100), (16, 100)]  # 40 of 50 documents each
    first, second = share(corpus, rows[:1]), share(corpus, rows)
    assert first.taken == (0, 40) and second.taken == (40, 80)
    both = [*first.documents(7), *second.documents(7)]
    assert sorted(set(both)) == list(range(NUM_DOCUMENTS))
    assert first.num_epochs == second.num_epochs == 1
    many = share(corpus, [(16, 20), (16, 1000)])
    assert many.taken == (8, 58) and many.documents(7).tolist() == list(range(NUM_DOCUMENTS))
    assert many.num_epochs == math.ceil((16 * 1000 + 1) / (NUM_DOCUMENTS * LENGTH))


def test_held_out_documents_are_in_no_row(corpus):
    row = documents(corpus, [(16, 100)], valid_fraction=0.2, valid_samples=4)
    assert len(row) == 40 == max(row) + 1


def test_samples_are_of_the_rows_documents(corpus, tmp_path):
    rows = [(16, 20), (40, 10)]
    train, valid = build_datasets(
        [(corpus, 1.0)],
        seq_length=40,
        seed=7,
        train_samples=10,
        valid_samples=0,
        valid_fraction=0.0,
        rows_before=rows[:1],
        cache_folder=tmp_path / "cache",
    )
    assert train is not None and valid is None and len(train) == 10
    tokens = np.concatenate([train[index]["tokens"].numpy() for index in range(10)])
    found = {int(token) - 33 for token in tokens if token < 256}
    assert found <= set(documents(corpus, rows)) and not found & set(documents(corpus, rows[:1]))


def test_a_run_of_one_length_reads_as_ever(corpus):
    """Its fingerprint is that of before there were rows, and all documents are its own."""
    plan = plan_order(
        [(corpus, 1.0)],
        seq_length=16,
        seed=7,
        train_samples=20,
        valid_samples=0,
        valid_fraction=0.0,
    )
    assert plan.train[0].documents(7).tolist() == list(range(NUM_DOCUMENTS))
    assert "taken" not in json.dumps(plan.train_order())
    given = {"seq_length": 16, "seed": 7, "train_samples": 20, "valid_fraction": 0.0}
    alone = data_fingerprint([(corpus, 1.0)], **given)
    assert alone != data_fingerprint([(corpus, 1.0)], **given, rows_before=())


RUN = """\
run: {name: rows}
model: {preset: k2-tiny}
schedule:
  seq_length: 16
  global_batch_size: 4
  phases:
    - {name: a, steps: 3, lr: 1.0e-3}
    - {name: b, steps: 2, lr: 1.0e-3, global_batch_size: 8}
    - {name: c, steps: 2, lr: 1.0e-3, seq_length: 40}
    - {name: d, steps: 1, lr: 1.0e-3, data: {corpora: [{path: CORPUS}]}}
data: {corpora: [{path: CORPUS}]}
"""


def test_requests_of_a_run(corpus, tmp_path):
    """a and b read one row, c another; d has corpora of its own and reads them from their start."""
    path = tmp_path / "c.yaml"
    path.write_text(RUN.replace("CORPUS", corpus))
    found = requests_of(load_config(path))
    assert [(one.first_step, one.last_step) for one in found] == [(1, 5), (6, 7), (8, 8)]
    assert [one.train_samples for one in found] == [28, 16, 8]
    assert [one.rows_before for one in found] == [(), ((16, 28),), None]
    marks = data_order(found)
    assert len({mark for _, mark in marks.rows}) == 3
    assert [end for end, _ in marks.rows] == [5, 7, 8]


def test_fingerprint_holds_all_rows_begun_and_none_to_come():
    order = DataOrder(((5, "one"), (7, "two"), (8, "three")))
    assert order.at(0) == order.at(5) == "one"
    assert len({order.at(step) for step in (5, 6, 8)}) == 3 and order.at(6) == order.at(7)
    other = DataOrder(((5, "one"), (9, "two"), (12, "other")))
    assert other.at(7) == order.at(7) and other.at(10) != order.at(8)

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Preparing: content, every refusal, worker-count independence, and output whole or not at all."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from k2_megatron.data.corpora import open_corpus
from k2_megatron.data.index_file import token_dtype
from k2_megatron.data.prepare import prepare
from k2_megatron.data.progress import Progress
from k2_megatron.data.tokenizer import ByteTokenizer, build_tokenizer
from k2_megatron.errors import DataError
from tests.data.dying_tokenizer import DyingTokenizer

BYTE = build_tokenizer("byte")
# Interrupted, though a shell may have started the tests in the background, where SIGINT is ignored.
SLOW_RUN = """
from k2_megatron.data.cli import add_data_parser, run_data
import argparse, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
parser = argparse.ArgumentParser()
add_data_parser(parser.add_subparsers())
raise SystemExit(run_data(parser.parse_args()))
"""


def documents_of(prefix: Path) -> list[str]:
    dataset = IndexedDataset(str(prefix))
    documents = [dataset[index].tolist() for index in range(len(dataset))]
    assert all(ids[-1] == 256 and 256 not in ids[:-1] for ids in documents)
    return [BYTE.decode(ids) for ids in documents]


def write_jsonl(path: Path, records: list[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_text_jsonl_and_gzip_become_documents_in_order(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("first ä\n")
    with gzip.open(tmp_path / "in" / "b.txt.gz", "wb") as stream:
        stream.write(b"second")
    lines: list[object] = [{"text": "third"}, {"text": ""}, {"text": "fourth", "n": 1}]
    write_jsonl(tmp_path / "in" / "c.jsonl", lines)
    with gzip.open(tmp_path / "in" / "d.jsonl.gz", "wb") as stream:
        stream.write(b'{"text": "fifth"}\n\n')
    (tmp_path / "in" / "e.txt").touch()
    corpus = prepare([tmp_path / "in"], tmp_path / "out" / "v1.5", BYTE)
    assert documents_of(tmp_path / "out" / "v1.5") == [
        "first ä\n",
        "second",
        "third",
        "fourth",
        "fifth",
    ]
    metadata = corpus.metadata
    assert (metadata.num_documents, metadata.num_empty_documents) == (5, 3)
    assert metadata.num_tokens == 9 + 6 + 5 + 6 + 5 + 5
    assert metadata.bin_bytes == 2 * metadata.num_tokens
    assert (metadata.num_source_files, metadata.sources) == (5, (str(tmp_path / "in"),))
    assert sorted(os.listdir(tmp_path / "out")) == ["v1.5.bin", "v1.5.idx", "v1.5.json"]
    assert open_corpus(tmp_path / "out" / "v1.5") == corpus


def test_json_key(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"content": "x", "text": "y"}])
    prepare([path], tmp_path / "out", BYTE, json_key="content")
    assert documents_of(tmp_path / "out") == ["x"]


@pytest.mark.parametrize("vocab_size", [257, 65_499, 65_500, 163_840])
def test_files_are_byte_equal_to_megatrons_builder(vocab_size: int, tmp_path: Path) -> None:
    texts = ["one", "twofold", "ä" * 1000]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    tokenizer = ByteTokenizer(vocab_size=vocab_size)
    prepare([path], tmp_path / "ours", tokenizer)
    dtype = DType.optimal_dtype(vocab_size)
    assert dtype.__name__ == token_dtype(vocab_size)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for text in texts:
        ids = [*tokenizer.encode(text), tokenizer.eod]
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        ours = (tmp_path / f"ours{suffix}").read_bytes()
        assert ours == (tmp_path / f"theirs{suffix}").read_bytes()


def test_output_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    # More records than one batch holds, of very different lengths, so that workers overtake.
    lengths = generator.integers(0, 4000, size=3000)
    lines: list[object] = [{"text": f"{i} " * int(n // 4)} for i, n in enumerate(lengths)]
    path = write_jsonl(tmp_path / "a.jsonl", lines)
    for workers in (1, 2):
        prepare([path], tmp_path / f"w{workers}", BYTE, workers=workers)
    for suffix in (".bin", ".idx", ".json"):
        one = (tmp_path / f"w1{suffix}").read_bytes()
        assert one == (tmp_path / f"w2{suffix}").read_bytes()


def test_progress_counts_up_to_the_size_of_the_inputs(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * 1000}] * 3000)
    seen: list[Progress] = []
    prepare([path], tmp_path / "out", BYTE, progress=seen.append)
    assert len(seen) > 1
    assert seen[0].read_bytes < seen[-1].read_bytes == seen[-1].total_bytes
    assert (seen[-1].num_documents, seen[-1].num_tokens) == (3000, 3000 * 1001)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', r"in\.jsonl, line 3: not valid JSON \(Expecting ',' delimiter at char"),
        (b'["x"]', r"in\.jsonl, line 3: an array; allowed: a JSON object with the key 'text'"),
        (b'{"b": 1, "a": 2}', r"line 3: no key 'text'; the keys are \['a', 'b'\]; .*--json-key"),
        (b'{"text": 7}', r"in\.jsonl, line 3: key 'text' holds an integer; allowed: text"),
        (b'{"text": null}', r"line 3: key 'text' holds null; allowed: text"),
        (b'{"text": [1.5]}', r"line 3: key 'text' holds an array; allowed: text"),
        (b'{"text": "x', r"3: not valid JSON \(Unterminated string starting at character 10\)"),
        (b'{"text": "x\r', r"3: not valid JSON \(Unterminated string starting at character 10\)"),
        (b'{"text": "\xff"}', r"line 3: not valid UTF-8 \(invalid start byte at byte 10\)"),
        (b'{"text": "a\\ud800"}', r"line 3: key 'text' holds half a surrogate pair at character 2"),
        (b"[" * 100_000, r"in\.jsonl, line 3: (JSON nested too deeply|not valid JSON)"),
    ],
)
def test_damaged_record_is_named_and_nothing_is_left(
    line: bytes, message: str, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "x"}\n{"text": "y"}\n' + line + b'\n{"text": 8}\n')
    with pytest.raises(DataError, match=message):
        prepare([source], tmp_path / "out" / "c", BYTE)
    assert os.listdir(tmp_path / "out") == []


def test_first_damage_in_order_is_reported_even_before_a_truncated_file(tmp_path: Path) -> None:
    content = b'{"text": "x"}\n' * 5000 + b"bad\n" + os.urandom(100_000).hex().encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content)[:-50_000])
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"line 5001: not valid JSON"):
            prepare([tmp_path / "a.jsonl.gz"], tmp_path / "c", BYTE, workers=workers)


def test_damaged_text_file_names_the_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    with pytest.raises(
        DataError, match=r"a\.txt: not valid UTF-8 \(invalid start byte at byte 3\)"
    ):
        prepare([tmp_path / "a.txt"], tmp_path / "c", BYTE)


def test_other_refusals(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"no document with text in .*a\.txt \(1 empty, 0 not UTF"):
        prepare([tmp_path / "a.txt"], tmp_path / "c", BYTE)
    with pytest.raises(DataError, match=r"no input given"):
        prepare([], tmp_path / "c", BYTE)
    with pytest.raises(DataError, match=r"workers: 0; allowed: 1 or more"):
        prepare([tmp_path / "a.txt"], tmp_path / "c", BYTE, workers=0)
    with pytest.raises(DataError, match=r"cannot write in .*a\.txt: "):
        prepare([tmp_path / "a.txt"], tmp_path / "a.txt" / "c", BYTE)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_existing_output_is_refused_or_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    prepare([tmp_path / "a.txt"], tmp_path / "c", BYTE)
    (tmp_path / "a.txt").write_text("new")
    with pytest.raises(DataError, match=r"c\.bin, .*c\.idx, .*c\.json exist already; .*--overwri"):
        prepare([tmp_path / "a.txt"], tmp_path / "c", BYTE)
    assert documents_of(tmp_path / "c") == ["old"]
    prepare([tmp_path / "a.txt"], tmp_path / "c", BYTE, overwrite=True)
    assert documents_of(tmp_path / "c") == ["new"]


def test_failed_overwrite_leaves_the_old_output(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    prepare([tmp_path / "a.txt"], tmp_path / "c", BYTE)
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(DataError):
        prepare([tmp_path / "a.txt"], tmp_path / "c", BYTE, overwrite=True)
    assert documents_of(tmp_path / "c") == ["old"]


def test_dead_worker_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"one of the 2 worker processes died.*--workers"):
        prepare([tmp_path / "a.txt"], tmp_path / "c", DyingTokenizer(), workers=2)
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_middle_nothing_half_made_has_the_final_name(
    number: signal.Signals, tmp_path: Path
) -> None:
    source = tmp_path / "a.jsonl"
    with open(source, "w") as stream:
        line = json.dumps({"text": "x" * 100_000}) + "\n"
        for _ in range(1500):
            stream.write(line)
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["data", "prepare", str(source), "--output", str(out / "c"), "--workers", "2"]
    run = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 1 << 22 for path in out.iterdir()):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    run.send_signal(number)
    assert run.wait(60) != 0
    left = [path.name for path in out.iterdir()]
    if number is signal.SIGKILL:
        assert left and all(name.startswith(".c.bin.partial-") for name in left)
    else:
        assert left == []
    while any(Path(f"/proc/{child}/exe").exists() for child in children):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Every flaw of a corpus's files is found and named before training."""

import json
import shutil
import struct
from pathlib import Path

import pytest

from k2_megatron.data.corpora import check_corpora
from k2_megatron.data.index_file import HEADER, MAGIC
from k2_megatron.data.prepare import prepare
from k2_megatron.data.tokenizer import ByteTokenizer
from k2_megatron.errors import DataError
from tests.data.conftest import MakeCorpus


@pytest.fixture
def prefix(make_corpus: MakeCorpus) -> str:
    return make_corpus("c", num_documents=5, num_characters=9).prefix


def patch(path: str, offset: int, data: bytes) -> None:
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def refused(prefix: str, vocab_size: int = 257) -> str:
    with pytest.raises(DataError) as caught:
        check_corpora([prefix], vocab_size)
    return str(caught.value)


def test_whole_corpus_passes_also_moved_elsewhere(prefix: str, tmp_path: Path) -> None:
    (corpus,) = check_corpora([prefix], 257)
    assert corpus.metadata.num_tokens == 50
    assert corpus.map_lengths().tolist() == [10] * 5
    for suffix in (".bin", ".idx", ".json"):
        shutil.copy(prefix + suffix, tmp_path / f"moved{suffix}")
    (moved,) = check_corpora([tmp_path / "moved"], 163_840)
    assert moved.content_id == corpus.content_id


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json"])
def test_missing_file(prefix: str, suffix: str) -> None:
    Path(prefix + suffix).unlink()
    assert refused(prefix) == (
        f"{prefix}{suffix}: no such file; `k2-megatron data prepare` writes PREFIX.bin, .idx and"
        " .json at its end, so the corpus was not made by it, not to the end, or not moved whole"
    )


def test_truncated_data(prefix: str) -> None:
    with open(prefix + ".bin", "r+b") as stream:
        stream.truncate(60)
    assert refused(prefix) == (
        f"{prefix}.bin: 60 bytes, but {prefix}.json says 100:"
        " the file is truncated or not of this corpus"
    )


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (0, b"NOTIDX\0\0\0", f".idx: starts with b'NOTIDX\\x00\\x00\\x00', .* with {MAGIC!r}"),
        (9, struct.pack("<Q", 2), ".idx: index version 2; allowed: 1"),
        (17, b"\x06", r".idx: token dtype code 6; allowed: \[4, 8\]"),
        (26, struct.pack("<Q", 3), ".idx: 5 sequences in 2 documents; allowed: one sequence a doc"),
        (18, struct.pack("<QQ", 4, 5), "142 bytes, but an index of 4 documents has 122: .* trunc"),
        (17, b"\x04", ".idx: bytes of tokens 120, but .*.json says 100"),
        (HEADER.size, b"\x0b", ".idx: sha256 [0-9a-f]{12}, but .*.json says .*: the file is damag"),
    ],
)
def test_damaged_index(prefix: str, offset: int, data: bytes, message: str) -> None:
    patch(prefix + ".idx", offset, data)
    with pytest.raises(DataError, match=message.replace("\\x", "\\\\x")):
        check_corpora([prefix], 257)


def test_index_cut_short_or_of_another_corpus(prefix: str, make_corpus: MakeCorpus) -> None:
    other = make_corpus("d", num_documents=10, num_characters=4)
    shutil.copy(f"{other.prefix}.idx", f"{prefix}.idx")
    assert refused(prefix).startswith(f"{prefix}.idx: documents 10, but {prefix}.json says 5")
    with open(prefix + ".idx", "r+b") as stream:
        stream.truncate(20)
    assert refused(prefix).startswith(f"{prefix}.idx: 20 bytes, too short for an index")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version 2; allowed: 1"),
        ({"num_tokens": "50"}, "num_tokens is '50'; allowed: an integer"),
        ({"num_tokens": True}, "num_tokens is True; allowed: an integer"),
        ({"dtype": 1}, "dtype is 1; allowed: text"),
        ({"sources": "x"}, "sources is 'x'; allowed: a list"),
        ({"more": 1}, "key 'more' is unknown"),
        ({"tokenizer": 1}, "1 where the keys type, name, fingerprint, vocab_size, eod belong"),
        ({"tokenizer": {}}, "key 'eod' is missing"),
    ],
)
def test_wrong_metadata(prefix: str, change: dict[str, object], message: str) -> None:
    path = Path(prefix + ".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert refused(prefix) == f"{path}: {message}"


def test_metadata_that_is_not_json(prefix: str) -> None:
    Path(prefix + ".json").write_text("{")
    assert refused(prefix).startswith(f"{prefix}.json: not valid JSON (")
    Path(prefix + ".json").write_text("[]")
    assert refused(prefix) == f"{prefix}.json: format_version None; allowed: 1"


def test_vocabulary_larger_than_the_models(prefix: str) -> None:
    assert refused(prefix, vocab_size=256) == (
        f"{prefix}.json: made with a vocabulary of 257 ids (tokenizer byte);"
        " the model's vocab_size allows 256"
    )


def test_all_problems_are_reported_at_once(prefix: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    prepare([tmp_path / "a.txt"], tmp_path / "other", ByteTokenizer(vocab_size=300))
    with pytest.raises(DataError) as caught:
        check_corpora([prefix, tmp_path / "none", tmp_path / "other"], 299)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "none.json: no such file" in lines[0]
    assert "vocabulary of 300 ids" in lines[1]
    assert "other.json: made with tokenizer byte" in lines[2] and "one tokenizer" in lines[2]
    with pytest.raises(DataError, match="no corpus given"):
        check_corpora([], 257)

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Which files are read, in which order, and what is refused."""

import gzip
import os
from pathlib import Path

import pytest

from k2_megatron.data.readers import SourceFile, find_files, read_records
from k2_megatron.errors import DataError


def test_folders_are_walked_in_sorted_order_and_filtered(tmp_path: Path) -> None:
    names = ["b.txt", "a/z.jsonl", "a/b.txt.gz", "A.txt", "c.py", "d.parquet"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_files([tmp_path])
    assert [str(file.path.relative_to(tmp_path)) for file in found] == [
        "A.txt",
        "a/b.txt.gz",
        "a/z.jsonl",
        "b.txt",
    ]
    assert [(file.is_jsonl, file.is_gzip) for file in found] == [
        (False, False),
        (False, True),
        (True, False),
        (False, False),
    ]
    assert [file.path.name for file in find_files([tmp_path], [".py"])] == ["c.py"]


def test_inputs_keep_their_order(tmp_path: Path) -> None:
    for name in ("b.log", "a.log"):
        (tmp_path / name).write_text("x")
    found = find_files([tmp_path / "b.log", tmp_path / "a.log"])
    assert [file.path.name for file in found] == ["b.log", "a.log"]


def test_refused_inputs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.tar.gz").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"none: no such file or folder"):
        find_files([tmp_path / "none"])
    with pytest.raises(DataError, match=r"empty: no file in this folder ends in \.txt, \.md"):
        find_files([tmp_path / "empty"])
    with pytest.raises(DataError, match=r"a\.txt: the same file is given twice .*higher weight"):
        find_files([tmp_path, tmp_path / "a.txt"])
    with pytest.raises(DataError, match=r"a\.json: \.json files cannot be read.*name it \.jsonl"):
        find_files([tmp_path / "a.json"])
    with pytest.raises(DataError, match=r"a\.tar\.gz: \.tar files cannot be read"):
        find_files([tmp_path / "a.tar.gz"])
    with pytest.raises(DataError, match=r"suffix 'txt'; allowed: one that starts with a dot"):
        find_files([tmp_path], ["txt"])


def test_link_to_a_folder_above_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"sub/up: this link leads back to"):
        find_files([tmp_path])


def test_broken_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    (file,) = find_files([tmp_path])
    with pytest.raises(DataError, match=r"a\.txt: No such file"):
        list(read_records(file))


def test_records_of_text_and_jsonl(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    (record,) = read_records(SourceFile(text, False, False))
    assert (record.data, record.line, record.where) == (b"one\r\ntwo\n", None, str(text))
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(b"\xef\xbb\xbf1\n2")
    records = list(read_records(SourceFile(lines, True, False)))
    assert [(record.data, record.where) for record in records] == [
        (b"1\n", f"{lines}, line 1"),
        (b"2", f"{lines}, line 2"),
    ]


def test_gzip_is_unpacked_and_damage_is_named(tmp_path: Path) -> None:
    packed = gzip.compress(
        b"".join(b"%d %s\n" % (i, os.urandom(20).hex().encode()) for i in range(5000))
    )
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(packed)
    assert sum(1 for _ in read_records(SourceFile(path, True, True))) == 5000
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: gzip data truncated or damaged after line"):
        list(read_records(SourceFile(path, True, True)))
    path.write_bytes(b"plain text")
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: gzip data truncated or damaged"):
        list(read_records(SourceFile(path, True, True)))

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The standard library as a corpus."""

from pathlib import Path

import pytest

from k2_megatron.data.stdlib_corpus import find_stdlib_files, prepare_stdlib
from k2_megatron.data.tokenizer import build_tokenizer
from k2_megatron.errors import DataError


def test_real_library_is_found_without_installed_packages() -> None:
    files = find_stdlib_files()
    names = [file.path.name for file in files]
    assert {"argparse.py", "ast.py", "decoder.py"} <= set(names)
    assert not any("site-packages" in file.path.parts for file in files)
    assert files == find_stdlib_files()
    # Held-out documents are the last ones: they must not be of one folder.
    assert len({file.path.parent for file in files[-20:]}) > 3


def test_files_that_are_not_utf8_are_left_out_and_counted(tmp_path: Path) -> None:
    library = tmp_path / "lib"
    for name, content in {
        "a.py": b"print(1)\n",
        "b/c.py": b"x = 2\n",
        "b/latin.py": b"# \xe4\n",
        "b/empty.py": b"",
        "site-packages/d.py": b"no",
        "note.txt": b"no",
    }.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_bytes(content)
    corpus = prepare_stdlib(tmp_path / "out", build_tokenizer("byte"), folder=library)
    metadata = corpus.metadata
    assert metadata.num_documents == 2
    assert (metadata.num_undecodable_documents, metadata.num_empty_documents) == (1, 1)
    assert metadata.num_source_files == 4
    assert metadata.sources[0].startswith("Python 3.")


def test_no_library(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \*\.py file of Python's standard library here"):
        find_stdlib_files(tmp_path)

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Small corpora for the tests of this room."""

from collections.abc import Callable
from pathlib import Path

import pytest

from k2_megatron.data.corpora import Corpus
from k2_megatron.data.prepare import prepare
from k2_megatron.data.tokenizer import build_tokenizer

MakeCorpus = Callable[..., Corpus]


@pytest.fixture
def make_corpus(tmp_path: Path) -> MakeCorpus:
    """Make a byte corpus whose documents all repeat one letter a known number of times."""

    def make(name: str, num_documents: int, num_characters: int, letter: str = "") -> Corpus:
        folder = tmp_path / f"{name}-text"
        folder.mkdir()
        for index in range(num_documents):
            text = (letter or chr(ord("a") + index % 26)) * num_characters
            (folder / f"{index:04}.txt").write_text(text)
        return prepare([folder], tmp_path / name, build_tokenizer("byte"))

    return make

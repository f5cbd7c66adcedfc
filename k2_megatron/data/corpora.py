# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Open prepared corpora and find every flaw before training starts."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from k2_megatron.data.index_file import map_lengths, read_index_header
from k2_megatron.data.metadata import CorpusMetadata, missing_file, output_path, read_metadata
from k2_megatron.errors import DataError


@dataclass(frozen=True)
class Corpus:
    """A whole corpus: its files are PREFIX.bin, PREFIX.idx and PREFIX.json."""

    prefix: str
    metadata: CorpusMetadata

    @property
    def content_id(self) -> str:
        """Equal exactly for corpora with equal documents in equal order (sha256, hex)."""
        both = self.metadata.bin_sha256 + self.metadata.idx_sha256
        return hashlib.sha256(both.encode()).hexdigest()

    def map_lengths(self) -> NDArray[np.int32]:
        """Return the tokens per document, [num_documents], mapped from the file."""
        return map_lengths(output_path(self.prefix, ".idx"), self.metadata.num_documents)


def open_corpus(prefix: str | Path) -> Corpus:
    """Read a corpus's metadata and check its files against it; reads a few hundred bytes.

    Raises:
        DataError: A file is missing, truncated, damaged or belongs to another corpus.
    """
    metadata = read_metadata(prefix)
    bin_path, idx_path = output_path(prefix, ".bin"), output_path(prefix, ".idx")
    try:
        bin_bytes = bin_path.stat().st_size
        index = read_index_header(idx_path)
    except FileNotFoundError as error:
        raise missing_file(error.filename) from error
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from error
    if bin_bytes != metadata.bin_bytes:
        raise DataError(
            f"{bin_path}: {bin_bytes} bytes, but {prefix}.json says {metadata.bin_bytes}:"
            " the file is truncated or not of this corpus"
        )
    for name, found, expected in (
        ("tokens", index.bin_bytes, metadata.bin_bytes),
        ("documents", index.num_documents, metadata.num_documents),
        ("dtype", index.dtype, metadata.dtype),
    ):
        if found != expected:
            unit = " bytes of" if name == "tokens" else ""
            raise DataError(
                f"{idx_path}:{unit} {name} {found}, but {prefix}.json says {expected}:"
                " the file is not of this corpus"
            )
    return Corpus(str(prefix), metadata)


def check_corpora(
    paths: Sequence[str | Path], vocab_size: int, *, verify_index: bool = True
) -> tuple[Corpus, ...]:
    """Check every corpus of a run and that they fit the model and each other.

    Args:
        paths: The prefixes.
        vocab_size: The model's.
        verify_index: Also compare the .idx file's sha256, which reads 20 bytes a document: once
            a run, on one rank. The .bin file is compared by size only.

    Returns:
        The corpora, in the order of `paths`.

    Raises:
        DataError: All that is wrong, one line each: what, what was given and what is allowed.
    """
    corpora: list[Corpus] = []
    problems: list[str] = []
    if not paths:
        problems.append("no corpus given; allowed: at least one")
    for path in paths:
        try:
            corpus = open_corpus(path)
            if verify_index:
                _verify_index(corpus)
        except DataError as error:
            problems.append(str(error))
            continue
        corpora.append(corpus)
        tokenizer = corpus.metadata.tokenizer
        if tokenizer.vocab_size > vocab_size:
            problems.append(
                f"{path}.json: made with a vocabulary of {tokenizer.vocab_size} ids (tokenizer"
                f" {tokenizer.name}); the model's vocab_size allows {vocab_size}"
            )
    first = corpora[0].metadata.tokenizer if corpora else None
    for corpus in corpora[1:]:
        tokenizer = corpus.metadata.tokenizer
        assert first is not None
        if tokenizer.fingerprint != first.fingerprint:
            problems.append(
                f"{corpus.prefix}.json: made with tokenizer {tokenizer.name}"
                f" ({tokenizer.fingerprint[:12]}), but {corpora[0].prefix} with {first.name}"
                f" ({first.fingerprint[:12]}); allowed: one tokenizer for all corpora of a run"
            )
    if problems:
        raise DataError("\n".join(problems))
    return tuple(corpora)


def _verify_index(corpus: Corpus) -> None:
    path = output_path(corpus.prefix, ".idx")
    with open(path, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != corpus.metadata.idx_sha256:
        raise DataError(
            f"{path}: sha256 {found[:12]}, but {corpus.prefix}.json says"
            f" {corpus.metadata.idx_sha256[:12]}: the file is damaged or not of this corpus"
        )

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Make a corpus for training out of text files, JSONL files or folders of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from k2_megatron.data.corpora import Corpus
from k2_megatron.data.encode import EncodeJob, encode_in_order
from k2_megatron.data.progress import Progress, ProgressReport
from k2_megatron.data.readers import (
    DEFAULT_SUFFIXES,
    Record,
    SourceFile,
    find_files,
    read_records,
)
from k2_megatron.data.tokenizer import Tokenizer
from k2_megatron.data.writer import CorpusWriter
from k2_megatron.errors import DataError

_BATCH_BYTES = 1 << 20
_BATCH_RECORDS = 1024


def prepare(
    inputs: Sequence[str | Path],
    output_prefix: str | Path,
    tokenizer: Tokenizer,
    *,
    workers: int = 1,
    json_key: str = "text",
    suffixes: Sequence[str] = DEFAULT_SUFFIXES,
    overwrite: bool = False,
    progress: ProgressReport | None = None,
) -> Corpus:
    """Tokenise inputs into PREFIX.bin, PREFIX.idx and PREFIX.json.

    Args:
        inputs: Text files (one document each), JSONL files (one document a line), folders.
        output_prefix: PREFIX; missing folders are made.
        tokenizer: From `build_tokenizer`.
        workers: Processes that tokenise; the output does not depend on it.
        json_key: Key of the text in JSONL objects.
        suffixes: Which files of a folder are taken, each also with `.gz`.
        overwrite: Replace an existing output instead of refusing.
        progress: Called after every batch.

    Raises:
        DataError: Anything wrong with inputs or output; nothing is then left behind.
    """
    if not inputs:
        raise DataError("no input given; allowed: files and folders")
    files = find_files(inputs, suffixes)
    return prepare_files(
        files,
        output_prefix,
        tokenizer,
        workers=workers,
        json_key=json_key,
        skip_undecodable=False,
        sources=tuple(str(given) for given in inputs),
        overwrite=overwrite,
        progress=progress,
    )


def prepare_files(
    files: Sequence[SourceFile],
    output_prefix: str | Path,
    tokenizer: Tokenizer,
    *,
    workers: int,
    json_key: str,
    skip_undecodable: bool,
    sources: tuple[str, ...],
    overwrite: bool,
    progress: ProgressReport | None,
) -> Corpus:
    """Do `prepare` for files that are already listed, in their order.

    Args:
        files: The files; see `prepare` for what is not said here.
        output_prefix: PREFIX.
        tokenizer: From `build_tokenizer`.
        workers: Processes that tokenise.
        json_key: Key of the text in JSONL objects.
        skip_undecodable: Leave out and count records that are not UTF-8 instead of raising.
        sources: What the metadata names as the corpus's origin.
        overwrite: Replace an existing output.
        progress: Called after every batch.
    """
    if workers < 1:
        raise DataError(f"workers: {workers}; allowed: 1 or more")
    job = EncodeJob(tokenizer, json_key, skip_undecodable)
    meter = _Meter(files)
    with CorpusWriter(output_prefix, tokenizer, overwrite=overwrite) as writer:
        for batch in encode_in_order(meter.batches(), job, workers):
            writer.add(batch)
            if progress is not None:
                progress(
                    Progress(
                        writer.num_documents,
                        writer.num_tokens,
                        meter.read_bytes,
                        meter.total_bytes,
                    )
                )
        metadata = writer.commit(sources=sources, num_source_files=len(files))
    return Corpus(str(output_prefix), metadata)


@dataclass
class _Meter:
    """Cuts the records of all files into batches and counts the bytes read."""

    files: Sequence[SourceFile]
    read_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(self._sizes)

    def __post_init__(self) -> None:
        try:
            self._sizes = [file.path.stat().st_size for file in self.files]
        except OSError as error:
            raise DataError(f"{error.filename}: {error.strerror}") from error

    def batches(self) -> Iterator[tuple[Record, ...]]:
        batch: list[Record] = []
        size = 0
        damaged: DataError | None = None
        records = self._records()
        while True:
            try:
                record = next(records, None)
            except DataError as error:
                damaged = error
                break
            if record is None:
                break
            batch.append(record)
            size += len(record.data)
            if size >= _BATCH_BYTES or len(batch) >= _BATCH_RECORDS:
                yield tuple(batch)
                batch, size = [], 0
        # What came before the damage goes first, so that the first error in order is reported.
        if batch:
            yield tuple(batch)
        if damaged is not None:
            raise damaged

    def _records(self) -> Iterator[Record]:
        before = 0
        for file, size in zip(self.files, self._sizes, strict=True):
            for record in read_records(file):
                self.read_bytes = before + record.position
                yield record
            before += size

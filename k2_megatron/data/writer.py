# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Write PREFIX.bin, PREFIX.idx and PREFIX.json so that they appear whole or not at all."""

import hashlib
import os
import socket
from array import array
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np

from k2_megatron.checkpoint.durable import sync_to_disk
from k2_megatron.data.encode import EncodedBatch
from k2_megatron.data.index_file import token_dtype, write_index
from k2_megatron.data.metadata import (
    FORMAT_VERSION,
    CorpusMetadata,
    TokenizerInfo,
    metadata_text,
    output_path,
)
from k2_megatron.data.tokenizer import Tokenizer
from k2_megatron.errors import DataError

SUFFIXES = (".bin", ".idx", ".json")


class CorpusWriter:
    """Collects encoded documents aside, in the output's folder, and renames them at the end.

    A context manager: left without `commit`, it removes what it wrote. A killed process leaves
    only hidden files named `.NAME.SUFFIX.partial-HOST-PID`.
    """

    def __init__(self, prefix: str | Path, tokenizer: Tokenizer, *, overwrite: bool) -> None:
        """Open the output.

        Raises:
            DataError: The output exists and `overwrite` is off, or it cannot be written.
        """
        self._prefix = prefix
        self._tokenizer = tokenizer
        self._overwrite = overwrite
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._final = {suffix: output_path(prefix, suffix) for suffix in SUFFIXES}
        self._partial = {
            suffix: path.with_name(f".{path.name}.partial-{socket.gethostname()}-{os.getpid()}")
            for suffix, path in self._final.items()
        }
        self._refuse_existing()
        self._lengths = array("i")
        self._digest = hashlib.sha256()
        self._bin_bytes = 0
        self._num_empty = 0
        self._num_undecodable = 0
        folder = self._final[".bin"].parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._stream = open(self._partial[".bin"], "wb")  # noqa: SIM115
        except OSError as error:
            raise DataError(f"cannot write in {folder}: {error.strerror}") from error

    def __enter__(self) -> "CorpusWriter":
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove whatever was not committed."""
        # A full disk can refuse the last flush too; the files go away in any case.
        with suppress(OSError):
            self._stream.close()
        for path in self._partial.values():
            path.unlink(missing_ok=True)

    def _refuse_existing(self) -> None:
        existing = [str(path) for path in self._final.values() if path.exists()]
        if existing and not self._overwrite:
            raise DataError(
                f"{', '.join(existing)} {'exists' if len(existing) == 1 else 'exist'} already;"
                " choose another --output, or replace with --overwrite"
            )

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return len(self._lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens added so far."""
        return self._bin_bytes // np.dtype(self._dtype).itemsize

    def add(self, batch: EncodedBatch) -> None:
        """Append the documents of a batch.

        Raises:
            DataError: The disk refuses them.
        """
        try:
            self._stream.write(batch.tokens)
        except OSError as error:
            raise self._refused(error) from error
        self._digest.update(batch.tokens)
        self._bin_bytes += len(batch.tokens)
        self._lengths.frombytes(batch.lengths.tobytes())
        self._num_empty += batch.num_empty
        self._num_undecodable += batch.num_undecodable

    def commit(self, *, sources: tuple[str, ...], num_source_files: int) -> CorpusMetadata:
        """Write index and metadata, wait for the disk, and give the files their names.

        Raises:
            DataError: No document, too many of them, or the disk refuses the files.
        """
        count = self.num_documents
        left_out = f"{self._num_empty} empty, {self._num_undecodable} not UTF-8"
        if count == 0:
            raise DataError(f"no document with text in {', '.join(sources)} ({left_out})")
        if count > np.iinfo(np.int32).max:
            raise DataError(f"{count} documents; allowed in one corpus: 2**31-1; make several")
        try:
            self._stream.close()
            lengths = np.frombuffer(self._lengths, dtype=np.int32)
            idx_sha256 = write_index(self._partial[".idx"], self._dtype, lengths)
            metadata = self._metadata(idx_sha256, sources, num_source_files)
            self._partial[".json"].write_text(metadata_text(metadata), encoding="utf-8")
            self._rename()
        except OSError as error:
            raise self._refused(error) from error
        return metadata

    def _refused(self, error: OSError) -> DataError:
        return DataError(f"cannot write {self._final['.bin']}: {error.strerror or error}")

    def _metadata(
        self, idx_sha256: str, sources: tuple[str, ...], num_source_files: int
    ) -> CorpusMetadata:
        tokenizer = self._tokenizer
        return CorpusMetadata(
            format_version=FORMAT_VERSION,
            tokenizer=TokenizerInfo(
                type=tokenizer.type,
                name=tokenizer.name,
                fingerprint=tokenizer.fingerprint,
                vocab_size=tokenizer.vocab_size,
                eod=tokenizer.eod,
            ),
            dtype=self._dtype,
            num_documents=self.num_documents,
            num_empty_documents=self._num_empty,
            num_undecodable_documents=self._num_undecodable,
            num_tokens=self.num_tokens,
            bin_bytes=self._bin_bytes,
            bin_sha256=self._digest.hexdigest(),
            idx_sha256=idx_sha256,
            sources=sources,
            num_source_files=num_source_files,
        )

    def _rename(self) -> None:
        for path in self._partial.values():
            sync_to_disk(path)
        self._refuse_existing()
        # From here on the old corpus is gone: without metadata it does not count as one.
        self._final[".json"].unlink(missing_ok=True)
        for suffix in SUFFIXES:
            os.replace(self._partial[suffix], self._final[suffix])
        sync_to_disk(self._final[".json"].parent)

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Turn batches of records into tokens, in this process or in several, in the order given."""

import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from k2_megatron.data.index_file import token_dtype
from k2_megatron.data.readers import Record
from k2_megatron.data.tokenizer import Tokenizer
from k2_megatron.errors import DataError

# Per worker: one batch being encoded and a few waiting, so that memory stays bounded.
_BATCHES_AHEAD = 4
_JSON_TYPES = {
    str: "text",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


@dataclass(frozen=True)
class EncodeJob:
    """What every worker needs to know."""

    tokenizer: Tokenizer
    json_key: str
    skip_undecodable: bool
    """Leave out records that are not UTF-8, and count them, instead of raising."""


@dataclass(frozen=True)
class EncodedBatch:
    """The documents of one batch."""

    tokens: bytes
    """Ids in the corpus's dtype, one document after the other, each with its end of document."""
    lengths: NDArray[np.int32]
    """Tokens per document, [documents]."""
    num_empty: int
    num_undecodable: int


def encode_batch(records: tuple[Record, ...], job: EncodeJob) -> EncodedBatch:
    """Encode one batch.

    Raises:
        DataError: A record is damaged; the text names its file and line.
    """
    dtype = np.dtype(token_dtype(job.tokenizer.vocab_size))
    parts: list[bytes] = []
    lengths: list[int] = []
    num_empty = num_undecodable = 0
    for record in records:
        text = _text_of(record, job)
        if text is None:
            num_undecodable += 1
            continue
        ids = job.tokenizer.encode(text)
        if not ids:
            num_empty += 1
            continue
        ids.append(job.tokenizer.eod)
        if len(ids) > np.iinfo(np.int32).max:
            raise DataError(f"{record.where}: {len(ids)} tokens in one document; allowed: 2**31-1")
        parts.append(np.array(ids, dtype=dtype).tobytes())
        lengths.append(len(ids))
    return EncodedBatch(
        b"".join(parts), np.array(lengths, dtype=np.int32), num_empty, num_undecodable
    )


def _text_of(record: Record, job: EncodeJob) -> str | None:
    """Return the record's text, or None where it is not UTF-8 and that is allowed."""
    try:
        text = record.data.decode("utf-8")
    except UnicodeDecodeError as error:
        if job.skip_undecodable:
            return None
        raise DataError(
            f"{record.where}: not valid UTF-8 ({error.reason} at byte {error.start})"
        ) from error
    if record.line is None:
        return text
    if not text.strip():
        return ""
    try:
        value = json.loads(text.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        # Some of the parser's messages end in "at" already.
        what = f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
        raise DataError(f"{record.where}: not valid JSON ({what})") from error
    except RecursionError as error:
        raise DataError(f"{record.where}: JSON nested too deeply") from error
    if not isinstance(value, dict):
        raise DataError(
            f"{record.where}: {_JSON_TYPES[type(value)]}; allowed: a JSON object with the key"
            f" {job.json_key!r}"
        )
    if job.json_key not in value:
        raise DataError(
            f"{record.where}: no key {job.json_key!r}; the keys are {sorted(value)};"
            " choose another with --json-key"
        )
    content = value[job.json_key]
    if not isinstance(content, str):
        raise DataError(
            f"{record.where}: key {job.json_key!r} holds {_JSON_TYPES[type(content)]};"
            " allowed: text"
        )
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can escape half of a surrogate pair, which is no character.
        raise DataError(
            f"{record.where}: key {job.json_key!r} holds half a surrogate pair at character"
            f" {error.start + 1}, which is not text"
        ) from error
    return content


def encode_in_order(
    batches: Iterator[tuple[Record, ...]], job: EncodeJob, workers: int
) -> Iterator[EncodedBatch]:
    """Yield the encoded batches in the order of `batches`, whatever the number of workers.

    With several workers, processes are spawned: a script that calls this needs the usual
    `if __name__ == "__main__":` guard.

    Raises:
        DataError: The first damaged record in order, or a worker process died.
    """
    if workers == 1:
        for batch in batches:
            yield encode_batch(batch, job)
        return
    # A pool that survives a dead worker would wait for its result forever; this one raises.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(job,)
    )
    pending: deque[Future[EncodedBatch]] = deque()
    damaged: DataError | None = None
    try:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                break
            except DataError as error:
                # Batches before the damage come first, and so do their errors.
                damaged = error
                break
            pending.append(pool.submit(_encode_in_worker, batch))
            if len(pending) > _BATCHES_AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            f"one of the {workers} worker processes died, most often for lack of memory;"
            " try fewer with --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    if damaged is not None:
        raise damaged


_job: EncodeJob | None = None


def _start_worker(job: EncodeJob) -> None:
    global _job
    _job = job
    # Ctrl-C reaches the whole process group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent was killed: it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(records: tuple[Record, ...]) -> EncodedBatch:
    assert _job is not None
    return encode_batch(records, _job)

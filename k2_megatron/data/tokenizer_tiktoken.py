# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A tiktoken file (base64 token and rank a line), as Kimi K2 publishes, through `tiktoken`.

Such a file holds the ordinary tokens only. How text is split before merging, how many special ids
follow and which of them ends a document stand elsewhere; for Kimi's vocabulary they are known here,
for any other they must be given.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from k2_megatron.data.tokenizer import fingerprint_of, read_tokenizer_file
from k2_megatron.errors import DataError
from k2_megatron.optional import require

# Kimi K2: 163,584 ranks, 256 special ids after them, of which the second is [EOS].
KIMI_NUM_RANKS = 163_584
KIMI_NUM_SPECIAL_TOKENS = 256
KIMI_EOD = KIMI_NUM_RANKS + 1

# Long documents are cut before they reach the regular expression engine, whose backtracking stack
# a run of some hundred thousand blanks overflows. Kimi's own code cuts at the same lengths.
MAX_PIECE_CHARACTERS = 400_000
MAX_RUN_CHARACTERS = 25_000
_LONG_RUN = re.compile(rf"\S{{{MAX_RUN_CHARACTERS}}}(?=\S)|\s{{{MAX_RUN_CHARACTERS}}}(?=\s)")


def kimi_split_pattern() -> str:
    """Return the expression that cuts text for Kimi's vocabulary; the first that matches wins.

    Runs of Han characters stand alone. A word is letters with at most one leading character that
    is neither letter, digit nor line break, cut where its case turns from lower to upper, with an
    English contraction kept on. Digits go by up to three. Then punctuation with one leading blank,
    line breaks, and blanks.
    """
    upper, lower = (
        rf"[{cased}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]" for cased in (r"\p{Lu}\p{Lt}", r"\p{Ll}")
    )
    lead = r"[^\r\n\p{L}\p{N}]?"
    contraction = "(?i:'(?:s|t|re|ve|m|ll|d))?"
    return "|".join(
        (
            r"[\p{Han}]+",
            f"{lead}{upper}*{lower}+{contraction}",
            f"{lead}{upper}+{lower}*{contraction}",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    )


@dataclass(frozen=True)
class TiktokenTokenizer:
    """Byte-pair ranks with special ids after them."""

    name: str
    vocab_size: int
    eod: int
    fingerprint: str
    backend: Any
    type: str = "tiktoken"

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without any special token."""
        ids: list[int] = []
        for piece in cut_text(text):
            ids += self.backend.encode_ordinary(piece)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, special tokens spelled out."""
        text: str = self.backend.decode(ids)
        return text


def cut_text(text: str) -> Iterator[str]:
    """Yield the text in pieces the engine bears: joined, they are the text."""
    for start in range(0, len(text), MAX_PIECE_CHARACTERS):
        piece = text[start : start + MAX_PIECE_CHARACTERS]
        begin = 0
        for run in _LONG_RUN.finditer(piece):
            yield piece[begin : run.end()]
            begin = run.end()
        yield piece[begin:]


def load_tiktoken(
    path: Path, eod: str | None, num_special_tokens: int | None, split_pattern: str | None
) -> TiktokenTokenizer:
    """Load a tiktoken file.

    Args:
        path: The file.
        eod: Id of the token that ends a document.
        num_special_tokens: How many ids follow the ranks.
        split_pattern: How text is split before merging, in tiktoken's regular expressions.

    The last three may be None for a file with Kimi's number of ranks.

    Raises:
        DataError: The file is damaged, or something above is missing or impossible.
        MissingPackageError: `tiktoken` is not installed.
    """
    tiktoken = require("tiktoken", "--tokenizer tiktoken")
    # tiktoken's own reader keeps a copy by path in the temporary folder and would miss a change.
    content = read_tokenizer_file(path)
    ranks = _parse_ranks(path, content)
    given = {"--eod": eod, "--num-special-tokens": num_special_tokens, "--pattern": split_pattern}
    missing = [option for option, value in given.items() if value is None]
    if missing and len(ranks) != KIMI_NUM_RANKS:
        raise DataError(
            f"--tokenizer-path {path}: {len(ranks)} ranks; only for Kimi's {KIMI_NUM_RANKS} the"
            f" rest is known, give also {', '.join(missing)}"
        )
    num_special = KIMI_NUM_SPECIAL_TOKENS if num_special_tokens is None else num_special_tokens
    pattern = kimi_split_pattern() if split_pattern is None else split_pattern
    vocab_size = len(ranks) + num_special
    eod_id = KIMI_EOD if eod is None else _parse_eod(path, eod, vocab_size)
    special = {f"<|special_{index}|>": index for index in range(len(ranks), vocab_size)}
    try:
        backend = tiktoken.Encoding(
            path.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )
    except Exception as error:
        raise DataError(f"--tokenizer-path {path}: tiktoken refuses it: {error}") from error
    fingerprint = fingerprint_of(
        type="tiktoken",
        file=hashlib.sha256(content).hexdigest(),
        pattern=pattern,
        vocab_size=vocab_size,
        eod=eod_id,
    )
    return TiktokenTokenizer(path.name, vocab_size, eod_id, fingerprint, backend)


def _parse_ranks(path: Path, content: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise DataError(
                f"--tokenizer-path {path}, line {number}: not 'base64 rank', as tiktoken's files"
                " are"
            ) from error
    if sorted(ranks.values()) != list(range(len(ranks))) or not ranks:
        raise DataError(f"--tokenizer-path {path}: ranks are not 0..N-1, each once")
    return ranks


def _parse_eod(path: Path, eod: str, vocab_size: int) -> int:
    if not eod.isdecimal() or int(eod) >= vocab_size:
        raise DataError(
            f"--tokenizer-path {path}: --eod {eod} is no id; allowed: 0..{vocab_size - 1}"
        )
    return int(eod)

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a tokenizer is here, the byte tokenizer, and the one function that builds any of them.

No torch and no megatron: preparing data starts at once and its worker processes stay small.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from k2_megatron.errors import DataError

TOKENIZER_TYPES = ("byte", "huggingface", "tiktoken")


class Tokenizer(Protocol):
    """Turns text into token ids; picklable, so that worker processes can have it.

    `encode` treats the whole text as ordinary text: the spelling of a special token inside a
    document never becomes that special token.
    """

    @property
    def type(self) -> str:
        """One of `TOKENIZER_TYPES`."""

    @property
    def name(self) -> str:
        """A name for people, such as the file's name."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that can occur, special tokens included."""

    @property
    def eod(self) -> int:
        """The id put after every document."""

    @property
    def fingerprint(self) -> str:
        """Equal exactly for tokenizers that give equal ids (sha256, hex)."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without any special token."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD."""


def fingerprint_of(**parts: str | int) -> str:
    """Return a sha256 (hex) over named parts, independent of their order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes as ids 0..255 and the end of a document as 256; needs no file and no training."""

    type: str = "byte"
    name: str = "byte"
    vocab_size: int = 257
    eod: int = 256

    @property
    def fingerprint(self) -> str:
        """Constant: there is only one byte tokenizer."""
        return fingerprint_of(type="byte", vocab_size=self.vocab_size, eod=self.eod)

    def encode(self, text: str) -> list[int]:
        """Return the bytes of the text's UTF-8 form."""
        return list(text.encode("utf-8"))

    def decode(self, ids: list[int]) -> str:
        """Return the text of the byte ids; the end of a document has no text."""
        return bytes(i for i in ids if i != self.eod).decode("utf-8", errors="replace")


def read_tokenizer_file(path: Path) -> bytes:
    """Return the content of a tokenizer's file.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"--tokenizer-path {path}: {error.strerror}") from error


def build_tokenizer(
    type: str,
    path: str | Path | None = None,
    *,
    eod: str | None = None,
    num_special_tokens: int | None = None,
    split_pattern: str | None = None,
) -> Tokenizer:
    """Build a tokenizer.

    Args:
        type: "byte", "huggingface" (a tokenizer.json) or "tiktoken" (base64 ranks, as Kimi's).
        path: The tokenizer's file; none for "byte".
        eod: The token that ends a document: its text for "huggingface", its id for "tiktoken".
            None: found in the file where that is unambiguous.
        num_special_tokens: "tiktoken" only: how many ids follow the ranks.
        split_pattern: "tiktoken" only: the regular expression that splits text before merging.

    Raises:
        DataError: Unknown type, unreadable file, an option that has no effect, or no `eod` found.
        MissingPackageError: The type's optional package is not installed.
    """
    if type not in TOKENIZER_TYPES:
        raise DataError(f"--tokenizer {type}; allowed: {', '.join(TOKENIZER_TYPES)}")
    no_effect: dict[str, object] = {}
    if type != "tiktoken":
        no_effect |= {"--num-special-tokens": num_special_tokens, "--pattern": split_pattern}
    if type == "byte":
        no_effect |= {"--tokenizer-path": path, "--eod": eod}
    for option, value in no_effect.items():
        if value is not None:
            raise DataError(f"{option} {value} has no effect with --tokenizer {type}")
    if type == "byte":
        return ByteTokenizer()
    if path is None:
        raise DataError(f"--tokenizer {type} needs its file: --tokenizer-path FILE")
    if type == "huggingface":
        from k2_megatron.data.tokenizer_huggingface import load_huggingface

        return load_huggingface(Path(path), eod)
    from k2_megatron.data.tokenizer_tiktoken import load_tiktoken

    return load_tiktoken(Path(path), eod, num_special_tokens, split_pattern)

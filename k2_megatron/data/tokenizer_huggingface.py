# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face tokenizer.json, through the optional `tokenizers` package."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from k2_megatron.data.tokenizer import fingerprint_of, read_tokenizer_file
from k2_megatron.errors import DataError
from k2_megatron.optional import require

# Names under which published tokenizers keep their end-of-document token.
KNOWN_EOD = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "</s>",
    "<eos>",
    "[EOS]",
    "<|eos|>",
)


@dataclass(frozen=True)
class HuggingFaceTokenizer:
    """A tokenizer.json with truncation, padding and added special tokens switched off."""

    name: str
    vocab_size: int
    eod: int
    fingerprint: str
    backend: Any
    content: bytes = field(repr=False)
    """The file, to build the same tokenizer in a worker process."""
    type: str = "huggingface"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by content: the backend's own pickle forgets `encode_special_tokens`."""
        return _from_content, (self.name, self.content, self.eod)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without any special token."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, special tokens spelled out."""
        text: str = self.backend.decode(ids, skip_special_tokens=False)
        return text


def load_huggingface(path: Path, eod: str | None) -> HuggingFaceTokenizer:
    """Load a tokenizer.json.

    Args:
        path: The file.
        eod: Text of the token that ends a document; None: the one of `KNOWN_EOD` in the file.

    Raises:
        DataError: The file is not a tokenizer.json, or the end-of-document token is not in it.
        MissingPackageError: `tokenizers` is not installed.
    """
    engine = require("tokenizers", "--tokenizer huggingface").Tokenizer
    content = read_tokenizer_file(path)
    try:
        vocab = engine.from_buffer(content).get_vocab(with_added_tokens=True)
    except Exception as error:
        raise DataError(f"--tokenizer-path {path}: not a tokenizer.json ({error})") from error
    return _from_content(path.name, content, _find_eod(path, vocab, eod))


def _from_content(name: str, content: bytes, eod: int) -> HuggingFaceTokenizer:
    engine = require("tokenizers", "--tokenizer huggingface").Tokenizer
    backend = engine.from_buffer(content)
    # A file may carry the limits of another use: they would cut documents without a word.
    backend.no_truncation()
    backend.no_padding()
    # The spelling of a special token inside a document stays ordinary text.
    backend.encode_special_tokens = True
    # Ids may have holes, so the largest id counts, not the number of entries.
    vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    fingerprint = fingerprint_of(
        type="huggingface",
        file=hashlib.sha256(content).hexdigest(),
        vocab_size=vocab_size,
        eod=eod,
    )
    return HuggingFaceTokenizer(name, vocab_size, eod, fingerprint, backend, content)


def _find_eod(path: Path, vocab: dict[str, int], eod: str | None) -> int:
    if eod is not None:
        if eod not in vocab:
            raise DataError(f"--tokenizer-path {path}: no token {eod!r} to end documents with")
        return vocab[eod]
    found = [token for token in KNOWN_EOD if token in vocab]
    if len(found) != 1:
        what = f"several of them ({', '.join(found)})" if found else "none of the usual ones"
        raise DataError(
            f"--tokenizer-path {path}: cannot tell which token ends a document, {what};"
            " name it with --eod TOKEN"
        )
    return vocab[found[0]]

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Where a corpus is cut into a training and a validation part, and which cuts are allowed."""

import math

from k2_megatron.data.corpora import Corpus
from k2_megatron.errors import DataError


def boundary(valid_fraction: float, count: int) -> int:
    """Return the first held-out document: megatron's rounding, halves to the even number."""
    return round((1.0 - valid_fraction) * count)


def num_tokens(corpus: Corpus, first: int, end: int) -> int:
    """Return the tokens of documents first..end-1."""
    return int(corpus.map_lengths()[first:end].sum(dtype="int64"))


def check_size(corpus: Corpus, split: str, first: int, end: int, seq_length: int) -> None:
    """Refuse a part of a corpus that has not one sample."""
    tokens, others = num_tokens(corpus, first, end), corpus.metadata.num_documents - end
    if tokens > seq_length:
        return
    if split == "valid":
        remedy = f"; data.valid_fraction: {allowed_fraction(corpus, seq_length)}"
    else:
        remedy = f"; data.valid_fraction holds out the other {others}" if others else ""
    raise DataError(
        f"{corpus.prefix}: its {split} part has {tokens} tokens in {end - first} documents, and"
        f" one sample of seq_length {seq_length} needs {seq_length + 1}{remedy}"
    )


def allowed_fraction(corpus: Corpus, seq_length: int) -> str:
    """Say from which valid_fraction on both parts hold a sample: 3 digits, rounded up."""
    lengths, count = corpus.map_lengths(), corpus.metadata.num_documents
    held_out = tokens = 0
    while tokens <= seq_length and held_out < count:
        held_out += 1
        tokens += int(lengths[count - held_out])
    # Documents are rounded: from about half a document less than that many.
    least = (held_out - 0.5) / count
    decimals = 2 - math.floor(math.log10(least))
    digits = math.ceil(least * 10**decimals)
    while boundary(float(f"{digits}e-{decimals}"), count) > count - held_out:
        digits += 1
    fraction = float(f"{digits}e-{decimals}")
    left = num_tokens(corpus, 0, boundary(fraction, count))
    if min(tokens, left) <= seq_length:
        return (
            f"allowed: none; with seq_length {seq_length} this corpus is too small for a"
            " training and a validation part"
        )
    # Without exponent, which YAML may read as text.
    return f"allowed: at least {f'{fraction:.{decimals}f}'.rstrip('0')} for this corpus"

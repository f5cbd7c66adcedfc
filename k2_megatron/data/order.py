# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What decides which sample comes when: the split, the blend and the epochs, and their fingerprint.

megatron's GPTDataset lays the documents of all epochs out in one shuffled row, cuts the row into
samples and shuffles these. Within one epoch the number of samples asked for changes nothing. With
several, all epochs are shuffled together, except that the last one is shuffled apart where under
80 % of it is needed; so the order depends on how many epochs there are and on that exception, and
on nothing else of the number asked for. The tests compare these rules with the engine.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from k2_megatron.data.corpora import Corpus, open_corpus
from k2_megatron.data.split import allowed_fraction, boundary, check_size, num_tokens
from k2_megatron.errors import DataError

# Raise when this project changes the order by itself: runs of before then refuse to resume.
ORDER_VERSION = 1
# The samples built beyond a corpus's share of the blend; megatron's default.
MID_LEVEL_SURPLUS = 0.005
_FINAL_EPOCH_SHARE = 0.80


@dataclass(frozen=True, kw_only=True)
class SplitShare:
    """One corpus's part in the training or the validation set."""

    first_document: int
    end_document: int
    """Documents first_document..end_document-1 belong to the set."""
    num_tokens: int
    """Tokens of one epoch."""
    num_samples: int
    """Samples to build, with the surplus where corpora are blended."""
    num_epochs: int
    """Epochs these samples need."""
    final_epoch_apart: bool
    """Whether the last epoch is shuffled by itself."""
    taken: tuple[int, int] | None = None
    """Where rows share the documents: places begin..end-1 in line, which begins anew at its end."""

    def documents(self, seed: int) -> NDArray[np.int32]:
        """Return the documents of the row, ascending, [n]."""
        if self.taken is None:
            return np.arange(self.first_document, self.end_document, dtype=np.int32)
        line = _line(self.end_document - self.first_document, seed)
        places = np.arange(*self.taken, dtype=np.int64) % len(line)
        return np.sort(line[places]) + np.int32(self.first_document)


@dataclass(frozen=True, kw_only=True)
class OrderPlan:
    """All that decides the order of training and validation samples."""

    corpora: tuple[Corpus, ...]
    weights: tuple[float, ...]
    """Normalised to a sum of 1."""
    seq_length: int
    seed: int
    train_samples: int
    valid_samples: int
    valid_fraction: float
    train: tuple[SplitShare, ...]
    """One a corpus."""
    valid: tuple[SplitShare, ...]
    """One a corpus; empty where there is no validation."""

    def train_order(self) -> dict[str, object]:
        """Return what decides the order of the training samples, for people to compare."""
        return {
            "order_version": ORDER_VERSION,
            "seq_length": self.seq_length,
            "seed": self.seed,
            "corpora": [
                {
                    "content": corpus.content_id,
                    "weight": weight,
                    "documents": [share.first_document, share.end_document],
                    "num_epochs": share.num_epochs,
                    "final_epoch_apart": share.final_epoch_apart,
                    **({} if share.taken is None else {"taken": list(share.taken)}),
                }
                for corpus, weight, share in zip(
                    self.corpora, self.weights, self.train, strict=True
                )
            ],
        }

    def cache_key(self) -> str:
        """Return a name for the index files of this plan: other plans have other names."""
        tokenizer = self.corpora[0].metadata.tokenizer.fingerprint
        numbers = (self.train_samples, self.valid_samples, self.valid_fraction)
        return _sha256([self.train_order(), tokenizer, *numbers])


def plan_order(
    corpora: Sequence[tuple[str | Path, float]],
    *,
    seq_length: int,
    seed: int,
    train_samples: int,
    valid_samples: int,
    valid_fraction: float,
    rows_before: Sequence[tuple[int, int]] | None = None,
) -> OrderPlan:
    """Work out splits, shares and epochs; reads the metadata and the document lengths.

    Args:
        corpora: Pairs of prefix and weight; weights need not sum to 1.
        seq_length: Tokens a sample; each needs one more, for the last label.
        seed: Of the shuffles.
        train_samples: Training samples of the whole schedule.
        valid_samples: Validation samples; 0: none are built, but documents stay held out.
        valid_fraction: Share of every corpus's documents held out, its last ones.
        rows_before: (seq_length, train_samples) of the rows that took documents of these corpora
            before this one; None where no row shares them.

    Raises:
        DataError: A value out of range, a damaged corpus, or a split too small for one sample.
    """
    _check_numbers(corpora, seq_length, seed, train_samples, valid_samples, valid_fraction)
    opened = tuple(open_corpus(prefix) for prefix, _ in corpora)
    total = math.fsum(weight for _, weight in corpora)
    weights = tuple(weight / total for _, weight in corpora)
    train: list[SplitShare] = []
    valid: list[SplitShare] = []
    for corpus, weight in zip(opened, weights, strict=True):
        count = corpus.metadata.num_documents
        cut = boundary(valid_fraction, count)
        if valid_samples and cut == count:
            raise DataError(
                f"{corpus.prefix}: data.valid_fraction {valid_fraction:g} of {count} documents"
                f" holds out none; {allowed_fraction(corpus, seq_length)}"
            )
        blend = None if len(opened) == 1 else weight
        check_size(corpus, "train", 0, cut, seq_length)
        if rows_before is None:
            train.append(_share(corpus, 0, cut, train_samples, seq_length, blend))
        else:
            rows = [*rows_before, (seq_length, train_samples)]
            train.append(_share_of_line(corpus, cut, rows, blend, seed))
        if valid_samples:
            check_size(corpus, "valid", cut, count, seq_length)
            valid.append(_share(corpus, cut, count, valid_samples, seq_length, blend))
    return OrderPlan(
        corpora=opened,
        weights=weights,
        seq_length=seq_length,
        seed=seed,
        train_samples=train_samples,
        valid_samples=valid_samples,
        valid_fraction=valid_fraction,
        train=tuple(train),
        valid=tuple(valid),
    )


def data_fingerprint(
    corpora: Sequence[tuple[str | Path, float]],
    *,
    seq_length: int,
    seed: int,
    train_samples: int,
    valid_fraction: float,
    rows_before: Sequence[tuple[int, int]] | None = None,
) -> str:
    """Return a sha256 (hex) that is equal where the training samples come in equal order.

    A checkpoint stores it; a resume with another one would see samples twice or never. It contains
    the corpora's content (not their place), blend, split, seq_length and seed. A longer schedule
    changes it only where it changes the order of the samples already seen, that is when a corpus
    goes into another epoch, or crosses the 80 % of a final one.

    Raises:
        DataError: As `plan_order`.
    """
    plan = plan_order(
        corpora,
        seq_length=seq_length,
        seed=seed,
        train_samples=train_samples,
        valid_samples=0,
        valid_fraction=valid_fraction,
        rows_before=rows_before,
    )
    return _sha256(plan.train_order())


def _share(
    corpus: Corpus,
    first: int,
    end: int,
    samples: int,
    seq_length: int,
    blend: float | None,
) -> SplitShare:
    tokens = num_tokens(corpus, first, end)
    return _epochs(first, end, tokens, _blended(samples, blend), seq_length)


def _share_of_line(
    corpus: Corpus,
    end: int,
    rows: Sequence[tuple[int, int]],
    blend: float | None,
    seed: int,
) -> SplitShare:
    """The share of the last of several rows, each of which takes what it needs off the line.

    A row takes no document twice: where a corpus has fewer tokens than the row needs, it takes
    them all and reads several epochs of them.
    """
    lengths = corpus.map_lengths()[:end][_line(end, seed)]
    ends = np.cumsum(lengths, dtype=np.int64)
    whole, begin, place = int(ends[-1]), 0, 0
    for seq_length, train_samples in rows:
        begin, samples = place, _blended(train_samples, blend)
        rounds, before = divmod(begin, end)
        wanted = (int(ends[before - 1]) if before else 0) + samples * seq_length + 1
        more, rest = divmod(wanted - 1, whole)
        place = (rounds + more) * end + int(np.searchsorted(ends, rest + 1)) + 1
        place = min(place, begin + end)
    taken = np.arange(begin, place, dtype=np.int64) % end
    tokens = int(lengths[taken].sum(dtype=np.int64))
    share = _epochs(0, end, tokens, samples, seq_length)
    shift = begin - begin % end
    return replace(share, taken=(begin - shift, place - shift))


def _line(num_documents: int, seed: int) -> NDArray[np.int32]:
    """All documents in the order in which rows take them; the stream of RandomState is frozen."""
    line = np.arange(num_documents, dtype=np.int32)
    np.random.RandomState(seed).shuffle(line)
    return line


def _blended(samples: int, blend: float | None) -> int:
    """Samples to build of a corpus for its share of a blend."""
    if blend is None:
        return samples
    return math.ceil(math.ceil(samples * blend) * (1 + MID_LEVEL_SURPLUS))


def _epochs(first: int, end: int, tokens: int, samples: int, seq_length: int) -> SplitShare:
    epochs = -(-(samples * seq_length + 1) // tokens)
    # The engine's arithmetic: samples of all epochs but the last, and those left to the last.
    before_last = ((epochs - 1) * tokens - 1) // seq_length
    per_epoch = (tokens - 1) // seq_length
    apart = epochs > 1 and samples - before_last < int(_FINAL_EPOCH_SHARE * per_epoch)
    return SplitShare(
        first_document=first,
        end_document=end,
        num_tokens=tokens,
        num_samples=samples,
        num_epochs=epochs,
        final_epoch_apart=apart,
    )


def _check_numbers(
    corpora: Sequence[tuple[str | Path, float]],
    seq_length: int,
    seed: int,
    train_samples: int,
    valid_samples: int,
    valid_fraction: float,
) -> None:
    if not corpora:
        raise DataError("no corpus given; allowed: at least one")
    for prefix, weight in corpora:
        if not (weight > 0 and math.isfinite(weight)):
            raise DataError(f"{prefix}: weight {weight}; allowed: a finite number above 0")
    names = [str(Path(prefix).resolve()) for prefix, _ in corpora]
    for index, (prefix, _) in enumerate(corpora):
        if names[index] in names[:index]:
            raise DataError(f"{prefix}: given twice; give it once, with the sum of the weights")
    limits = (
        ("seq_length", seq_length, 2, 2**31 - 2),
        ("seed", seed, 0, 2**32 - 1),
        ("train_samples", train_samples, 1, 2**62),
        ("valid_samples", valid_samples, 0, 2**62),
    )
    for name, value, low, high in limits:
        if not low <= value <= high:
            raise DataError(f"{name}: {value}; allowed: {low}..{high}")
    if not 0.0 <= valid_fraction < 1.0:
        raise DataError(f"valid_fraction: {valid_fraction}; allowed: 0 or more and below 1")
    if valid_samples and valid_fraction == 0.0:
        raise DataError(
            f"valid_fraction: 0 holds out no document, but {valid_samples} validation samples are"
            " asked for; allowed: above 0"
        )


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

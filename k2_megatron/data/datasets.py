# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The training side: samples through megatron-core's GPTDataset and BlendedDataset.

The sets are those of megatron's BlendedMegatronDatasetBuilder (a test compares them), which is not
used itself: it waits in barriers where rank 0 may already have failed, counts epochs forever on a
split without documents, and trusts any cache. Here rank 0 alone plans, checks and writes the
indices, tells all ranks how that went, and then every rank opens what is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets import helpers
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from numpy.typing import NDArray
from torch import distributed
from torch.utils.data import Dataset

from k2_megatron.data.index_cache import cache_path, filled_aside, wait_until_visible
from k2_megatron.data.order import MID_LEVEL_SURPLUS, OrderPlan, plan_order
from k2_megatron.errors import AgreedDataError
from k2_megatron.launch.agreement import agree, from_first_rank

SAMPLE_KEYS = ("tokens", "labels", "loss_mask", "position_ids")


@dataclass(frozen=True)
class _TokenizerForEngine:
    """What megatron asks a tokenizer for. No `pad`: then megatron pads with -1, never a real id."""

    vocab_size: int
    eod: int
    fingerprint: str

    @property
    def unique_identifiers(self) -> dict[str, str]:
        return {"fingerprint": self.fingerprint}


class _BlendInMemory(BlendedDataset):  # type: ignore[misc]
    """A blend in a process without torch.distributed.

    Replaces BlendedDataset._build_indices of megatron-core 0.16.1, which asks for a rank
    unguarded where a cache is set, and warns where none is.
    """

    def _build_indices(self) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
        dataset_index = np.zeros(self.size, dtype=np.int16)
        dataset_sample_index = np.zeros(self.size, dtype=np.int64)
        helpers.build_blending_indices(
            dataset_index, dataset_sample_index, self.weights, len(self.datasets), self.size, False
        )
        return dataset_index, dataset_sample_index


class TokenSamples(Dataset[dict[str, torch.Tensor]]):
    """A set of samples in their final order.

    Each is a dict of tensors [seq_length]: `tokens`, `labels` (the tokens one later) and
    `position_ids` (0..seq_length-1), int64, and `loss_mask`, float32, all ones: documents are
    packed, and the loss goes over their bounds.
    """

    def __init__(self, samples: GPTDataset | BlendedDataset, num_samples: int) -> None:
        """Show the first `num_samples` of the engine's samples."""
        assert len(samples) >= num_samples
        self._samples = samples
        self._num_samples = num_samples

    def __len__(self) -> int:
        """Return the number of samples asked for, which the engine's can exceed."""
        return self._num_samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one sample."""
        if not 0 <= index < self._num_samples:
            raise IndexError(f"sample {index} of {self._num_samples}")
        sample = self._samples[index]
        return {key: sample[key] for key in SAMPLE_KEYS}


def build_datasets(
    corpora: Sequence[tuple[str | Path, float]],
    *,
    seq_length: int,
    seed: int,
    train_samples: int,
    valid_samples: int,
    valid_fraction: float,
    rows_before: Sequence[tuple[int, int]] | None = None,
    cache_folder: str | Path | None = None,
    is_built_on_rank: bool = True,
) -> tuple[TokenSamples | None, TokenSamples | None]:
    """Build the training and the validation set.

    Where torch.distributed is initialised this is a collective: all ranks must call it with the
    same arguments, `is_built_on_rank` apart. They wait while rank 0 builds indices the first time;
    cached indices take no time.

    Args:
        corpora: Pairs of prefix and weight.
        seq_length: Tokens a sample.
        seed: Of the shuffles.
        train_samples: Training samples of the whole schedule.
        valid_samples: Validation samples; 0: none, though the documents stay held out.
        valid_fraction: Share of every corpus's documents held out, its last ones.
        rows_before: As in `plan_order`.
        cache_folder: For the sample indices; None: `index_cache` beside the first corpus.
        is_built_on_rank: Whether this rank reads samples; if not it gets (None, None).

    Returns:
        Training set and validation set; the latter None where `valid_samples` is 0.

    Raises:
        DataError: On every rank with the same text, where any rank meets a problem or an OSError.
    """
    parallel = distributed.is_available() and distributed.is_initialized()

    def built() -> OrderPlan:
        plan = plan_order(
            corpora,
            seq_length=seq_length,
            seed=seed,
            train_samples=train_samples,
            valid_samples=valid_samples,
            valid_fraction=valid_fraction,
            rows_before=rows_before,
        )
        final = cache_path(plan, cache_folder, parallel=parallel)
        if not final.is_dir():
            with filled_aside(final) as aside:
                _open_sets(plan, aside, parallel)
        return plan

    reading = "reading data.corpora"
    plan = from_first_rank(built, doing=reading, kind=AgreedDataError)

    def opened() -> tuple[TokenSamples | None, TokenSamples | None]:
        if not is_built_on_rank:
            return None, None
        final = cache_path(plan, cache_folder, parallel=parallel)
        wait_until_visible(final)
        return _open_sets(plan, final, parallel)

    return agree(opened, doing=reading, kind=AgreedDataError)


def _open_sets(
    plan: OrderPlan, cache: Path, parallel: bool
) -> tuple[TokenSamples, TokenSamples | None]:
    """Open both sets with their indices in `cache`; rank 0 first writes those that are missing."""
    indexed = [IndexedDataset(corpus.prefix) for corpus in plan.corpora]
    train = _open_set(plan, Split.train, indexed, cache, parallel)
    valid = _open_set(plan, Split.valid, indexed, cache, parallel) if plan.valid_samples else None
    return train, valid


def _open_set(
    plan: OrderPlan, split: Split, indexed: list[IndexedDataset], cache: Path, parallel: bool
) -> TokenSamples:
    is_train = split is Split.train
    num_samples = plan.train_samples if is_train else plan.valid_samples
    config = _engine_config(plan, cache)
    parts = [
        GPTDataset(
            dataset,
            # The name under which indices are cached: contents, which unlike a path never lie.
            corpus.content_id,
            share.documents(plan.seed),
            share.num_samples,
            split,
            config,
        )
        for dataset, corpus, share in zip(
            indexed, plan.corpora, plan.train if is_train else plan.valid, strict=True
        )
    ]
    if len(parts) == 1:
        return TokenSamples(parts[0], num_samples)
    blend = BlendedDataset if parallel else _BlendInMemory
    return TokenSamples(blend(parts, list(plan.weights), num_samples, config), num_samples)


def _engine_config(plan: OrderPlan, cache: Path) -> GPTDatasetConfig:
    tokenizer = plan.corpora[0].metadata.tokenizer
    return GPTDatasetConfig(
        random_seed=plan.seed,
        sequence_length=plan.seq_length,
        blend=([corpus.prefix for corpus in plan.corpora], list(plan.weights)),
        # megatron reads digits and dots only: no exponent may appear.
        split=f"{1.0 - plan.valid_fraction:.12f},{plan.valid_fraction:.12f},0",
        path_to_cache=str(cache),
        tokenizer=_TokenizerForEngine(tokenizer.vocab_size, tokenizer.eod, tokenizer.fingerprint),
        mid_level_dataset_surplus=MID_LEVEL_SURPLUS,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )

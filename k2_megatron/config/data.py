# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The `data` section: which corpora are read, in which shares."""

from __future__ import annotations

from dataclasses import dataclass, field

from k2_megatron.config.option import NO_OUTER_BLANKS, NO_OUTER_BLANKS_WORDS, option, required


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """One tokenised corpus."""

    path: str = field(
        metadata=required(
            "Prefix of the two files PATH.bin and PATH.idx in Megatron's indexed format.",
            pattern=NO_OUTER_BLANKS,
            pattern_words=NO_OUTER_BLANKS_WORDS,
        )
    )
    weight: float = option(
        1.0, "Share of this corpus in the training tokens, relative to the others.", above=0
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training and validation text."""

    corpora: tuple[CorpusConfig, ...] = field(
        metadata=required("The corpora to mix: a list of mappings with path and weight.")
    )
    valid_fraction: float = option(
        0.01,
        "Share of each corpus's documents that is held out for validation.",
        above=0,
        below=1,
    )
    cache_folder: str | None = option(
        None,
        "Folder for the sample indices, shared by all processes. null: index_cache beside "
        "the first corpus.",
        pattern=NO_OUTER_BLANKS,
        pattern_words=NO_OUTER_BLANKS_WORDS,
    )
    num_workers: int = option(
        0,
        "Processes that load batches for each training process; 0: the process itself.",
        minimum=0,
    )

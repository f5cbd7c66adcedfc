# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""How megatron-core cuts a chunk's parameters into flat buckets and shards. Integers, no torch.

A model of `param_and_grad_buffer.py:640-720`, which the planner needs before there is any rank.
Parameters lie in the reverse of module order, each from a multiple of 64 elements on; a bucket ends
at a multiple of the number of its ranks and of 128, and every rank owns an equal interval of it.
`tests/parallel/test_buckets.py` compares it with the real buffers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from k2_megatron.parallel.geometry import ParameterGeometry

_PARAMETER_ALIGNMENT = 64
_BUCKET_ALIGNMENT = 128


@dataclass(frozen=True, kw_only=True)
class Share:
    """Elements [begin, end) of a flattened parameter that one data-parallel rank owns."""

    entry: ParameterGeometry
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A run of one buffer that is reduced at once.

    Attributes:
        parameters: with the element of the bucket at which each begins.
        size: elements, padding included; a multiple of the number of ranks.
    """

    parameters: tuple[tuple[ParameterGeometry, int], ...]
    size: int


def buffers(
    entries: Sequence[ParameterGeometry], *, expert_parallel: bool
) -> tuple[list[ParameterGeometry], list[ParameterGeometry]]:
    """The parameters of a chunk's dense and expert buffer.

    Without expert parallelism the experts lie among the other parameters
    (distributed_data_parallel.py:131).
    """
    apart = [entry for entry in entries if entry.is_expert and expert_parallel]
    return [entry for entry in entries if not (entry.is_expert and expert_parallel)], apart


def bucket_limit(
    ways: int, *, overlap_grad_reduce: bool, pipeline_rank: int, chunk: int
) -> int | None:
    """Elements from which on a bucket is closed, None for one bucket.

    distributed_data_parallel.py:64-102: buckets are only for overlap, on the first pipeline rank
    and in its first chunk.

    Args:
        ways: size of dense data and context parallelism; it decides for expert buffers too.
    """
    if not overlap_grad_reduce or pipeline_rank or chunk:
        return None
    return max(40_000_000, 1_000_000 * ways)


def in_module_order(entries: Iterable[ParameterGeometry]) -> list[ParameterGeometry]:
    """The order of `named_parameters()`, from which the geometry table differs in three places.

    The final norm comes before MTP layers; attention registers its output projection first and
    unfused norms last; grouped experts have all first projections before all second ones.
    """
    parts = ("embedding", "decoder", "mtp", "output_layer")
    entries = sorted(entries, key=lambda entry: parts.index(entry.name.split(".")[0]))

    def block(entry: ParameterGeometry) -> str:
        found = re.match(r".*\.(self_attention|experts)\.", entry.name)
        return found[0] if found else entry.name

    def place(entry: ParameterGeometry) -> int:
        if ".self_attention." in entry.name:
            return 0 if ".linear_proj." in entry.name else 1 + ("layernorm." in entry.name)
        return int(".experts.linear_fc2." in entry.name)

    return [one for _, group in groupby(entries, key=block) for one in sorted(group, key=place)]


def cut_into_buckets(
    entries: Iterable[ParameterGeometry],
    ways: int,
    limit: int | None = None,
    *,
    embedding_apart: bool = False,
) -> Iterator[Bucket]:
    """The buckets of one buffer.

    Args:
        entries: parameters of one chunk in the order of the geometry table.
        ways: ranks that share the buffer.
        limit: as `bucket_limit` gives it.
        embedding_apart: the word embedding has a bucket of its own, because MTP layers on another
            pipeline rank have a copy of it.
    """
    found: list[tuple[ParameterGeometry, int]] = []
    end = 0
    for entry in reversed(in_module_order(entries)):
        alone = embedding_apart and entry.name == "embedding.word_embeddings.weight"
        if alone and found:
            yield _close(found, end, ways)
            found, end = [], 0
        begin = -(-end // _PARAMETER_ALIGNMENT) * _PARAMETER_ALIGNMENT
        end = begin + entry.shape[0] * entry.shape[1]
        found.append((entry, begin))
        if alone or (limit is not None and end >= limit):
            yield _close(found, end, ways)
            found, end = [], 0
    if found:
        yield _close(found, end, ways)


def shares(bucket: Bucket, ways: int, index: int) -> Iterator[Share]:
    """What rank `index` of `ways` owns of a bucket."""
    size = bucket.size // ways
    for entry, start in bucket.parameters:
        count = entry.shape[0] * entry.shape[1]
        begin = max(0, size * index - start)
        end = min(count, size * (index + 1) - start)
        if begin < end:
            yield Share(entry=entry, begin=begin, end=end)


def _close(found: list[tuple[ParameterGeometry, int]], end: int, ways: int) -> Bucket:
    multiple = math.lcm(ways, _BUCKET_ALIGNMENT)
    return Bucket(parameters=tuple(found), size=-(-end // multiple) * multiple)

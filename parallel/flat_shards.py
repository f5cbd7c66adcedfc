# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Where parameters lie in megatron-core's flat gradient buffers, and which part is this rank's.

DistributedDataParallel lays parameters end to end in buffers, cuts these into buckets and, with
ZeRO-1, gives each data-parallel rank an equal interval of every bucket. After the reduce-scatter a
gradient is valid inside this rank's interval alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel


@dataclass(frozen=True, kw_only=True)
class FlatShard:
    """The part of one parameter that this data-parallel rank owns.

    Attributes:
        parameter: the model parameter.
        begin, end: owned elements of the flattened parameter; equal where it owns none.
        gradient: their fp32 gradient, a view into the bucket, [end - begin].
        weights: the elements themselves in the model's dtype, a view into the bucket, from where
            the parameter all-gather takes them.
        group: the data-parallel group that shares the parameter (experts: `edp`).
    """

    parameter: torch.nn.Parameter
    begin: int
    end: int
    gradient: torch.Tensor
    weights: torch.Tensor
    group: dist.ProcessGroup


def flat_shards(chunks: Sequence[DistributedDataParallel]) -> Iterator[FlatShard]:
    """The owned part of every parameter of this rank, in buffer order."""
    for chunk in chunks:
        for buffer in chunk.buffers + chunk.expert_parallel_buffers:
            group = buffer.data_parallel_group
            for bucket in buffer.buckets:
                size = bucket.grad_data.numel() // group.size()
                shard_begin = size * group.rank()
                for parameter in bucket.params_list:
                    # The index map counts the padding between parameters; bucket.param_to_index
                    # (param_and_grad_buffer.py:106) does not.
                    start, end, _ = buffer.param_index_map[parameter]
                    start, end = start - bucket.offset, end - bucket.offset
                    begin = min(max(start, shard_begin), end)
                    stop = max(min(end, shard_begin + size), begin)
                    yield FlatShard(
                        parameter=parameter,
                        begin=begin - start,
                        end=stop - start,
                        gradient=bucket.grad_data[begin:stop],
                        weights=bucket.param_data[begin:stop],
                        group=group,
                    )

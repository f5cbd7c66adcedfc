# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters, gradients and optimizer state of each pipeline rank, to the byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from k2_megatron.offload.sizes import (
    NUM_STATE_BUFFERS,
    on_host,
    shard_tensors,
    state_buffer_bytes,
    state_room_bytes,
    tensors_on_host,
)
from k2_megatron.parallel.buckets import (
    Bucket,
    bucket_limit,
    buffers,
    cut_into_buckets,
    shares,
)
from k2_megatron.parallel.canonical import ModelShape
from k2_megatron.parallel.geometry import ParameterGeometry, RankPlace, chunk_geometry
from k2_megatron.parallel.layout import Stage
from k2_megatron.planner.job import DTYPE_BYTES, Job


@dataclass(frozen=True, kw_only=True)
class Owned:
    """Elements that one data-parallel rank owns, by update rule."""

    muon: int = 0
    adamw: int = 0

    def __add__(self, other: Owned) -> Owned:
        return Owned(muon=self.muon + other.muon, adamw=self.adamw + other.adamw)


@dataclass(frozen=True, kw_only=True)
class States:
    """What one rank holds between steps.

    Attributes:
        parameters: trainable elements of this rank's chunks.
        parameter_bytes: of the buffer of weights, padding included.
        gradient_bytes: of the fp32 buffer of gradients.
        optimizer_bytes: master weights and moments of the fullest data-parallel rank.
        device_bytes: of those, the most that any rank has on its device.
        host_bytes: the most that any rank has in host memory.
        buffer_bytes: of the device's memory, what they pass through in the optimizer's step.
        dense_elements, expert_elements: sizes of the buffers.
        owned: elements of that fullest rank.
    """

    parameters: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    device_bytes: int
    host_bytes: int
    buffer_bytes: int
    dense_elements: int
    expert_elements: int
    owned: Owned


def chunk_entries(job: Job, stage: Stage, *, data_rank: int = 0) -> tuple[ParameterGeometry, ...]:
    """The parameters of one chunk on one rank of the stage, by its place among the stage's."""
    degrees = job.degrees
    tensor_rank = data_rank % degrees.tensor
    expert_tensor_rank = data_rank % degrees.expert_tensor
    place = RankPlace(
        tensor_size=degrees.tensor,
        tensor_rank=tensor_rank,
        expert_size=degrees.expert,
        expert_rank=data_rank // degrees.expert_tensor % degrees.expert,
        expert_tensor_size=degrees.expert_tensor,
        expert_tensor_rank=expert_tensor_rank,
    )
    return _geometry(job.shape, stage, place, job.on_gpu)


@lru_cache(maxsize=512)
def _geometry(
    shape: ModelShape, stage: Stage, place: RankPlace, on_gpu: bool
) -> tuple[ParameterGeometry, ...]:
    return chunk_geometry(shape, stage, place, fused_norms=on_gpu, grouped_experts=on_gpu)


def chunk_buckets(
    job: Job, entries: Sequence[ParameterGeometry], *, pipeline_rank: int, chunk: int
) -> tuple[list[Bucket], list[Bucket]]:
    """The dense and the expert buckets of one chunk."""
    degrees, parallel = job.degrees, job.config.parallel
    limit = bucket_limit(
        degrees.data_context,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        pipeline_rank=pipeline_rank,
        chunk=chunk,
    )
    dense, experts = buffers(entries, expert_parallel=degrees.expert > 1)
    apart = job.shape.num_mtp_layers > 0 and degrees.pipeline > 1
    return (
        list(cut_into_buckets(dense, degrees.data_context, limit, embedding_apart=apart)),
        list(cut_into_buckets(experts, degrees.expert_data, limit)),
    )


def is_matrix_of_muon(job: Job, entry: ParameterGeometry) -> bool:
    """Whether a parameter takes Muon; all parts of one do, or none does."""
    if job.config.optimizer.type != "muonclip" or entry.is_vector:
        return False
    key = entry.pieces[0].key
    if key in ("embedding", "output"):
        return False
    return job.config.optimizer.muon_router or not key.endswith(".router")


def rank_states(job: Job, pipeline_rank: int) -> States:
    """What each rank of one pipeline stage holds; of several, the fullest."""
    shape = job.shape
    limited = job.config.parallel.overlap_grad_reduce and pipeline_rank == 0
    key = (shape, job.degrees, job.config.optimizer, job.width, job.on_gpu, limited)
    kinds = tuple(stage_kind(shape, stage) for stage in job.layout.chunks(pipeline_rank))
    known = _KNOWN.get((key, kinds))
    if known is None:
        if len(_KNOWN) > 4096:
            _KNOWN.clear()
        known = _KNOWN[key, kinds] = _count_states(job, kinds, pipeline_rank)
    return known


# Most stages are alike, and a search asks for the same one under many memory presets.
_KNOWN: dict[object, States] = {}


def stage_kind(shape: ModelShape, stage: Stage) -> Stage:
    """The stage with the first layers of the same kinds in place of its own."""
    num_dense = sum(shape.is_dense(layer) for layer in stage.layers)
    num_moe = len(stage.layers) - num_dense
    first = shape.num_dense_layers
    return replace(stage, layers=(*range(num_dense), *range(first, first + num_moe)))


def _count_states(job: Job, stages: Sequence[Stage], pipeline_rank: int) -> States:
    degrees = job.degrees
    parameters = dense_size = expert_size = 0
    dense_owned = [Owned()] * degrees.data_context
    expert_owned = [Owned()] * degrees.expert_data
    buckets = []
    for chunk, stage in enumerate(stages):
        entries = chunk_entries(job, stage)
        parameters += sum(entry.shape[0] * entry.shape[1] for entry in entries)
        dense, experts = chunk_buckets(job, entries, pipeline_rank=pipeline_rank, chunk=chunk)
        buckets.append((dense, experts))
        dense_size += sum(bucket.size for bucket in dense)
        expert_size += sum(bucket.size for bucket in experts)
        for bucket in dense:
            dense_owned = _sum(dense_owned, _owned(job, bucket, degrees.data_context))
        for bucket in experts:
            expert_owned = _sum(expert_owned, _owned(job, bucket, degrees.expert_data))
    elements = dense_size + expert_size
    best = Owned()
    divided = _Divided()
    for index in range(degrees.data_context):
        expert_index = _expert_index(job, index)
        total = dense_owned[index] + expert_owned[expert_index]
        if optimizer_bytes(job, total) > optimizer_bytes(job, best):
            best = total
        divided = divided.with_rank(optimizer_bytes(job, total), _on_host(job, buckets, index))
    return States(
        parameters=parameters,
        parameter_bytes=elements * job.width,
        gradient_bytes=elements * 4,
        optimizer_bytes=optimizer_bytes(job, best),
        device_bytes=divided.device,
        host_bytes=divided.host,
        buffer_bytes=divided.buffers,
        dense_elements=dense_size,
        expert_elements=expert_size,
        owned=best,
    )


@dataclass(frozen=True)
class _Divided:
    """State on device and host and the buffers between them, of the rank with most of each."""

    device: int = 0
    host: int = 0
    buffers: int = 0

    def with_rank(self, total: int, tensors: Sequence[int]) -> _Divided:
        """With one more rank: its whole state, and the tensors that are on the host."""
        return _Divided(
            device=max(self.device, total - sum(tensors)),
            host=max(self.host, state_room_bytes(tensors)),
            buffers=max(self.buffers, NUM_STATE_BUFFERS * state_buffer_bytes(tensors)),
        )


def _expert_index(job: Job, data_index: int) -> int:
    """The place among the ranks that share an expert buffer, of one among those of the dense."""
    degrees = job.degrees
    per_expert_rank = degrees.expert * degrees.expert_tensor
    return data_index * degrees.tensor // per_expert_rank % degrees.expert_data


def _on_host(
    job: Job, buckets: Sequence[tuple[list[Bucket], list[Bucket]]], data_index: int
) -> list[int]:
    """Bytes of the tensors that a data-parallel rank has in host memory."""
    fraction = job.config.optimizer.optimizer_offload_fraction
    if not fraction:
        return []
    degrees, shards = job.degrees, []
    for dense, experts in buckets:
        for kind, ways, index in (
            (dense, degrees.data_context, data_index),
            (experts, degrees.expert_data, _expert_index(job, data_index)),
        ):
            for bucket in kind:
                shards += [
                    _tensors(job, share.end - share.begin, is_matrix_of_muon(job, share.entry))
                    for share in shares(bucket, ways, index)
                ]
    return tensors_on_host(shards, on_host(shards, fraction))


def _tensors(job: Job, elements: int, muon: bool) -> list[int]:
    """Bytes of each tensor of a shard's state."""
    momentum = DTYPE_BYTES[job.config.optimizer.muon_momentum_dtype] if muon else None
    return shard_tensors(elements, master=job.width == 2, momentum=momentum)


def optimizer_bytes(job: Job, owned: Owned) -> int:
    """Bytes of state for owned elements: fp32 master, one momentum or two moments.

    In fp32 runs the parameters are their own masters.
    """
    master = 4 if job.width == 2 else 0
    momentum = DTYPE_BYTES[job.config.optimizer.muon_momentum_dtype]
    return owned.muon * (master + momentum) + owned.adamw * (master + 8)


def _sum(left: list[Owned], right: list[Owned]) -> list[Owned]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _owned(job: Job, bucket: Bucket, ways: int) -> list[Owned]:
    """What each rank owns of a bucket."""
    size = bucket.size // ways
    found = [Owned()] * ways
    for entry, start in bucket.parameters:
        end = start + entry.shape[0] * entry.shape[1]
        muon = is_matrix_of_muon(job, entry)
        for index in range(start // size, (end - 1) // size + 1):
            count = min(end, size * (index + 1)) - max(start, size * index)
            old = found[index]
            found[index] = (
                replace(old, muon=old.muon + count)
                if muon
                else replace(old, adamw=old.adamw + count)
            )
    return found

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Steps that all ranks take together: each knows afterwards whether it went well everywhere."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from k2_megatron.errors import AgreedCheckpointError, AgreedDiskError, CheckpointError
from k2_megatron.launch.agreement import attempt, describe

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes that hold one checkpoint: those of the default group, or one without a group.

    With NCCL the device of this rank must be set.
    """

    rank: int
    world_size: int

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world_size
        assert self.world_size == 1 or dist.get_world_size() == self.world_size

    def share(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order, to every rank."""
        if self.world_size == 1:
            return [value]
        gathered: list[T] = [value] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks to rank 0, nothing to the others."""
        if self.world_size == 1:
            return [value]
        gathered: list[T] | None = [value] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, gathered, dst=0)
        return gathered or []

    def together(self, doing: str, action: Callable[[], T]) -> list[T]:
        """Run `action` on every rank and return all results; one failure fails every rank.

        No rank may leave by an exception alone, or the others would wait for it until the
        process group's timeout. Every kind of error counts, unlike in `launch/agreement.py`
        (`agree`): a full disk, memory that cannot be had and a file that cannot be read fail the
        save or the load, and not the run.

        Raises:
            CheckpointError: on every rank when `action` raised on any; names ranks and causes. It
                is a DiskError where every cause is an OSError.
        """
        own, error = attempt(action, _cause, Exception)
        outcomes = self.share(own)
        failed = {rank: one for rank, one in enumerate(outcomes) if one.problem is not None}
        if failed:
            by_disk = all(one.by_disk for one in failed.values())
            kind = AgreedDiskError if by_disk else AgreedCheckpointError
            causes = {rank: str(one.problem) for rank, one in failed.items()}
            raise kind(f"{doing}: {describe(causes, self.world_size)}") from error
        return [one.result for one in outcomes]  # type: ignore[misc]


ALONE = Ranks(0, 1)


def _cause(error: Exception) -> str:
    return str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"

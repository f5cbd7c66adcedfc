# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Steps that all ranks take together: each knows afterwards whether it went well everywhere."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from k2_megatron.errors import AgreedCheckpointError, AgreedDiskError, CheckpointError, DiskError

T = TypeVar("T")
_CAUSES_SHOWN = 8


@dataclass(frozen=True)
class Ranks:
    """The processes that hold one checkpoint; with one process torch.distributed is not needed."""

    rank: int
    world_size: int
    group: dist.ProcessGroup | None = None
    """Group of all of them, None for the default one; with NCCL the CUDA device must be set."""

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world_size
        assert self.world_size == 1 or dist.get_world_size(self.group) == self.world_size

    def share(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order, to every rank."""
        if self.world_size == 1:
            return [value]
        gathered: list[T] = [value] * self.world_size
        dist.all_gather_object(gathered, value, group=self.group)
        return gathered

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks to rank 0, nothing to the others."""
        if self.world_size == 1:
            return [value]
        gathered: list[T] | None = [value] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, gathered, group=self.group, group_dst=0)
        return gathered or []

    def together(self, doing: str, action: Callable[[], T]) -> list[T]:
        """Run `action` on every rank and return all results; one failure fails every rank.

        No rank may leave by an exception alone, or the others would wait for it until the
        process group's timeout. Every kind of error counts, unlike in `launch/agreement.py`
        (`agree`), which is for a user's mistakes: a full disk, memory that cannot be had and a
        file that cannot be read fail the save or the load, and not the run.

        Raises:
            CheckpointError: on every rank when `action` raised on any; names ranks and causes. It
                is a DiskError where every cause is an OSError.
        """
        own: Exception | None = None
        outcome: tuple[T | None, str | None, bool]
        try:
            outcome = action(), None, False
        except CheckpointError as error:
            own, outcome = error, (None, str(error), isinstance(error, DiskError))
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            own, outcome = error, (None, text, isinstance(error, OSError))
        outcomes = self.share(outcome)
        failures = {rank: text for rank, (_, text, _) in enumerate(outcomes) if text is not None}
        if failures:
            by_disk = all(outcomes[rank][2] for rank in failures)
            kinds = (CheckpointError, DiskError)
            if self.group is None:  # all processes of the run: all of them raise it
                kinds = (AgreedCheckpointError, AgreedDiskError)
            kind = kinds[by_disk]
            raise kind(f"{doing}: {_describe(failures, self.world_size)}") from own
        return [result for result, _, _ in outcomes]  # type: ignore[misc]


ALONE = Ranks(0, 1)


def _describe(failures: dict[int, str], world_size: int) -> str:
    """List which ranks failed and why; what failed alike everywhere is said once."""
    causes: dict[str, list[int]] = {}
    for rank, text in failures.items():
        causes.setdefault(text, []).append(rank)
    if len(causes) == 1 and len(failures) == world_size:
        return next(iter(causes))
    lines = [
        f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}: {text}"
        for text, ranks in causes.items()
    ]
    if len(lines) > _CAUSES_SHOWN:
        lines[_CAUSES_SHOWN:] = [f"and {len(lines) - _CAUSES_SHOWN} more ranks with other texts"]
    return "; ".join(lines)

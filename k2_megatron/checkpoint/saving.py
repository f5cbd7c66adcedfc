# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Save checkpoints: every rank its files, rank 0 the index, the manifest, the name, the pointer.

Collective. A failure on any rank fails the save on every rank and leaves what was saved before.
An asynchronous save copies to host memory and returns; a thread writes. The ranks ask each other
between steps whether all have written, whereupon rank 0 names the checkpoint, in a thread again.
One save at most is under way.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from k2_megatron.checkpoint.copies import check_copies
from k2_megatron.checkpoint.data_file import (
    FilePlan,
    Holding,
    Staging,
    parts_of,
    plan_file,
    stream,
    write_data_file,
)
from k2_megatron.checkpoint.durable import write_text_durably
from k2_megatron.checkpoint.folder import Keeping, Saved, partial_path, publish, start_partial
from k2_megatron.checkpoint.index import (
    INDEX_NAME,
    Index,
    Matrix,
    check_shapes,
    check_tiling,
    encode_index,
)
from k2_megatron.checkpoint.manifest import (
    FileEntry,
    Manifest,
    data_file_name,
    file_entry,
    plain,
    rank_file_name,
)
from k2_megatron.checkpoint.rank_file import write_rank_file
from k2_megatron.checkpoint.ranks import Ranks
from k2_megatron.checkpoint.work import Work
from k2_megatron.errors import CheckpointError

# Between two questions whether all have written: no rank waits in a collective for another's disk,
# which a timeout would end.
_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Belonging:
    """What a run's checkpoints have in common, the same on all ranks.

    Attributes:
        layout: JSON data that describes who holds what.
        identity: JSON data that must be equal on loading.
        shapes: (rows, columns) of every matrix that the ranks hold together, by name.
    """

    layout: Mapping[str, Any]
    identity: Mapping[str, Any]
    shapes: dict[str, tuple[int, int]]


@dataclass(kw_only=True)
class _Pending:
    """A save under way. naming: rank 0's last part of it, None until every rank has written."""

    step: int
    metadata: dict[str, Any]
    writing: Work[dict[str, FileEntry]]
    naming: Work[Saved | None] | None = None


class Saver:
    """Saves the checkpoints of one run, one after another."""

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        belonging: Belonging,
        *,
        keeping: Keeping | None = None,
        asynchronous: bool = False,
        pinned: bool = False,
    ) -> None:
        """Touch nothing yet.

        Args:
            folder: the run's `checkpoints` folder, on a disk that all ranks see.
            ranks: all of them.
            belonging: what the checkpoints have in common.
            keeping: which older checkpoints stay; all by default.
            asynchronous: write in the background.
            pinned: copy into page-locked host memory.
        """
        self._folder, self._ranks, self._belonging = folder, ranks, belonging
        self._keeping = keeping or Keeping()
        self._asynchronous = asynchronous
        self._staging = Staging(pinned=pinned)
        self._index: str | None = None  # encoded: the same in every checkpoint of a process
        self._written_bytes = 0
        self._plan: FilePlan | None = None
        self._pending: _Pending | None = None

    def reserve(self, holdings: Sequence[Holding]) -> None:
        """Do what the first save in the background would make training wait for. Collective.

        Args:
            holdings: as those of `start`; their numbers are not looked at.

        Raises:
            CheckpointError: on every rank, where one has too little memory, or together they do
                not hold the model.
        """
        assert self._asynchronous
        self._agree_on_index([holding for holding in holdings if holding.is_written])
        assert self._plan is not None
        nbytes = self._plan.size_bytes
        self._ranks.together(
            "no host memory for saves in the background; checkpoint.async_save: false needs none",
            lambda: self._staging.reserve(nbytes),
        )

    def start(
        self,
        step: int,
        holdings: Sequence[Holding],
        payload: Mapping[str, Any],
        metadata: Mapping[str, Any],
        waiting: Callable[[], None] | None = None,
    ) -> list[Saved]:
        """Save, or begin to save, what the ranks hold after `step`. Collective.

        Args:
            step: optimizer steps done.
            holdings: this rank's elements, the same rectangles at every save; they may change when
                this returns.
            payload: plain data of this rank alone, of use in the same layout; see
                `write_rank_file`.
            metadata: JSON data kept in the manifest; the same on all ranks.
            waiting: called as more is written, where this waits for it; on all ranks or on none.

        Returns:
            What has been saved: an earlier save that had to be waited for, and this one unless it
            goes on in the background.

        Raises:
            CheckpointError: on every rank, when any rank could not write; names rank and cause.
        """
        done = self.finish(waiting)
        with self._cleaning_up(step):
            self._prepare(step, metadata)
            written = [holding for holding in holdings if holding.is_written]
            self._agree_on_index(written)
            check_copies(holdings, self._belonging.shapes, self._ranks)
            assert self._plan is not None
            plan = self._plan
            if self._asynchronous:
                pieces = self._staged(step, written, plan)
            else:
                pieces = stream(written, plan)
            # A thread must not call it: that would hide a rank that stands still meanwhile.
            told = None if self._asynchronous else waiting
            write = partial(self._write, step, self._counted(pieces, told), payload)
        self._pending = _Pending(
            step=step,
            metadata=plain(metadata),
            writing=Work(write, background=self._asynchronous),
        )
        return done if self._asynchronous else [*done, *self.finish()]

    def advance(self) -> list[Saved]:
        """Look after a save in the background; call between steps. Collective if there is one.

        Returns:
            The save, once it has its name.

        Raises:
            CheckpointError: on every rank, when any rank could not write; names rank and cause.
        """
        pending = self._pending
        if pending is None:
            return []
        with self._cleaning_up(pending.step):
            failing = self._failing(pending.step)
            if pending.naming is None:
                entries = self._ranks.together(failing, pending.writing.result_if_done)
                if any(entry is None for entry in entries):
                    return []
                files = {name: entry for found in entries if found for name, entry in found.items()}
                pending.naming = Work(
                    partial(self._name, pending, files),
                    background=self._asynchronous and self._ranks.rank == 0,
                )
            saved = self._ranks.together(failing, pending.naming.result_if_done)[0]
        if saved is None:
            return []
        self._pending = None
        return [saved]

    def finish(self, waiting: Callable[[], None] | None = None) -> list[Saved]:
        """Wait for a save in the background. Collective.

        Args:
            waiting: called whenever any rank has written more while all wait; on all ranks or on
                none.

        Raises:
            CheckpointError: on every rank, when any rank could not write; names rank and cause.
        """
        saved: list[Saved] = []
        before = -1
        while self._pending is not None:
            (self._pending.naming or self._pending.writing).wait(_POLL_SECONDS)
            saved += self.advance()
            if waiting is not None and self._pending is not None:
                now = sum(self._ranks.share(self._written_bytes))
                if now != before:
                    waiting()
                before = now
        return saved

    def _prepare(self, step: int, metadata: Mapping[str, Any]) -> None:
        """Agree on what is saved, and make the folder."""
        belonging, failing = self._belonging, self._failing(step)

        def prepare() -> tuple[int, dict[str, Any], dict[str, Any], dict[str, Any]]:
            common = (
                step,
                plain(belonging.layout),
                plain(belonging.identity),
                plain(metadata),
            )
            if self._ranks.rank == 0:
                start_partial(self._folder, step)
            return common

        seen = self._ranks.together(failing, prepare)
        for other, common in enumerate(seen):
            if common != seen[0]:
                raise CheckpointError(
                    f"{failing}: the ranks disagree on step, layout, identity or metadata: rank 0 "
                    f"has {seen[0]}, rank {other} has {common}"
                )

    def _agree_on_index(self, written: Sequence[Holding]) -> None:
        """At the first save: put the parts of all ranks together on rank 0 and check them."""
        plan = plan_file(written)
        if self._plan is not None:
            assert plan == self._plan, "what this rank holds has changed since the last save"
            return
        own = list(parts_of(written, plan, self._ranks.rank))
        gathered = self._ranks.gather(own)

        def check() -> None:
            if self._ranks.rank != 0:
                return
            index = Index(
                files=[data_file_name(rank) for rank in range(self._ranks.world_size)], matrices={}
            )
            for name, dtype, part in (entry for found in gathered for entry in found):
                if name not in index.matrices:
                    # What nobody expects is told by check_shapes, with the size that is seen.
                    size = self._belonging.shapes.get(name, (part.rows[1], part.cols[1]))
                    index.matrices[name] = Matrix(rows=size[0], cols=size[1], dtype=dtype)
                index.matrices[name].parts.append(part)
            check_shapes(index, self._belonging.shapes, "what the ranks hold is not the model")
            check_tiling(index, "what the ranks hold is not the whole model")
            self._index = encode_index(index)

        self._ranks.together("not saved", check)
        self._plan = plan

    def _staged(
        self, step: int, written: Sequence[Holding], plan: FilePlan
    ) -> Iterator[memoryview]:
        """This rank's bytes in host memory; a rank that has too little of it fails all."""
        found: list[Iterator[memoryview]] = []
        self._ranks.together(
            self._failing(step), lambda: found.append(self._staging.fill(written, plan))
        )
        return found[0]

    def _counted(
        self, pieces: Iterator[memoryview], waiting: Callable[[], None] | None
    ) -> Iterator[memoryview]:
        """The same bytes, counted as they go to the file."""
        for piece in pieces:
            yield piece
            self._written_bytes += piece.nbytes
            if waiting is not None:
                waiting()

    def _write(
        self, step: int, pieces: Iterator[memoryview], payload: Mapping[str, Any]
    ) -> dict[str, FileEntry]:
        folder, rank = partial_path(self._folder, step), self._ranks.rank
        return {
            data_file_name(rank): write_data_file(folder / data_file_name(rank), pieces),
            rank_file_name(rank): write_rank_file(folder / rank_file_name(rank), payload),
        }

    def _name(self, pending: _Pending, files: dict[str, FileEntry]) -> Saved | None:
        if self._ranks.rank != 0:
            return None
        assert self._index is not None
        path = partial_path(self._folder, pending.step) / INDEX_NAME
        write_text_durably(path, self._index)
        manifest = Manifest(
            step=pending.step,
            world_size=self._ranks.world_size,
            layout=plain(self._belonging.layout),
            identity=plain(self._belonging.identity),
            metadata=pending.metadata,
            files={**files, INDEX_NAME: file_entry(path)},
        )
        return publish(self._folder, manifest, self._keeping)

    def _failing(self, step: int) -> str:
        return f"saving step {step} in {self._folder} failed, earlier checkpoints are untouched"

    def _cleaning_up(self, step: int) -> _CleaningUp:
        return _CleaningUp(lambda: self._give_up(step))

    def _give_up(self, step: int) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            # It must not write into the folder of a later attempt.
            pending.writing.wait()
        if self._ranks.rank == 0:
            # Frees a full disk; what resists is removed by the next save.
            shutil.rmtree(partial_path(self._folder, step), ignore_errors=True)


@dataclass(frozen=True)
class _CleaningUp:
    """Calls `action` when the block ends with a CheckpointError, which every rank then has."""

    action: Callable[[], None]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and issubclass(kind, CheckpointError):
            self.action()

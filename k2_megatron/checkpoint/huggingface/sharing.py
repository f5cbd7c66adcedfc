# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""How the ranks that torchrun or srun started divide the files of an import or an export.

Each writes every n-th file with some threads, and a record of those that it has finished. They
meet before and after. What goes on after an interruption may have another number of ranks: rank 0
puts the records of all into its own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from k2_megatron.checkpoint.durable import write_text_durably
from k2_megatron.checkpoint.ranks import Ranks
from k2_megatron.launch.agreement import agree
from k2_megatron.launch.process_group import process_group
from k2_megatron.launch.ranks import launched_rank

# A rank that has written waits for the slowest disk; one that died is noticed at once.
_PATIENCE_SECONDS = 7 * 24 * 3600.0


@contextmanager
def all_ranks() -> Iterator[Ranks]:
    """This process among those that a launcher started, or alone.

    Raises:
        TopologyError: the launcher's variables contradict each other.
    """
    info = launched_rank()
    if info is None or info.world_size == 1:
        yield Ranks(0, 1)
        return
    with process_group("gloo", info, timeout_seconds=_PATIENCE_SECONDS):
        yield Ranks(info.rank, info.world_size)


class Progress:
    """What this rank has finished: name -> JSON data that tells whether a file is still whole.

    Attributes:
        finished: of this rank, what it kept of an earlier attempt included.
        num_kept: of them.
    """

    def __init__(self, path: Path, identity: str, earlier: dict[str, Any], ranks: Ranks) -> None:
        """Write nothing yet.

        Args:
            path: of rank 0's record; those of the others stand beside it.
            identity: what an attempt that goes on must have in common with this one.
            earlier: what `merge_records` gave.
            ranks: all of them.
        """
        self.finished: dict[str, Any] = {}
        self.num_kept = 0
        self._path = path if ranks.rank == 0 else _of_rank(path, ranks.rank)
        self._identity, self._earlier, self._ranks = identity, earlier, ranks
        self._recorded = dict(earlier) if ranks.rank == 0 else {}
        self._lock = threading.Lock()

    def complete(
        self,
        names: Sequence[str],
        write: Callable[[str], object],
        *,
        is_whole: Callable[[str, Any], bool],
        workers: int,
    ) -> None:
        """Write this rank's share of the files, or what is missing of it. Collective.

        Args:
            names: of all files, the same on all ranks.
            write: writes one and calls `finish`; called by several threads. After an error no
                further one begins.
            is_whole: whether a file that an earlier attempt finished still is, by its data.
            workers: number of threads.

        Raises:
            UserError: a rank met one, or an OSError.
        """

        def share() -> None:
            missing = self._keep(names[self._ranks.rank :: self._ranks.world_size], is_whole)
            _for_each(missing, write, workers=workers)

        agree(share, doing=f"{self._path.parent}")

    def _keep(self, names: Sequence[str], is_whole: Callable[[str, Any], bool]) -> list[str]:
        for name in names:
            if name in self._earlier and is_whole(name, self._earlier[name]):
                self.finished[name] = self._earlier[name]
        self.num_kept = len(self.finished)
        return [name for name in names if name not in self.finished]

    def finish(self, name: str, entry: Any) -> None:
        """Record a file that is on the disk; called by several threads."""
        with self._lock:
            self.finished[name] = self._recorded[name] = entry
            _write(self._path, self._identity, self._recorded)


def read_record(path: Path) -> tuple[str, dict[str, Any]]:
    """Identity and finished files of a record.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no record.
    """
    content = json.loads(path.read_bytes())
    try:
        return str(content["of"]), dict(content["finished"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"no record of what is finished: {error!r}") from None


def merge_records(path: Path, identity: str) -> dict[str, Any]:
    """Put the records of an earlier attempt into rank 0's, or begin one; for rank 0 alone.

    Records of something else, or torn, count for nothing.

    Returns:
        All that is said to be finished.
    """
    others = _others(path)
    finished: dict[str, Any] = {}
    for one in (path, *others):  # a file that rank 0's record has and was rewritten is in theirs
        try:
            of, found = read_record(one)
        except (OSError, ValueError):
            continue
        if of == identity:
            finished |= found
    _write(path, identity, finished)
    for one in (*others, *_torn(path)):
        one.unlink()
    return finished


def remove_records(path: Path) -> None:
    """All is finished; for rank 0 alone."""
    for one in (*_others(path), *_torn(path), path):
        one.unlink()


def _for_each(names: Sequence[str], action: Callable[[str], object], *, workers: int) -> None:
    with ThreadPoolExecutor(workers, thread_name_prefix="hf") as pool:
        futures = [pool.submit(action, name) for name in names]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()


def _of_rank(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.stem}.{rank}{path.suffix}")


def _others(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}.*{path.suffix}"))


def _torn(path: Path) -> list[Path]:
    """What a rank that was killed left of its record."""
    return list(path.parent.glob(f"{path.stem}.*.tmp"))


def _write(path: Path, identity: str, finished: dict[str, Any]) -> None:
    content = {"of": identity, "finished": finished}
    write_text_durably(path, json.dumps(content) + "\n")

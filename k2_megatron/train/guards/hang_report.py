# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Where the ranks of a job that stands still are, and which of them are elsewhere than most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

_RANKS_SHOWN = 16
_GROUPS_SHOWN = 8
# In these a rank waits for others; one that stands elsewhere is what they wait for.
_WAITING = ("torch/distributed/", "megatron/core/pipeline_parallel/p2p_communication.py")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where the main thread of a rank stands.

    Attributes:
        stage: what the loop was doing.
        host: its machine.
        place: innermost frame of our code or of the engine's: `file:line function`.
        inner: innermost frame of all.
        waits: inside a call that waits for other ranks.
    """

    stage: str
    host: str
    place: str
    inner: str
    waits: bool

    @staticmethod
    def of(stage: str, host: str, frame: FrameType | None) -> Standing:
        """Read it off a thread's innermost frame."""
        codes: list[tuple[CodeType, int]] = []
        while frame is not None:
            codes.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        ours = [entry for entry in codes if "megatron" in entry[0].co_filename]
        return Standing(
            stage=stage,
            host=host,
            place=_words(*(ours or codes)[0]) if codes else "unknown",
            inner=_words(*codes[0]) if codes else "unknown",
            waits=_waits(codes),
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Standing:
        """Undo `to_json`."""
        return Standing(**values)

    @property
    def where(self) -> str:
        """Both frames and whether it waits, as text."""
        inner = "" if self.inner == self.place else f", in {self.inner}"
        waits = " (it waits for other ranks)" if self.waits else ""
        return f"{self.stage}: {self.place}{inner}{waits}"


def hang_report(
    found: Mapping[int, Standing], world_size: int, timeout_seconds: float, folder: Path
) -> str:
    """What the log says of a job that stands still.

    Args:
        found: the ranks that could say where they stand.
        world_size: number of ranks.
        timeout_seconds: run.hang_timeout_seconds.
        folder: has the stacks.
    """
    groups: dict[tuple[str, str, bool], list[int]] = {}
    for rank, standing in found.items():
        groups.setdefault((standing.place, standing.inner, standing.waits), []).append(rank)
    # Most ranks last, and of those alike first who waits for nobody.
    ordered = sorted(groups.values(), key=lambda ranks: (len(ranks), found[ranks[0]].waits))
    lines = [f"no progress for {timeout_seconds:g} s (run.hang_timeout_seconds); the job ends"]
    silent = [rank for rank in range(world_size) if rank not in found]
    if silent:
        lines.append(f"  {_ranks(silent)}: no answer: gone, stopped, or without the interpreter")
    for number, ranks in enumerate(ordered[:_GROUPS_SHOWN]):
        alone = number < len(ordered) - 1
        where = found[ranks[0]].where
        hosts = f" on {', '.join(sorted({found[r].host for r in ranks}))}" if alone else ""
        most = "" if alone or len(ordered) == 1 else "most: "
        lines.append(f"  {most}{_ranks(ranks)}{hosts}: {where}")
    if len(ordered) > _GROUPS_SHOWN:
        lines.append(f"  and {len(ordered) - _GROUPS_SHOWN} more places")
    busy = sorted(rank for rank, standing in found.items() if not standing.waits)
    # On a GPU a rank also waits for others where it waits for its device, which looks busy.
    suspects = sorted(silent + (busy if 2 * len(busy) <= len(found) else []))
    if suspects:
        lines.append(f"  the others wait for {_ranks(suspects)}")
    lines.append(f"  stacks of all threads: {folder}")
    return "\n".join(lines)


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:_RANKS_SHOWN]))
    more = f" and {len(ranks) - _RANKS_SHOWN} more" if len(ranks) > _RANKS_SHOWN else ""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {shown}{more}"


def _words(code: CodeType, line: int) -> str:
    return f"{_short(code.co_filename)}:{line} {code.co_name}"


def _short(path: str) -> str:
    """A path from the package on."""
    parts = Path(path).parts
    return "/".join(parts[-3:])


def _waits(codes: Sequence[tuple[CodeType, int]]) -> bool:
    return any(part in code.co_filename for code, _ in codes for part in _WAITING)

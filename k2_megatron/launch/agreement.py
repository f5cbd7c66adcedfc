# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What one rank fails in, all fail in, with one text: none is left waiting for it.

A rank that leaves by an exception alone leaves the others in their next collective: over gloo they
end with a traceback of their own, over NCCL they wait until they are killed. So whatever a rank may
fail in alone, because of a file, a disk or something that the user gave, goes through `agree`, or
through `from_first_rank` where rank 0 does it for all.

A UserError and an OSError count. Any other error is the program's, or a wish to end: it ends its
rank with its own traceback, and the launcher ends the others. `Ranks.together` of
`checkpoint/ranks.py` is made of the same parts; there every error counts, because a save that fails
is no reason for a run to end, and the results travel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch.distributed as dist

from k2_megatron.errors import AgreedError, DiskError, UserError

T = TypeVar("T")
_CAUSES_SHOWN = 8
_SOMEWHERE = "reading or writing a file"


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of an action on one rank, as it travels to the others.

    Attributes:
        result: what the action returned.
        problem: why it failed; None where it did not.
        by_disk: whether it failed by an OSError.
    """

    result: T | None = None
    problem: str | None = None
    by_disk: bool = False


def agree(
    action: Callable[[], T], *, doing: str = _SOMEWHERE, kind: type[AgreedError] = AgreedError
) -> T:
    """Run `action` on every rank; a UserError or an OSError on any is raised on all. Collective.

    Without a process group there is one rank. With NCCL the device of this rank must be set.

    Args:
        action: is no collective. Its result stays on its rank.
        doing: said of an OSError that names no file.
        kind: of the error.

    Returns:
        What `action` returned on this rank.

    Raises:
        AgreedError: names ranks and causes. Without a process group a UserError stays what it was.
    """
    outcome, error = attempt(action, lambda error: _cause(error, doing), UserError, OSError)
    if not dist.is_initialized() and isinstance(error, UserError):
        raise error
    problems = [outcome.problem]
    if dist.is_initialized():
        problems *= dist.get_world_size()
        dist.all_gather_object(problems, outcome.problem)
    failures = {rank: text for rank, text in enumerate(problems) if text is not None}
    if failures:
        raise kind(describe(failures, len(problems))) from error
    return outcome.result  # type: ignore[return-value]


def from_first_rank(
    action: Callable[[], T], *, doing: str = _SOMEWHERE, kind: type[AgreedError] = AgreedError
) -> T:
    """What `action` returns on rank 0, which alone runs it; its failure is raised on all.

    Collective, a broadcast. Without a process group there is one rank. With NCCL the device of this
    rank must be set.

    Args:
        action: is no collective; what it returns can be pickled.
        doing: said of an OSError that names no file.
        kind: of the error.

    Raises:
        AgreedError: with the text of a UserError as it is, and that of an OSError behind the rank.
            Without a process group a UserError stays what it was.
    """
    if not dist.is_initialized():
        return agree(action, doing=doing, kind=kind)
    outcome, error = Outcome[T](), None
    if dist.get_rank() == 0:
        outcome, error = attempt(action, lambda error: _cause(error, doing), UserError, OSError)
    box = [outcome]
    dist.broadcast_object_list(box, src=0)
    found = box[0]
    if found.problem is not None:
        alone = dist.get_world_size() == 1 or not found.by_disk
        raise kind(found.problem if alone else f"rank 0: {found.problem}") from error
    return found.result  # type: ignore[return-value]


def attempt(
    action: Callable[[], T], cause: Callable[[Exception], str], *caught: type[Exception]
) -> tuple[Outcome[T], Exception | None]:
    """Run `action` on this rank: what to tell the others, and the error itself.

    Args:
        action: what to run.
        cause: the text of an error.
        caught: which errors count; others leave by this call.
    """
    try:
        return Outcome(result=action()), None
    except caught as error:
        by_disk = isinstance(error, (OSError, DiskError))
        return Outcome(problem=cause(error), by_disk=by_disk), error


def describe(failures: Mapping[int, str], world_size: int) -> str:
    """Which ranks failed and why; what failed alike everywhere is said once.

    Args:
        failures: rank -> its text.
        world_size: number of ranks, of those that did not fail too.
    """
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


def _cause(error: Exception, doing: str) -> str:
    if not isinstance(error, OSError):
        return str(error)
    files = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' -> '.join(files) or doing}: {error.strerror or error}"

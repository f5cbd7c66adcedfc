# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch's profiler over chosen steps on chosen ranks, as files that a browser shows.

`traces/step_00000003_rank_0.json.gz` opens in https://ui.perfetto.dev and chrome://tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import profile, supported_activities

from k2_megatron.config.config import Config
from k2_megatron.config.numbers import Numbers
from k2_megatron.errors import ConfigError


def check_traces(config: Config, world_size: int) -> None:
    """Refuse to start where a trace was asked of a rank that there is not.

    Raises:
        ConfigError: `logging.trace_ranks` names a rank beyond the last.
    """
    ranks = Numbers.of(config.logging.trace_ranks)
    if config.logging.trace_steps is not None and ranks.largest >= world_size:
        raise ConfigError(
            f"logging.trace_ranks: given {config.logging.trace_ranks}; allowed: ranks from 0 to "
            f"{world_size - 1}, for this run has {world_size}; no other rank can be traced"
        )


class StepTraces:
    """Traces of this rank; on most ranks and steps it does nothing."""

    def __init__(self, config: Config, folder: Path, rank: int, say: Callable[[str], None]) -> None:
        """Open nothing yet.

        Args:
            folder: of the traces; made with the first one.
            rank: of this process.
            say: prints on rank 0, nothing elsewhere.
        """
        self._steps = Numbers.of(config.logging.trace_steps)
        self._is_here = rank in Numbers.of(config.logging.trace_ranks)
        self._ranks = config.logging.trace_ranks
        self._folder, self._rank, self._say = folder, rank, say

    def start(self, step: int) -> None:
        """Say which steps will not be traced because they were done before this start."""
        if len(self._steps) and self._steps.smallest <= step:
            self._say(f"traces: none of steps up to {step}, which were done before")

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Record what happens inside, if `step` is to be traced on this rank.

        A trace that cannot be written is a warning: training goes on.
        """
        if step not in self._steps:
            yield
            return
        if self._is_here:
            # No shapes, stacks or memory: they make the file, and the step, many times as large.
            activities = supported_activities()  # type: ignore[no-untyped-call]
            with profile(activities=activities) as recorded:
                yield
            self._write(recorded, step)
        else:
            yield
        self._say(f"traces: step {step} of rank {self._ranks} in {self._folder}")

    def _write(self, recorded: profile, step: int) -> None:
        path = self._folder / f"step_{step:08}_rank_{self._rank}.json.gz"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            recorded.export_chrome_trace(str(path))
        except OSError as error:
            print(f"warning: no trace {path}: {error}")

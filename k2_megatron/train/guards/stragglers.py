# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Which rank computes more slowly than the others, from work that waits for nobody.

The time of a whole step says nothing: fast ranks spend it waiting for the slow one, on a GPU inside
kernels that look busy. What is timed is the core attention of each rank's first layer, which holds
no communication (but for context parallelism) and is the same work on every rank. megatron-core's
StragglerDetector (utils.py:1320) times whole forward passes, expert all-to-alls included, and
waits for the device at each report.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from k2_megatron.model.attention_layers import transformer_layers
from k2_megatron.train import tags
from k2_megatron.train.guards.slowest import SlowestRank
from k2_megatron.train.session import Session


class Stragglers:
    """Times one attention of this rank in training passes and compares the ranks' times."""

    def __init__(self, session: Session, *, factor: float, reports: int) -> None:
        """Hook the attention.

        Args:
            session: the run.
            factor: over the median rank's time, to count as slow.
            reports: in a row, to be named.
        """
        self._platform, self._world_size = session.platform, session.topology.world_size
        self._device = session.platform.device
        self._marks: list[tuple[Any, Any]] = []
        self._begin: Any = None
        self._slowest = SlowestRank(factor=factor, reports=reports)
        for _, layer in transformer_layers(session.model, session.topology)[:1]:
            attention = layer.self_attention.core_attention
            attention.register_forward_pre_hook(self._enter)
            attention.register_forward_hook(self._leave)

    def begin_step(self) -> None:
        """Forget the passes of the last step."""
        self._marks.clear()

    def report(self, say: Callable[[str], None]) -> dict[str, float]:
        """Compare the ranks' times of the last step, by TensorBoard tag. Collective.

        Args:
            say: prints on rank 0; takes the message on a slow rank.

        Returns:
            Nothing where no rank has an attention.
        """
        passes = [self._platform.seconds_between(begin, end) for begin, end in self._marks]
        own = median(passes) if passes else -1.0
        gathered = torch.empty(self._world_size, dtype=torch.float64, device=self._device)
        one = torch.tensor([own], dtype=torch.float64, device=self._device)
        dist.all_gather_into_tensor(gathered, one)
        seconds = {rank: time for rank, time in enumerate(gathered.tolist()) if time >= 0}
        if not seconds:
            return {}
        slow = self._slowest.judge(seconds)
        if slow is not None:
            hosts: list[str | None] = [None] * self._world_size
            dist.all_gather_object(hosts, socket.gethostname())
            say(f"warning: {slow.describe(str(hosts[slow.rank]))}")
        return {
            tags.STRAGGLER_MIN: min(seconds.values()),
            tags.STRAGGLER_MEDIAN: median(seconds.values()),
            tags.STRAGGLER_MAX: max(seconds.values()),
            tags.STRAGGLER_RANK: float(max(seconds, key=lambda rank: seconds[rank])),
        }

    def _enter(self, module: torch.nn.Module, inputs: Any) -> None:
        if module.training:
            self._begin = self._platform.time_mark()

    def _leave(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if module.training and self._begin is not None:
            self._marks.append((self._begin, self._platform.time_mark()))
            self._begin = None

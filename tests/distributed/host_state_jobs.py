# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks do in the tests of optimizer state in host memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import optimizer as engine
from megatron.core.optimizer import distrib_optimizer

from k2_megatron.offload import sizes, state, state_streams
from k2_megatron.train.offload import offload_metrics
from tests.distributed.jobs import build, parameters, steps
from tests.offload.delayed_state_streams import delayed_state_streams


class GroupCountingAdam(torch.optim.Optimizer):
    """AdamW that keeps its books as Transformer Engine's FusedAdam does: steps by group.

    That class needs a GPU. Groups without parameters are not counted on, and state is made for
    parameters without a gradient too.
    """

    def __init__(self, params: Any, *, adam_w_mode: bool, **defaults: Any) -> None:
        assert adam_w_mode
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            for values in group["params"]:
                state = self.state[values]
                if not state:
                    state |= {k: torch.zeros_like(values) for k in ("exp_avg", "exp_avg_sq")}
                if values.grad is not None:
                    self._update(values, state, group)

    @staticmethod
    def _update(values: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        gradient, (first, second), count = values.grad, group["betas"], group["step"]
        mean = state["exp_avg"].mul_(first).add_(gradient * (1 - first))
        square = state["exp_avg_sq"].mul_(second).add_(gradient * gradient * (1 - second))
        root = (square / (1 - second**count)).sqrt() + group["eps"]
        values -= group["lr"] * (mean / (1 - first**count) / root + group["weight_decay"] * values)


def _count_in_groups() -> None:
    """Let megatron-core take the class above for Transformer Engine's."""
    engine.USING_PYTORCH_OPTIMIZER = False
    engine.Adam = distrib_optimizer.Adam = GroupCountingAdam


def train(
    config_path: str,
    overrides: list[str],
    *,
    buffer_bytes: int,
    num_buffers: int,
    counts_in_groups: bool = False,
) -> dict[str, Any]:
    """Four steps, of which the second has an infinite gradient on the last stage.

    Args:
        config_path: of the configuration.
        overrides: of it.
        buffer_bytes, num_buffers: through which state passes; few small ones are used again and
            again, and cut everything.
        counts_in_groups: with the books of FusedAdam.
    """
    if counts_in_groups:
        _count_in_groups()
    sizes.STATE_BUFFER_BYTES = buffer_bytes
    state.NUM_STATE_BUFFERS = num_buffers
    state_streams.state_streams = lambda device: delayed_state_streams(device, dist.get_rank())
    session = build(config_path, overrides)
    outcomes = steps(session, 1, 1)
    norm = getattr(session.model.modules[-1].decoder, "final_layernorm", None)
    handle = None if norm is None else norm.weight.register_hook(lambda g: g + torch.inf)
    outcomes += steps(session, 2, 2)
    skipped = offload_metrics(session)
    if handle is not None:
        handle.remove()
    outcomes += steps(session, 3, 4)
    metrics = [
        {name: value for name, value in outcome.metrics.items() if "seconds" not in name}
        for outcome in outcomes
    ]
    host = session.optimizer.host
    states = session.optimizer.shard_states()
    return {
        "outcomes": [(one.loss, one.grad_norm, one.skipped) for one in outcomes],
        "metrics": metrics,
        "parameters": parameters(session.model),
        "states": [
            (kind, one.begin, values.detach().clone())
            for one in states
            for kind, values in one.tensors.items()
        ],
        "num_updates": session.optimizer.num_updates(),
        "host_bytes": host.total_bytes,
        "held_bytes": sum(
            values.nbytes for one in states for values in one.tensors.values() if host.holds(values)
        ),
        "moved_bytes": host.moved_bytes,
        "offload_metrics": offload_metrics(session),
        "skipped_metrics": skipped,
        "stage": session.topology.pp.rank,
    }

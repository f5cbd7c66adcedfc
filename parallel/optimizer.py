# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the trainer asks of an optimizer, and AdamW as megatron-core's ZeRO-1 optimizer gives it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What an optimizer step did.

    Attributes:
        grad_norm: global norm of the gradient before clipping, the same on all ranks.
        skipped: the gradient was not finite and nothing was changed.
        metrics: further values of the step by TensorBoard tag, the same on all ranks but for times.
    """

    grad_norm: float
    skipped: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


class Optimizer(Protocol):
    """A ZeRO-1 optimizer over megatron-core's DistributedDataParallel buffers."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups whose `lr` and `weight_decay` the schedule sets before each step."""

    def describe(self) -> str:
        """The rule as text for the log of a run."""

    def zero_grad(self) -> None:
        """Forget what the last step left; called before the first forward."""

    def step(self) -> StepResult:
        """Clip, update this rank's shards and gather the parameters. Collective."""

    def state_dict(self) -> dict[str, Any]:
        """This rank's shards: master weights, moments and step counts."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, on the same rank of the same layout."""


class AdamW:
    """AdamW through megatron-core's DistributedOptimizer."""

    def __init__(
        self,
        chunks: Sequence[DistributedDataParallel],
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        clip_grad: float,
        dtype: torch.dtype,
    ) -> None:
        """Shard the state over data-parallel ranks. Collective.

        Args:
            chunks: this rank's model chunks.
            lr: initial learning rate.
            weight_decay: decoupled decay, of norm gains too, as Moonlight found necessary
                (arXiv 2502.16982); megatron-core would leave them out by itself.
            betas: decay of the two moments.
            eps: added to the root of the second moment.
            clip_grad: largest global gradient norm, 0 for no clipping.
            dtype: dtype of the parameters; bf16 keeps fp32 master weights.
        """
        overlap = chunks[0].ddp_config.overlap_param_gather
        config = OptimizerConfig(
            optimizer="adam",
            lr=lr,
            weight_decay=weight_decay,
            adam_beta1=betas[0],
            adam_beta2=betas[1],
            adam_eps=eps,
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=True,
            clip_grad=clip_grad,
            overlap_param_gather=overlap,
        )
        self._clip_grad = clip_grad
        self._wheel = get_megatron_optimizer(
            config, list(chunks), config_overrides={}, use_gloo_process_groups=False
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of all inner optimizers."""
        groups: list[dict[str, Any]] = self._wheel.param_groups
        return groups

    def describe(self) -> str:
        """One line: every parameter has one rule."""
        return "optimizer: AdamW for all parameters"

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self._wheel.zero_grad()

    @torch.no_grad()
    def step(self) -> StepResult:
        """Clip by global norm and update; a non-finite norm skips the step on all ranks."""
        self._wheel.prepare_grads()
        norm = float(self._wheel.get_grad_norm())
        if not math.isfinite(norm):
            return StepResult(grad_norm=norm, skipped=True)
        if self._clip_grad > 0:
            for inner in self._inner():
                clip_grad_by_total_norm_fp32(inner.get_parameters(), self._clip_grad, norm)
        self._wheel.step_with_ready_grads()
        return StepResult(grad_norm=norm, skipped=False)

    def state_dict(self) -> dict[str, Any]:
        """Per inner optimizer: fp32 shards in group order, and the moments of each."""
        return {"inner": [_inner_state(inner) for inner in self._inner()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the shards in place."""
        for inner, saved in zip(self._inner(), state["inner"], strict=True):
            _load_inner_state(inner, saved)

    def _inner(self) -> list[Any]:
        return [inner for inner in self._wheel.chained_optimizers if not inner.is_stub_optimizer]


def _inner_state(inner: Any) -> dict[str, Any]:
    torch_optimizer = inner.optimizer
    shards = [p for group in torch_optimizer.param_groups for p in group["params"]]
    return {
        "master": [shard.detach() for shard in shards],
        "state": [dict(torch_optimizer.state.get(shard, {})) for shard in shards],
        # Transformer Engine's FusedAdam counts steps in the group, PyTorch's AdamW per shard.
        "group_steps": [group.get("step") for group in torch_optimizer.param_groups],
    }


@torch.no_grad()
def _load_inner_state(inner: Any, saved: dict[str, Any]) -> None:
    torch_optimizer = inner.optimizer
    shards = [p for group in torch_optimizer.param_groups for p in group["params"]]
    for shard, master, state in zip(shards, saved["master"], saved["state"], strict=True):
        shard.copy_(master)
        # A tensor of its own for each shard, `step` too: distrib_optimizer.py:821 lets shards
        # share one step tensor, which AdamW then advances once a shard.
        torch_optimizer.state[shard] = {
            name: value.to(shard.device if value.dim() else value.device, copy=True)
            if torch.is_tensor(value)
            else value
            for name, value in state.items()
        }
    for group, steps in zip(torch_optimizer.param_groups, saved["group_steps"], strict=True):
        if steps is not None:
            group["step"] = steps

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""SwiGLU between two linear layers: what is kept of its input, and its output rebuilt.

Only SwiGLU itself saves its input, so that an input in another form needs no swapping of storages:
backward reads what is kept. Its output is saved by the linear layer behind and is emptied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from k2_megatron.kernels.fp8_tile.tiles import Tiles
from k2_megatron.kernels.store import Fp8Store
from k2_megatron.kernels.swiglu.dispatch import swiglu, swiglu_and_tiles, swiglu_backward
from k2_megatron.recompute.storage import EmptyUntil, allocate


@dataclass(frozen=True, kw_only=True)
class SwigluPolicy:
    """What is done with SwiGLU's tensors.

    Attributes:
        input_store: where the input is kept; None: on the device as it is.
        take: told of the input where it is kept as it is: it may be away until backward; None:
            nobody is.
        rebuild_input: the input is not kept at all; whoever owns the layer computes it again.
        rebuild_output: the output is emptied and computed again.
    """

    input_store: Fp8Store | None = None
    take: Callable[[Tensor], None] | None = None
    rebuild_input: bool = False
    rebuild_output: bool = False


class KeptInput:
    """SwiGLU's input between forward and backward: a tensor or its tiles."""

    def __init__(self) -> None:
        self._kept: Tensor | Tiles | None = None

    def set(self, kept: Tensor | Tiles) -> None:
        """Keep this."""
        self._kept = kept

    def get(self) -> Tensor | Tiles:
        """The input, or its FP8 copy."""
        assert self._kept is not None, "SwiGLU's input is needed before it was rebuilt"
        return self._kept

    def drop(self) -> None:
        """Forget it."""
        self._kept = None


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, probs: Tensor | None, policy: SwigluPolicy, kept: KeptInput
    ) -> Tensor:
        ctx.kept = kept
        ctx.save_for_backward(probs)
        if policy.rebuild_input:
            return swiglu(x, probs)
        if policy.input_store is None:
            kept.set(x.detach())
            if policy.take is not None:
                policy.take(x)
            return swiglu(x, probs)
        y, tiles = swiglu_and_tiles(x, probs)  # one pass over memory
        kept.set(policy.input_store.announce(tiles))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        (probs,) = ctx.saved_tensors
        dx, dprobs = swiglu_backward(dy.contiguous(), ctx.kept.get(), probs)
        ctx.kept.drop()  # the node may outlive its backward
        return dx, dprobs, None, None


class Swiglu:
    """SwiGLU of one forward.

    Args:
        x: [..., 2 f], contiguous, the linear layer's output, which nobody else keeps.
        probs: fp32 [rows], the routing weights of routed experts; None otherwise.
        policy: what is kept.

    Attributes:
        output: [..., f].
        kept: the input, for whoever rebuilds it.
    """

    def __init__(self, x: Tensor, probs: Tensor | None, policy: SwigluPolicy) -> None:
        matrix = x.reshape(-1, x.shape[-1])
        self.kept = KeptInput()
        self._probs = None if probs is None else probs.detach()
        self._policy = policy
        if torch.is_grad_enabled():
            y = _Swiglu.apply(matrix, probs, policy, self.kept)  # type: ignore[no-untyped-call]
        else:
            y = swiglu(matrix, probs)
        self.output: Tensor = y.view(*x.shape[:-1], y.shape[-1])

    def refill(self, output: Tensor) -> None:
        """Write the emptied output again, from the input as it is kept."""
        kept = self.kept.get()
        swiglu(kept, self._probs, out=allocate(output).view(-1, output.shape[-1]))

    def discard_output(self, until: Tensor) -> None:
        """Empty the output if the policy says so.

        Args:
            until: the next linear layer's output, which has read the output.
        """
        if self._policy.rebuild_output and until.requires_grad:
            EmptyUntil([self.output], until=until, fill=lambda outputs: self.refill(*outputs))

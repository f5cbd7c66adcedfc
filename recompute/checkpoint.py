# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint whose outputs are thrown away too and rebuilt before backward reads them.

It takes the place of megatron-core's CheckpointWithoutOutput (tensor_parallel/random.py:620-760),
which its layers name in transformer_layer.py:548, 637, fine_grained_callables.py:455 and
multi_latent_attention.py:831. Of it, random.py:636 asks for FP8 whatever is given and so fails
without Transformer Engine, and :444 reads a random state that a CPU does not have. Nothing that is
checkpointed here draws random numbers (K2 has no dropout), so no state is kept, and a GPU is not
asked for its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from k2_megatron.recompute.storage import allocate, empty


class OutputDiscardingCheckpoint:
    """One pass through a function, its outputs emptied and computed again in backward.

    Args:
        fp8: not used: there is no FP8 computation.
    """

    def __init__(self, fp8: object = None) -> None:
        self._function: Callable[..., Any] | None = None
        self._context: Any = None
        self._outputs: tuple[Tensor, ...] = ()

    def checkpoint(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Run the function without a graph of its own.

        Args:
            function: from `inputs` to one tensor or a tuple of tensors, each of its own storage;
                it draws no random numbers.
            inputs: tensors, and what else it needs. What requires a gradient gets one, parameters
                inside `function` too.
        """
        outputs = _Checkpointed.apply(function, self, *inputs)  # type: ignore[no-untyped-call]
        self._function = function
        self._outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return outputs

    def discard_output_and_register_recompute(self, hook_tensor: Tensor) -> None:
        """Empty the outputs; compute them again when the gradient of `hook_tensor` is there.

        Args:
            hook_tensor: computed from the outputs. Nothing reads them in forward any more, and
                backward reaches it before it reads them. Without gradients nothing is emptied:
                the outputs go by themselves.
        """
        if not hook_tensor.requires_grad:
            self._outputs, self._function, self._context = (), None, None
            return
        for output in self._outputs:
            empty(output.detach())
        hook_tensor.register_hook(self._recompute)  # type: ignore[no-untyped-call]

    def _recompute(self, gradient: Tensor) -> None:
        context, function = self._context, self._function
        assert context is not None and function is not None, "backward a second time"
        inputs = tuple(map(_as_leaf, context.saved_tensors + context.others))
        inputs = tuple(inputs[index] for index in context.order)
        with torch.enable_grad():
            outputs = function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for output, rebuilt in zip(self._outputs, outputs, strict=True):
            # Not adopted but copied: the storage itself is what the layers behind have saved.
            allocate(output.detach()).copy_(rebuilt.detach())
        # Edges, not tensors: the rebuilt numbers would be held a second time.
        context.inputs = inputs
        context.edges = [get_gradient_edge(one) if one.requires_grad else None for one in outputs]
        self._outputs, self._function, self._context = (), None, None


class _Checkpointed(torch.autograd.Function):
    """Forward without a graph; backward through the graph of the second forward."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., Any], owner: OutputDiscardingCheckpoint, *inputs: Any
    ) -> Any:
        with torch.no_grad():
            outputs = function(*inputs)
        is_tensor = [isinstance(one, Tensor) for one in inputs]
        ctx.save_for_backward(*(one for one in inputs if isinstance(one, Tensor)))
        ctx.others = tuple(one for one in inputs if not isinstance(one, Tensor))
        # Places of the inputs in saved tensors and others, one behind the other.
        tensors, others = 0, sum(is_tensor)
        order = []
        for found in is_tensor:
            order.append(tensors if found else others)
            tensors, others = tensors + found, others + (not found)
        ctx.order = tuple(order)
        owner._context = ctx
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        inputs, edges = ctx.inputs, ctx.edges
        ctx.inputs = ctx.edges = None
        pairs = [
            (edge, gradient)
            for edge, gradient in zip(edges, gradients, strict=True)
            if edge is not None
        ]
        torch.autograd.backward([one for one, _ in pairs], [other for _, other in pairs])
        found = (one.grad if isinstance(one, Tensor) else None for one in inputs)
        return (None, None, *found)


def _as_leaf(value: Any) -> Any:
    """The value, a tensor cut from its graph."""
    if not isinstance(value, Tensor):
        return value
    leaf = value.detach()
    leaf.requires_grad_(value.requires_grad)
    return leaf

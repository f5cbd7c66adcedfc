# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Feed-forward blocks with our SwiGLU: a dense layer's and the shared expert's."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from torch import Tensor

from k2_megatron.recompute.storage import empty
from k2_megatron.recompute.swiglu import Swiglu, SwigluPolicy


def _forward(block: Any, hidden: Tensor, policy: SwigluPolicy) -> Tensor:
    """Up, SwiGLU, down; mlp.py:156-253 with what is kept decided by us.

    Args:
        hidden: [s, b, h], or this rank's part of the sequence.
    """
    up, bias = block.linear_fc1(hidden)
    assert bias is None
    gated = Swiglu(up, None, policy)
    output, bias = block.linear_fc2(gated.output)
    assert bias is None
    gated.discard_output(until=output)
    return output  # type: ignore[no-any-return]


def empty_shared_output_behind_sum(layer: Any) -> None:
    """Give the shared expert's output back as soon as it is added to the routed experts'.

    Overlapped expert communication holds it until backward (fine_grained_callables.py:500), where
    only its gradient is asked for.

    Args:
        layer: a MoELayer; it is changed.
    """
    postprocess = layer.postprocess

    def emptying(output: Tensor, shared: Tensor | None) -> Tensor:
        result: Tensor = postprocess(output, shared)
        if shared is not None and result.requires_grad:
            # Made on the stream of computation, read last on that of communication.
            shared.record_stream(torch.cuda.current_stream())
            empty(shared.detach())
        return result

    layer.postprocess = emptying


class DenseMLP(MLP):  # type: ignore[misc]
    """The feed-forward of a dense layer.

    Attributes:
        policy: set by whoever builds the model.
    """

    policy = SwigluPolicy()

    def forward(
        self, hidden_states: Tensor, per_token_scale: None = None, **unused: Any
    ) -> tuple[Tensor, None]:
        """Compute [s, b, h] -> [s, b, h]; the second value is the bias that K2 has not."""
        assert per_token_scale is None
        return _forward(self, hidden_states, self.policy), None


class SharedExpert(SharedExpertMLP):  # type: ignore[misc]
    """The expert that every token passes.

    Attributes:
        policy: set by whoever builds the model.
    """

    policy = SwigluPolicy()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert not self.use_shared_expert_gate and not self.config.moe_shared_expert_overlap

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Compute [s, b, h] -> [s, b, h]."""
        return _forward(self, hidden_states, self.policy)

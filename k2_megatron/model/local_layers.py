# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The layers that megatron-core's local specs lack for MLA under sequence parallelism.

dot_product_attention.py:42-52 takes no head sizes for keys and values, and torch_norm.py:32
refuses sequence parallelism; both are used where Transformer Engine is not.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from k2_megatron.recompute.checkpoint import OutputDiscardingCheckpoint


class RMSNorm(torch.nn.RMSNorm):
    """PyTorch's RMSNorm, its weight marked so that tensor ranks sum its gradient.

    Attributes:
        discards_output: the output of a forward with gradients is thrown away by `discard` and
            computed again in backward.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any
    ) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        weight: Any = self.weight
        weight.sequence_parallel = config.sequence_parallel
        self.discards_output = False
        self._checkpoint: OutputDiscardingCheckpoint | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x, [..., h].

        In fp32 PyTorch's norm is several operations on x, whose gradients are summed here, before
        those of x's other readers: so it is where the norm is rebuilt, and results stay equal.
        """
        x = x.view_as(x)
        if not self.discards_output or not torch.is_grad_enabled():
            return super().forward(x)
        self._checkpoint = OutputDiscardingCheckpoint()
        output: torch.Tensor = self._checkpoint.checkpoint(super().forward, x)
        return output

    def discard(self, until: torch.Tensor) -> None:
        """Throw away the last output; rebuild it when the gradient of `until` is there."""
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is not None:
            checkpoint.discard_output_and_register_recompute(until)


class MLACoreAttention(MegatronModule):  # type: ignore[misc]
    """Causal softmax attention whose value heads may differ in size from its query heads.

    Softmax in fp32, no dropout (K2 has none). Context parallelism is not supported.

    Attributes:
        max_logits: fp32, [n], raised in training to the largest logit of each head; None: not
            recorded.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float,
        **unused: Any,
    ) -> None:
        super().__init__(config=config)
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale
        self.max_logits: torch.Tensor | None = None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **unused: Any,
    ) -> torch.Tensor:
        """Attend causally.

        Args:
            query: [s, b, n, d_qk]. key: [s, b, n, d_qk]. value: [s, b, n, d_v].
            attention_mask: must be None; the mask is causal.

        Returns:
            [s, b, n * d_v].
        """
        assert attention_mask is None
        length, batch = query.shape[:2]
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [b, n, s, d]
        scores = torch.matmul(q, k.transpose(-1, -2)).float() * self.softmax_scale
        future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        logits = scores.masked_fill(future, float("-inf"))
        if self.training and self.max_logits is not None:
            torch.maximum(self.max_logits, logits.detach().amax((0, 2, 3)), out=self.max_logits)
        weights = torch.softmax(logits, dim=-1).to(v.dtype)
        context = torch.matmul(weights, v)  # [b, n, s, d_v]
        return context.permute(2, 0, 1, 3).reshape(length, batch, -1)

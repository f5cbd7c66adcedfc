# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Transformer Engine's attention that records its largest logits in training alone.

extensions/transformer_engine.py:1413-1426 keeps a running maximum of its own, which evaluation
raises too and which holds a graph where the unfused backend ran; its values are taken over here
after each forward and dropped there. Transformer Engine rounds them to the dtype of its output and
reduces them over context parallelism. For them it gives up FlashAttention: what runs is cuDNN's
fused attention in bf16 and the unfused one in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.extensions.transformer_engine import TEDotProductAttention


class RecordingAttention(TEDotProductAttention):  # type: ignore[misc]
    """Built where TransformerConfig.log_max_attention_logit is on.

    Attributes:
        max_logits: fp32, [local heads], raised in training to the largest logit of each head; None:
            not recorded.
    """

    max_logits: torch.Tensor | None = None
    current_max_attn_logits: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        assert config.log_max_attention_logit and self.return_max_logit
        # A sink takes part in the softmax but not in the maximum.
        assert self.softmax_type == "vanilla"

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Attend as the base does; in training raise `max_logits`."""
        context: torch.Tensor = super().forward(*args, **kwargs)
        found, self.current_max_attn_logits = self.current_max_attn_logits, None
        if self.training and self.max_logits is not None:
            assert found.shape == self.max_logits.shape, "one value for each local head"
            torch.maximum(self.max_logits, found.detach(), out=self.max_logits)
        return context

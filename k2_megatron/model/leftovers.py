# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What megatron-core's modules keep of a forward that nobody reads again."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.utils import get_attr_wrapped_model


def forget_forward(chunk: Any) -> None:
    """Let go a chunk's last input and its gradient when the passes have ended.

    A chunk keeps what the stage before has sent (transformer_block.py:578), and its dispatchers the
    router's weights, whose graph ends in it (token_dispatcher.py:291 and 610): two hidden states a
    chunk until its next forward, also through the optimizer's step.

    Args:
        chunk: GPTModel or a wrapper of it.
    """
    get_attr_wrapped_model(chunk, "set_input_tensor")(None)
    for module in chunk.modules():
        if isinstance(module, MoELayer):
            for name in ("probs", "local_probs"):  # alltoall, allgather
                if hasattr(module.token_dispatcher, name):
                    setattr(module.token_dispatcher, name, None)

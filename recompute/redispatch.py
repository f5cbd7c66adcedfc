# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Send the tokens of a forward to the experts a second time, in backward.

A token dispatcher keeps what it found out for one forward in its attributes and replaces it at the
next. What the second journey needs of it is remembered here: who goes where is known, so no count
is exchanged again and the GPU is not waited for; weights of the router do not travel, because
SwiGLU has saved them. token_dispatcher.py:237-305 and 560-753 are the first journey.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel import all_to_all, gather_from_sequence_parallel_region
from megatron.core.transformer.moe.moe_utils import permute, sort_chunks_by_idxs
from megatron.core.transformer.moe.token_dispatcher import (
    MoEAllGatherTokenDispatcher,
    MoEAlltoAllTokenDispatcher,
)
from torch import Tensor


class Redispatcher:
    """Watches one MoE layer's forwards, of which one at a time lies between router and experts.

    Args:
        layer: the MoE layer; its router's input is what it sends to the experts.
    """

    def __init__(self, layer: Any) -> None:
        self._dispatcher = layer.token_dispatcher
        self._hidden: Tensor | None = None
        self._routing_map: Tensor | None = None
        kinds = (MoEAlltoAllTokenDispatcher, MoEAllGatherTokenDispatcher)
        assert isinstance(self._dispatcher, kinds)
        layer.router.register_forward_pre_hook(self._on_router)
        layer.router.register_forward_hook(self._on_routed)

    def _on_router(self, router: Any, inputs: tuple[Any, ...]) -> None:
        # Of the same storage, which is filled in backward before the experts' turn.
        self._hidden = inputs[0].detach() if torch.is_grad_enabled() else None

    def _on_routed(self, router: Any, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        self._routing_map = outputs[1] if torch.is_grad_enabled() else None

    def __call__(self, num_rows: int) -> Callable[[], Tensor]:
        """A function that sends the tokens of the forward under way again. Collective.

        Called while the experts' forward runs, and its result in backward, without gradients.

        Args:
            num_rows: of tokens that came here.
        """
        hidden, self._hidden = self._hidden, None
        routing_map, self._routing_map = self._routing_map, None
        assert hidden is not None and routing_map is not None
        if isinstance(self._dispatcher, MoEAllGatherTokenDispatcher):
            return _by_all_gather(self._dispatcher, hidden, num_rows)
        return _by_all_to_all(self._dispatcher, hidden, routing_map)


def _by_all_to_all(dispatcher: Any, hidden: Tensor, routing_map: Tensor) -> Callable[[], Tensor]:
    assert not dispatcher.drop_and_pad
    fused = dispatcher.config.moe_permute_fusion
    num_sent = dispatcher.num_out_tokens
    received, sent = dispatcher.output_splits, dispatcher.input_splits
    over_tensor = (
        None if dispatcher.output_splits_tp is None else dispatcher.output_splits_tp.tolist()
    )
    sizes = (
        dispatcher.num_global_tokens_per_local_expert if dispatcher.num_local_experts > 1 else None
    )

    def run() -> Tensor:
        tokens, _, _ = permute(
            hidden.view(-1, hidden.shape[-1]), routing_map, num_out_tokens=num_sent, fused=fused
        )
        tokens = all_to_all(dispatcher.ep_group, tokens, received, sent)
        if dispatcher.tp_size > 1:
            tokens = gather_from_sequence_parallel_region(
                tokens, group=dispatcher.tp_group, output_split_sizes=over_tensor
            )
        if sizes is not None:
            tokens, _ = sort_chunks_by_idxs(
                tokens, sizes.ravel(), dispatcher.sort_input_by_local_experts, fused=fused
            )
        rows: Tensor = tokens
        return rows

    return run


def _by_all_gather(dispatcher: Any, hidden: Tensor, num_rows: int) -> Callable[[], Tensor]:
    local_map, fused = dispatcher.local_map, dispatcher.config.moe_permute_fusion

    def run() -> Tensor:
        tokens = hidden.view(-1, hidden.shape[-1])
        if dispatcher.tp_size > 1 or dispatcher.ep_size > 1:
            tokens = gather_from_sequence_parallel_region(
                tokens, group=dispatcher.tp_ep_group, use_global_buffer=True
            )
        rows: Tensor = permute(tokens, local_map, num_out_tokens=num_rows, fused=fused)[0]
        return rows

    return run

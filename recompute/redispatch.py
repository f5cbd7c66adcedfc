# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Send the tokens of a forward to the experts a second time, in backward.

A token dispatcher keeps what it found out for one forward in its attributes and replaces it at the
next. What the second journey needs of it is remembered here: who goes where is known, so no count
is exchanged again and the GPU is not waited for; weights of the router do not travel, because
SwiGLU has saved them. token_dispatcher.py:237-305 and 560-753 are the first journey. Its
permutations are gathers of rows here, the last of which writes where the tokens are wanted; on one
rank it is the only one, where the first journey sorts what is in order already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel import all_to_all, gather_from_sequence_parallel_region
from megatron.core.transformer.moe.token_dispatcher import (
    MoEAllGatherTokenDispatcher,
    MoEAlltoAllTokenDispatcher,
)
from torch import Tensor

from k2_megatron.recompute.storage import allocate


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

    def __call__(self) -> Callable[[Tensor], None]:
        """A function that sends the tokens of the forward under way again. Collective.

        Called while the experts' forward runs, and its result in backward, without gradients.

        Returns:
            Given the emptied tensor [rows, h], allocates it and fills it.
        """
        hidden, self._hidden = self._hidden, None
        routing_map, self._routing_map = self._routing_map, None
        assert hidden is not None and routing_map is not None
        if isinstance(self._dispatcher, MoEAllGatherTokenDispatcher):
            return _by_all_gather(self._dispatcher, hidden)
        return _by_all_to_all(self._dispatcher, hidden, routing_map)


def _by_all_to_all(
    dispatcher: Any, hidden: Tensor, routing_map: Tensor
) -> Callable[[Tensor], None]:
    assert not dispatcher.drop_and_pad
    num_sent = int(dispatcher.num_out_tokens)
    received, sent = dispatcher.output_splits, dispatcher.input_splits
    over_tensor = (
        None if dispatcher.output_splits_tp is None else dispatcher.output_splits_tp.tolist()
    )
    sizes = (
        dispatcher.num_global_tokens_per_local_expert if dispatcher.num_local_experts > 1 else None
    )

    def run(emptied: Tensor) -> None:
        tokens, rows = _flat(hidden), _rows_by_expert(routing_map, num_sent)
        if dispatcher.ep_size * dispatcher.tp_size > 1:
            tokens = all_to_all(dispatcher.ep_group, tokens[rows], received, sent)
            if dispatcher.tp_size > 1:
                tokens = gather_from_sequence_parallel_region(
                    tokens, group=dispatcher.tp_group, output_split_sizes=over_tensor
                )
            if sizes is None:
                allocate(emptied).copy_(tokens)
                return
            rows = _rows_by_chunk(sizes, dispatcher.sort_input_by_local_experts, tokens)
        torch.index_select(tokens, 0, rows, out=allocate(emptied))

    return run


def _by_all_gather(dispatcher: Any, hidden: Tensor) -> Callable[[Tensor], None]:
    local_map = dispatcher.local_map

    def run(emptied: Tensor) -> None:
        tokens = _flat(hidden)
        if dispatcher.tp_size > 1 or dispatcher.ep_size > 1:
            tokens = gather_from_sequence_parallel_region(
                tokens, group=dispatcher.tp_ep_group, use_global_buffer=True
            )
        rows = _rows_by_expert(local_map, emptied.shape[0])
        torch.index_select(tokens, 0, rows, out=allocate(emptied))

    return run


def _flat(hidden: Tensor) -> Tensor:
    return hidden.view(-1, hidden.shape[-1])


def _rows_by_expert(routing_map: Tensor, count: int) -> Tensor:
    """Tokens of the first expert, of the second, ..., each in order: int64 [count].

    Args:
        routing_map: bool [tokens, experts].
        count: how many are true in it, so that nobody has to ask the GPU.
    """
    return torch.nonzero_static(routing_map.t(), size=count)[:, 1]


def _rows_by_chunk(sizes: Tensor, order: Tensor, tokens: Tensor) -> Tensor:
    """Rows of `tokens`, which are chunks one behind the other, in another order: int64 [rows].

    Args:
        sizes: rows of each chunk.
        order: chunks, as they shall be.
        tokens: [rows, h].
    """
    count, device = tokens.shape[0], tokens.device
    sizes, order = (given.ravel().to(device) for given in (sizes, order))
    begins = sizes.cumsum(0) - sizes
    sizes, begins = sizes[order], begins[order]
    shifts = begins - (sizes.cumsum(0) - sizes)
    moved = torch.repeat_interleave(shifts, sizes, output_size=count)
    return moved + torch.arange(count, device=device)

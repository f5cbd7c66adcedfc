# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a token dispatcher need not do, and what is computed while it makes the host wait."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from torch import Tensor


def skip_needless_sort(module: torch.nn.Module) -> None:
    """Leave out the sort by expert behind an exchange that did not take place.

    The permutation before the exchange has sorted the tokens by expert. With one rank in the
    experts' group that is the order wanted, yet token_dispatcher.py:707 and :753 copy all of them
    once more, each way in forward and in backward, unless a rank has one expert: 10.3 of 456 ms of
    a profiled step of two K2 layers on one H100.

    Args:
        module: its MoE layers' dispatchers are changed.
    """
    for layer in module.modules():
        dispatcher = getattr(layer, "token_dispatcher", None)
        if not isinstance(dispatcher, MoEAlltoAllTokenDispatcher):
            continue
        if dispatcher.ep_size * dispatcher.tp_size == 1:
            dispatcher.num_local_experts = 1


def compute_shared_expert_late(module: torch.nn.Module) -> None:
    """Compute the shared expert behind the router and not in front of it.

    The host waits until it knows how many tokens each expert has (token_dispatcher.py:899), and the
    GPU then waits until the host has queued the experts: half a millisecond a layer and
    micro-batch, in which the shared expert now runs. With overlapped expert communication another
    micro-batch's work does.

    Gradients have the same bits: a view made in front of the router lets the shared expert's be
    added last, as before. Only the all-to-all's: the all-gather's backward leaves the tokens'
    gradient in a buffer that every gather shares (mappings.py:339), and the shared expert's would
    overwrite it before it is added.

    Args:
        module: its MoE layers are changed.
    """
    for layer in module.modules():
        if not isinstance(layer, MoELayer) or layer.shared_experts is None:
            continue
        waits = isinstance(layer.token_dispatcher, MoEAlltoAllTokenDispatcher)
        if waits and not layer.config.overlap_moe_expert_parallel_comm:
            _Late(layer)


class _Late:
    """Takes the place of three of a layer's methods, of which moe_layer.py:392 calls each once."""

    def __init__(self, layer: Any) -> None:
        self._compute = layer.shared_experts_compute
        self._preprocess, self._postprocess = layer.preprocess, layer.postprocess
        self._hidden: Tensor | None = None
        self._output: Tensor | None = None
        layer.shared_experts_compute = self.note
        layer.preprocess = self.preprocess
        layer.postprocess = self.postprocess

    def note(self, hidden: Tensor) -> None:
        self._hidden = hidden.view_as(hidden)

    def preprocess(self, *args: Any, **kwargs: Any) -> Any:
        found = self._preprocess(*args, **kwargs)
        hidden, self._hidden = self._hidden, None
        self._output = self._compute(hidden)
        return found

    def postprocess(self, output: Tensor, shared: None) -> Any:
        ours, self._output = self._output, None
        return self._postprocess(output, ours)

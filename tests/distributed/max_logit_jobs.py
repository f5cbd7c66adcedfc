# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks do in the tests of recorded attention logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from k2_megatron.model import build as build_module
from k2_megatron.model.attention_layers import record_max_logits, recorded_attentions
from k2_megatron.parallel.max_logits import RecordedAttention
from k2_megatron.train.session import Session
from k2_megatron.train.step import evaluate
from tests.distributed.jobs import build, steps, synthetic_batches, train


class PlainMaxima:
    """Largest logits of this rank's attentions in training, straight from queries and keys."""

    def __init__(self, session: Session) -> None:
        """Look on at every core attention."""
        model = session.config.model
        # Without YaRN the scale is the root of the size of a head's query.
        assert model.rope_type == "rope"
        self._scale = (model.qk_head_dim + model.qk_pos_emb_head_dim) ** -0.5
        self.visible: dict[int, torch.Tensor] = {}
        self.all_pairs: dict[int, torch.Tensor] = {}
        for attention in recorded_attentions(session.model, session.topology):
            self._watch(attention)

    def _watch(self, attention: RecordedAttention) -> None:
        def look(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            if not module.training:
                return
            query, key = (x.detach().double() for x in inputs[:2])  # [s, b, n, d]
            for maxima, mask in ((self.visible, True), (self.all_pairs, False)):
                found = _largest(query, key, self._scale, causal=mask)
                before = maxima.get(attention.index, found)
                maxima[attention.index] = torch.maximum(before, found)

        attention.core_attention.register_forward_pre_hook(look)

    def results(self) -> dict[str, dict[int, torch.Tensor]]:
        """Maxima of visible pairs and of all pairs: [local heads] by layer."""
        return {"visible": _on_host(self.visible), "all_pairs": _on_host(self.all_pairs)}


def _largest(query: torch.Tensor, key: torch.Tensor, scale: float, *, causal: bool) -> torch.Tensor:
    """Largest logit of each head, one query position after the other."""
    found = query.new_full(query.shape[2:3], -torch.inf)
    for position in range(query.shape[0]):
        keys = key[: position + 1] if causal else key
        logits = torch.einsum("bnd,sbnd->sbn", query[position], keys) * scale
        found = torch.maximum(found, logits.amax((0, 1)))
    return found


def _on_host(maxima: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    return {layer: values.cpu() for layer, values in maxima.items()}


def record(config_path: str, overrides: list[str], evaluate_between: bool) -> dict[str, Any]:
    """The maxima of two training steps, with held-out text before, between and after them."""
    session = build(config_path, overrides)
    recorder = record_max_logits(session.model, session.topology, session.platform.device)
    watched = PlainMaxima(session)

    def look_at_held_out_text() -> None:
        if evaluate_between:
            evaluate(session, iter([synthetic_batches(session.config, session, 100)]))

    look_at_held_out_text()
    nothing = recorder.reduce()
    first = steps(session, 1, 1)
    look_at_held_out_text()
    maxima = recorder.reduce()
    plain = watched.results()
    recorder.reset()
    forgotten = recorder.reduce()
    second = steps(session, 2, 2)
    look_at_held_out_text()
    return {
        "nothing": nothing.cpu(),
        "maxima": [maxima.cpu(), recorder.reduce().cpu()],
        "forgotten": forgotten.cpu(),
        "plain": plain,
        "losses": [outcome.loss for outcome in [*first, *second]],
    }


def record_recomputing(**kwargs: Any) -> dict[str, Any]:
    """`record` with megatron-core's recomputation of the core attention."""
    _change_transformer_config(recompute_granularity="selective", recompute_modules=["core_attn"])
    return record(**kwargs)


def record_with_transformer_engine(**kwargs: Any) -> dict[str, Any]:
    """`record` with the attention that the optimizer's settings would choose."""
    with_recording = _change_transformer_config(log_max_attention_logit=True)
    try:
        return record(**kwargs)
    finally:
        build_module.transformer_config = with_recording


def train_recording(recorded: bool, **kwargs: Any) -> dict[str, Any]:
    """`train`, with Transformer Engine's recording attention or its plain one."""
    before = _change_transformer_config(log_max_attention_logit=recorded)
    try:
        return train(**kwargs)
    finally:
        build_module.transformer_config = before


def _change_transformer_config(**changes: Any) -> Any:
    """Let models be built with other fields; returns the function to put back."""
    make = build_module.transformer_config

    def changed(*args: Any) -> Any:
        return replace(make(*args), **changes)

    build_module.transformer_config = changed
    return make


def record_a_nan(config_path: str, overrides: list[str]) -> torch.Tensor:
    """The maxima where the last rank saw a NaN in its first head of its first layer."""
    session = build(config_path, overrides)
    recorder = record_max_logits(session.model, session.topology, session.platform.device)
    steps(session, 1, 1)
    if session.topology.rank == session.topology.world_size - 1:
        first = recorded_attentions(session.model, session.topology)[0].core_attention
        nan = torch.full_like(first.max_logits, torch.nan)
        nan[1:] = -torch.inf
        torch.maximum(first.max_logits, nan, out=first.max_logits)
    return recorder.reduce()

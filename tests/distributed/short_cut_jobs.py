# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The same steps with and without what is left out beside the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import megatron.core.transformer.moe.token_dispatcher as dispatchers
import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding

import k2_megatron.model.build as build_module
from k2_megatron.recompute.mlp import SharedExpert
from tests.distributed import jobs


def embedding_gradients(config_path: str, overrides: list[str]) -> dict[str, Any]:
    """Gradients and losses with the engine's embedding and with ours, and how often a gradient of
    the whole table was made."""
    found: dict[str, Any] = {}

    def remains(embedding: Any) -> None:
        assert isinstance(embedding.word_embeddings, VocabParallelEmbedding)

    for name in _sides("add_rows_to_main_grad", remains):
        found[name] = jobs.train(config_path, overrides, num_steps=2)
    return found


def sorts(config_path: str, overrides: list[str]) -> dict[str, Any]:
    """A step with the engine's sort of tokens and without what needs none, with the calls of it."""
    found: dict[str, Any] = {}
    sort = dispatchers.sort_chunks_by_idxs

    def sort_counted(*args: Any, **kwargs: Any) -> Any:
        found[name]["sorts"] += 1
        return sort(*args, **kwargs)

    dispatchers.sort_chunks_by_idxs = sort_counted
    for name in _sides("skip_needless_sort"):
        found[name] = {"sorts": 0}
        found[name] |= jobs.train(config_path, overrides, num_steps=2)
    dispatchers.sort_chunks_by_idxs = sort
    return found


def shared_experts(config_path: str, overrides: list[str]) -> dict[str, Any]:
    """Steps with the shared expert in front of the router, and where it is put, with the order of
    the first layer's calls."""
    found: dict[str, Any] = {}
    whose = {
        "counts": (dispatchers.MoEAlltoAllTokenDispatcher, "dispatch_preprocess"),
        "shared": (SharedExpert, "forward"),
        "wait": (dispatchers.MoEAlltoAllTokenDispatcher, "dispatch_postprocess"),
    }
    methods = {name: getattr(*place) for name, place in whose.items()}

    def noted(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            found[side]["order"].append(name)
            return methods[name](*args, **kwargs)

        return call

    for name, place in whose.items():
        setattr(*place, noted(name))
    for side in _sides("compute_shared_expert_late"):
        found[side] = {"order": []}
        found[side] |= jobs.train(config_path, overrides, num_steps=2)
        found[side]["order"] = found[side]["order"][:3]
    for name, place in whose.items():
        setattr(*place, methods[name])
    return found


def repeated_tokens() -> dict[str, Any]:
    """Gradients of a table whose rows are asked for many times, in bf16, summed in fp32; and
    whether 20 repetitions on several threads have the same bits."""
    from k2_megatron.model.vocabulary import _Lookup

    torch.set_num_threads(4)
    generator = torch.Generator().manual_seed(1)
    table = torch.nn.Parameter(torch.randn(64, 128, generator=generator).bfloat16())
    ids = torch.randint(60, (2, 2048), generator=generator)
    dy = torch.randn(2, 2048, 128, generator=generator).bfloat16()
    sums = []
    for _ in range(20):
        table.main_grad = torch.zeros(64, 128)
        for _ in range(2):
            _Lookup.apply(table, ids).backward(dy)
        sums.append(table.main_grad)
    exact = torch.zeros(64, 128, dtype=torch.float64)
    exact.index_add_(0, ids.flatten(), dy.flatten(0, 1).double(), alpha=2)
    plain = table.detach().clone().requires_grad_()
    F.embedding(ids, plain).backward(dy)
    return {
        "found": sums[0],
        "exact": exact,
        "plain": 2 * plain.grad.float(),
        "repeats": all(torch.equal(one, sums[0]) for one in sums),
    }


def _sides(short_cut: str, without: Callable[[Any], None] = lambda _: None) -> Iterator[str]:
    """While a model is built without a short cut of its build, and with it: engine, then ours."""
    from k2_megatron.parallel import megatron_state

    with patch.object(build_module, short_cut, without):
        yield "engine"
        megatron_state.destroy()
    yield "ours"
    megatron_state.destroy()

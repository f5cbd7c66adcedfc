# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The update rule of every matrix of a configuration, for the planner and for training."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from k2_megatron.config.config import Config
from k2_megatron.model.shape import model_shape
from k2_megatron.parallel.canonical import ModelShape, canonical_shapes
from k2_megatron.parallel.muonclip.rules import Assignment, MuonRules, assign
from k2_megatron.parallel.muonclip.table import describe_rules


def assignment_of(config: Config, chosen: Callable[[str], bool] = lambda _: True) -> Assignment:
    """The rule of every canonical matrix under MuonClip, or of the chosen ones."""
    shape, options = model_shape(config.model), config.optimizer
    rules = MuonRules(
        split_gate_up=options.muon_split_gate_up,
        split_q_up=options.muon_split_q_up,
        split_kv_up=options.muon_split_kv_up,
        split_kv_down=options.muon_split_kv_down,
        per_head=options.muon_per_head,
        router=options.muon_router,
        update_rms=options.muon_update_rms,
    )
    shapes = {key: size for key, size in _shapes(shape).items() if chosen(key)}
    return assign(shapes, shape.num_heads, rules)


def rules_table(config: Config) -> str:
    """What MuonClip prints at the start of training, from one layer and expert of each kind."""
    shape = model_shape(config.model)
    num_dense = shape.num_dense_layers
    shown = {0: num_dense, num_dense: shape.num_layers - num_dense}

    def number(name: str, of: str) -> int | None:
        found = re.search(rf"(?:^|\.){of}\.(\d+)\.", name)
        return int(found[1]) if found else None

    def chosen(key: str) -> bool:
        layer = number(key, "layers")
        return (
            (layer is None or layer in shown)
            and number(key, "experts") in (None, 0)
            and number(key, "mtp") in (None, 0)
        )

    def repeats(name: str) -> int:
        layer = number(name, "layers")
        count = 1 if layer is None else shown[layer]
        if number(name, "mtp") is not None:
            count = shape.num_mtp_layers
        return count * (shape.num_experts if number(name, "experts") is not None else 1)

    return describe_rules(assignment_of(config, chosen), repeats)


@lru_cache(maxsize=8)
def _shapes(shape: ModelShape) -> dict[str, tuple[int, int]]:
    return canonical_shapes(shape)

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""How evenly the tokens of a step are spread over the experts, from plain lists.

Pure functions without torch: the trainer hands over global counts, already summed over ranks.
"""

import math
from collections.abc import Iterable, Mapping, Sequence


def imbalance(load: Sequence[float]) -> float:
    """Return the load of the busiest expert over the mean load of all experts of one layer.

    1 means perfectly even; `num_experts / moe_router_topk` is the worst a layer can reach, when
    every token picks the same experts. NaN when no token was routed, as there is no mean to
    compare with.

    Args:
        load: tokens of each expert of the layer, `[num_experts]`.

    Raises:
        ValueError: the layer has no expert.
    """
    if not load:
        raise ValueError("the load of a layer without experts has no imbalance")
    mean = sum(load) / len(load)
    return max(load) / mean if mean > 0 else math.nan


def bias_range(bias: Sequence[float]) -> float:
    """Return the largest minus the smallest router bias of one layer; 0 at initialisation.

    Args:
        bias: bias of each expert in the routing score, `[num_experts]`.

    Raises:
        ValueError: the layer has no expert.
    """
    if not bias:
        raise ValueError("the biases of a layer without experts have no range")
    return max(bias) - min(bias)


def imbalance_by_layer(load: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """Return `imbalance` for every layer, in the order of the layers."""
    return {layer: imbalance(load[layer]) for layer in sorted(load)}


def bias_range_by_layer(bias: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """Return `bias_range` for every layer, in the order of the layers."""
    return {layer: bias_range(bias[layer]) for layer in sorted(bias)}


def worst(values: Iterable[float]) -> float:
    """Return the largest value, or NaN as soon as one of them is NaN (`max` depends on order).

    Raises:
        ValueError: there is no value.
    """
    listed = list(values)
    return math.nan if any(math.isnan(value) for value in listed) else max(listed)

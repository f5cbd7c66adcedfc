# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The page "Custom Scalars" of TensorBoard: the charts one looks at first, in that order."""

from __future__ import annotations

import re

from k2_megatron.train import tags

_LAYER = r"layer_\d+"


def _all(pattern: str) -> str:
    """A regular expression for the tags of all layers."""
    return "^" + re.escape(pattern).replace(re.escape("layer_{layer:03d}"), _LAYER) + "$"


# Category -> chart -> tags, as regular expressions; TensorBoard leaves out what a run has not.
CHARTS: dict[str, dict[str, list[str]]] = {
    "is it learning": {
        "loss": [tags.LOSS_TRAIN, tags.LOSS_VALID],
        "gradient norm": [tags.GRAD_NORM],
        "learning rate": [tags.LR],
        "skipped steps": [tags.SKIPPED_STEPS, tags.SKIPPED_IN_A_ROW],
    },
    "is attention stable": {
        "largest logit": [tags.QK_MAX_LOGIT],
        "largest logit of each layer": [_all(tags.QK_MAX_LOGIT_LAYER)],
        "heads clipped": [tags.QK_HEADS_CLIPPED],
        "smallest factor": [tags.QK_SMALLEST_GAMMA],
    },
    "are experts even": {
        "busiest over mean": [tags.EXPERT_IMBALANCE_MAX],
        "busiest over mean, each layer": [_all(tags.EXPERT_IMBALANCE)],
        "range of the biases": [tags.EXPERT_BIAS_RANGE_MAX],
    },
    "is it fast": {
        "tokens a second": [tags.TOKENS_PER_SECOND],
        "model TFLOP/s a device": [tags.TFLOPS_PER_DEVICE],
        "seconds of a step": [tags.STEP_SECONDS, tags.MUON_SECONDS],
        "attention, fastest to slowest rank": [
            tags.STRAGGLER_MIN,
            tags.STRAGGLER_MEDIAN,
            tags.STRAGGLER_MAX,
        ],
    },
    "is there room": {
        "memory": [tags.MEMORY_BYTES, tags.DEVICE_MEMORY_USED],
        "power": [tags.DEVICE_POWER],
        "temperature": [tags.DEVICE_TEMPERATURE],
    },
}


def custom_scalars() -> dict[str, dict[str, list[object]]]:
    """CHARTS in the form that SummaryWriter.add_custom_scalars takes."""
    return {
        category: {
            chart: ["Multiline", [tag if tag.startswith("^") else f"^{tag}$" for tag in shown]]
            for chart, shown in charts.items()
        }
        for category, charts in CHARTS.items()
    }

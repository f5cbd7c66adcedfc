# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The presets' numbers that follow from a recipe rather than from a published table."""

import numpy as np
import pytest

from k2_megatron.config.presets import MODEL_PRESETS, model_from_preset


@pytest.mark.parametrize("preset", MODEL_PRESETS)
def test_gate_scale_is_the_mean_inverse_norm_of_the_weights(preset):
    """Mean of 1/norm2 of renormalised top-k sigmoid weights over standard normal logits.

    20,000 draws: the standard error is below 7e-5 for every preset, and the constants are
    rounded to 1e-3.
    """
    model = model_from_preset(preset)
    logits = np.random.default_rng(0).standard_normal((20_000, model.num_experts))
    chosen = np.sort(1 / (1 + np.exp(-logits)), axis=1)[:, -model.moe_router_topk :]
    weights = chosen / chosen.sum(axis=1, keepdims=True)
    scales = 1 / np.sqrt((weights**2).sum(axis=1))
    assert scales.std() / np.sqrt(len(scales)) < 7e-5
    assert model.moe_router_topk_scaling_factor == pytest.approx(scales.mean(), abs=1e-3)

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The loss as the schedule takes it: right under masks and context parallelism."""

from __future__ import annotations

import types

import pytest
import torch


@pytest.mark.parametrize("context_size", [1, 2])
def test_gradient_is_that_of_the_mean(context_size: int) -> None:
    """Given a mean, the schedule would multiply it by the context-parallel size."""
    from megatron.core.pipeline_parallel.schedules import forward_step_calc_loss

    from k2_megatron.train.step import token_loss

    mask = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    leaf = torch.tensor([[1.0, 2.0, 5.0, 6.0]], requires_grad=True)
    config = types.SimpleNamespace(
        calculate_per_token_loss=False, timers=None, num_moe_experts=None, mtp_num_layers=None
    )
    found: list[dict[str, torch.Tensor]] = []
    loss, _ = forward_step_calc_loss(
        types.SimpleNamespace(),
        leaf * 1,
        lambda output: token_loss(mask, output),
        config,
        None,
        False,
        2,
        found,
        cp_group_size=context_size,
        is_last_stage=True,
    )
    loss.backward()
    num_microbatches, num_tokens = 2, 3
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, mask / (num_tokens * num_microbatches))
    assert float(found[0]["loss"]) == pytest.approx(3.0)

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""On a real GPU: Transformer Engine's loss as it is called here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F


@pytest.mark.gpu
def test_the_host_does_not_wait_for_the_loss() -> None:
    """Not in forward nor in backward, and loss and gradient are those of PyTorch."""
    from k2_megatron.platform.cuda import CudaPlatform

    CudaPlatform().prepare(0)
    import megatron.core.models.common.language_module.language_module as language_module

    rows, vocabulary = 64, 512
    given = torch.randn(rows, 1, vocabulary, device="cuda")
    labels = torch.randint(vocabulary, (rows, 1), device="cuda")
    weights = torch.rand(rows, 1, device="cuda")
    losses, gradients = [], []
    for waits in ("default", "error"):  # the first time compiles
        logits = given.clone().requires_grad_()
        torch.cuda.set_sync_debug_mode(waits)
        try:
            loss = language_module.te_parallel_cross_entropy(logits * 1.0, labels, None)
            loss.backward(weights)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        losses.append(loss.detach())
        gradients.append(logits.grad)
    exact = given.double().requires_grad_()
    plain = F.cross_entropy(exact[:, 0], labels[:, 0], reduction="none")[:, None]
    plain.backward(weights.double())
    for loss, gradient in zip(losses, gradients, strict=True):
        torch.testing.assert_close(loss.double(), plain, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-4, atol=1e-6)

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""On a real GPU: Transformer Engine's product in the place of Apex's kernel."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(256, 512, 768), (4096, 7168, 1024)])
def test_transformer_engine_adds_the_gradient_in_fp32(rows: int, inputs: int, outputs: int) -> None:
    from k2_megatron.platform.weight_gradient import accumulate

    generator = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(rows, size, generator=generator).cuda() for size in (inputs, outputs))
    x, dy = x.bfloat16(), dy.bfloat16()
    total = torch.randn(outputs, inputs, generator=generator).cuda()
    exact = total.double() + dy.double().T @ x.double()
    accumulate(x, dy, total)
    # Thousands of products added in fp32, each sum off by up to 2^-24 of it; a sum rounded to bf16
    # errs by about 2^-10.
    assert float((total.double() - exact).norm() / exact.norm()) < rows * 2**-24

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""SwiGLU: its reference against megatron-core's layer bit for bit, and against float64."""

from __future__ import annotations

import pytest
import torch

from k2_megatron.kernels.fp8_tile.dispatch import dequantise, quantise
from k2_megatron.kernels.fp8_tile.tiles import Tiles
from k2_megatron.kernels.swiglu.dispatch import swiglu, swiglu_and_tiles, swiglu_backward
from tests.distributed.harness import run_ranks

WEIGHTED = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weights(rows: int, weighted: bool) -> torch.Tensor | None:
    return torch.rand(rows, generator=torch.Generator().manual_seed(9)) if weighted else None


def numbers(tiles: Tiles, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(tiles.values.shape, dtype=dtype)
    dequantise(tiles, out)
    return out


def test_results_and_gradients_are_the_engines_bit_for_bit() -> None:
    """Routed experts have weights, shared and dense ones three dimensions and none."""
    cases = run_ranks("tests.kernels.swiglu_jobs.engine_swiglu", 1)[0]
    assert len(cases) == 20
    for case in cases:
        x, probs, dy = case["x"], case["probs"], case["dy"]
        rows = x.view(-1, x.shape[-1])
        assert torch.equal(swiglu(rows, probs).view_as(dy), case["y"])
        dx, dprobs = swiglu_backward(dy.view(-1, dy.shape[-1]), rows, probs)
        assert dx.dtype == x.dtype and torch.equal(dx.view_as(x), case["dx"])
        if probs is None:
            assert dprobs is None
        else:
            assert dprobs is not None and dprobs.dtype == torch.float32
            assert torch.equal(dprobs, case["dprobs"])


@WEIGHTED
def test_gradients_against_float64(weighted: bool) -> None:
    x, dy, probs = normal(33, 200, seed=0), normal(33, 100, seed=1), weights(33, weighted)
    wide = x.double().requires_grad_()
    weight = torch.ones(33).double() if probs is None else probs.double()
    weight.requires_grad_()
    gate, up = wide.chunk(2, -1)
    exact = gate * torch.sigmoid(gate) * up * weight[:, None]
    exact.backward(dy.double())
    dx, dprobs = swiglu_backward(dy, x, probs)
    # A few roundings of fp32 each; the gradient of a weight sums 100 products.
    torch.testing.assert_close(swiglu(x, probs).double(), exact.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(dx.double(), wide.grad, rtol=1e-5, atol=1e-6)
    if probs is not None:
        assert dprobs is not None
        torch.testing.assert_close(dprobs.double(), weight.grad, rtol=1e-5, atol=1e-5)


@DTYPE
@WEIGHTED
def test_the_copy_written_beside_is_that_of_the_quantiser(
    dtype: torch.dtype, weighted: bool
) -> None:
    for half in (128, 100):
        x, probs = normal(17, 2 * half, seed=2, dtype=dtype), weights(17, weighted)
        y, tiles = swiglu_and_tiles(x, probs)
        alone = quantise(x)
        assert torch.equal(y, swiglu(x, probs))
        assert torch.equal(tiles.values.view(torch.uint8), alone.values.view(torch.uint8))
        assert torch.equal(tiles.scales, alone.scales)


@DTYPE
@WEIGHTED
def test_a_copy_counts_as_the_numbers_it_holds(dtype: torch.dtype, weighted: bool) -> None:
    x, probs = normal(17, 200, seed=3, dtype=dtype), weights(17, weighted)
    dy, tiles = normal(17, 100, seed=4, dtype=dtype), quantise(x)
    held = numbers(tiles, dtype)
    assert not torch.equal(held, x)
    out = torch.full((17, 100), float("nan"), dtype=dtype)
    assert swiglu(tiles, probs, out=out) is out
    assert torch.equal(out, swiglu(held, probs))
    for ours, expected in zip(
        swiglu_backward(dy, tiles, probs), swiglu_backward(dy, held, probs), strict=True
    ):
        assert (ours is None) == (expected is None)
        assert ours is None or expected is None or torch.equal(ours, expected)


def test_no_rows() -> None:
    """An expert that got no token."""
    x, probs = torch.empty(0, 64, dtype=torch.bfloat16), torch.empty(0)
    y, tiles = swiglu_and_tiles(x, probs)
    assert y.shape == (0, 32) and tiles.values.shape == (0, 64)
    dx, dprobs = swiglu_backward(y, tiles, probs)
    assert dx.shape == (0, 64) and dprobs is not None and dprobs.shape == (0,)


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
def test_gradients_from_a_copy_do_not_hide_what_is_not_finite(bad: float) -> None:
    x = normal(3, 256, seed=5, dtype=torch.bfloat16)
    x[1, 7] = bad
    dx, dprobs = swiglu_backward(torch.ones(3, 128).bfloat16(), quantise(x), torch.ones(3))
    assert dprobs is not None
    assert not dx[1].isfinite().any() and not dprobs[1].isfinite()
    assert dx[::2].isfinite().all() and dprobs[::2].isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    x, y = torch.zeros(4, 64), torch.zeros(4, 32)
    with pytest.raises(AssertionError, match="which dtype"):
        swiglu(quantise(x))
    for call in (
        lambda: swiglu(x, torch.zeros(3)),
        lambda: swiglu(x, torch.zeros(4, 1)),
        lambda: swiglu(x.view(2, 2, 64)),
        lambda: swiglu(x, out=x),
        lambda: swiglu_backward(x, x),
        lambda: swiglu_backward(y.bfloat16(), x),
    ):
        with pytest.raises(AssertionError):
            call()

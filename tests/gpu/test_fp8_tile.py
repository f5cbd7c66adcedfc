# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""FP8 tiles and SwiGLU in Triton against their references and Transformer Engine.

Triton's interpreter runs the kernels without a GPU, but Transformer Engine's and large tensors:

    TRITON_INTERPRET=1 python -m pytest -m gpu tests/gpu/test_fp8_tile.py
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest
import torch

from k2_megatron.kernels.fp8_tile import dispatch as fp8_dispatch
from k2_megatron.kernels.fp8_tile import reference as fp8_reference
from k2_megatron.kernels.fp8_tile.tiles import Tiles
from k2_megatron.kernels.swiglu import dispatch as swiglu_dispatch
from tests.gpu import interpreter

pytestmark = pytest.mark.gpu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
on_a_gpu = pytest.mark.skipif(INTERPRETED, reason="needs a GPU")

DTYPES = [torch.bfloat16, torch.float32, torch.float16]
# Whole tiles, more of them than a program takes, partial ones, rows that no vector divides.
SHAPES = [(1, 128), (3, 256), (17, 1408), (5, 72), (9, 200), (33, 392), (2, 7), (1, 129)]
HALVES = [128, 384, 2304, 8, 100, 77]


@pytest.fixture(scope="module", autouse=True)
def roundings() -> None:
    """The interpreter's own are not a GPU's."""
    if INTERPRETED:
        interpreter.mend()


@pytest.fixture(scope="module")
def fp8_triton() -> ModuleType:
    """Imported late: Triton is absent where these tests are only collected."""
    return importlib.import_module("k2_megatron.kernels.fp8_tile.triton_kernels")


@pytest.fixture(scope="module")
def swiglu_triton() -> ModuleType:
    return importlib.import_module("k2_megatron.kernels.swiglu.triton_kernels")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def spread(rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """Numbers of all sizes: of tiny rows and large ones, zeros among them."""
    x = normal(rows, cols) * torch.logspace(-6, 4, cols, device=DEVICE)
    x[normal(rows, cols, seed=1) > 1] = 0
    x[rows // 2, : min(cols, 128)] = 0
    return x.clamp(-6e4, 6e4).to(dtype)


def equal(one: Tiles, other: Tiles) -> bool:
    return torch.equal(one.scales, other.scales) and torch.equal(
        one.values.view(torch.uint8), other.values.view(torch.uint8)
    )


def numbers(tiles: Tiles, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(tiles.values.shape, dtype=dtype, device=tiles.values.device)
    fp8_reference.dequantise(tiles, out)
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_bit_for_bit(
    fp8_triton: ModuleType, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x = spread(*shape, dtype)
    tiles = fp8_triton.quantise(x)
    expected = fp8_reference.quantise(x)
    assert equal(tiles, expected)
    for wanted in DTYPES:
        out = torch.full(shape, float("nan"), dtype=wanted, device=DEVICE)
        fp8_triton.dequantise(tiles, out)
        assert torch.equal(out, numbers(expected, wanted))


@pytest.mark.parametrize("cols", [256, 200])
def test_nothing_beyond_the_tiles_is_written(fp8_triton: ModuleType, cols: int) -> None:
    """A matrix in the middle of a larger one."""
    x = spread(5, cols, torch.bfloat16)
    room = torch.full((7, cols), 3.0, dtype=torch.bfloat16, device=DEVICE)
    fp8_triton.dequantise(fp8_triton.quantise(x), room[1:6])
    assert room[0].eq(3).all() and room[6].eq(3).all()
    assert torch.equal(room[1:6], numbers(fp8_reference.quantise(x), torch.bfloat16))


@pytest.mark.parametrize("cols", [384, 300])
def test_edges_of_the_range(fp8_triton: ModuleType, cols: int) -> None:
    """Not finite: NaN over the tile. Smallest and largest numbers: as the reference."""
    for bad in (float("inf"), -float("inf"), float("nan")):
        x = normal(3, cols).bfloat16()
        x[1, 130] = bad
        out = torch.zeros_like(x)
        fp8_triton.dequantise(fp8_triton.quantise(x), out)
        assert out[1, 128:256].isnan().all() and out.isfinite().sum() == 3 * cols - 128
    for size in (3e38, 5e-36, 1e-37, 1e-40):
        x = normal(3, cols).clamp(-1, 1) * size
        assert equal(fp8_triton.quantise(x), fp8_reference.quantise(x))


def test_no_rows(fp8_triton: ModuleType, swiglu_triton: ModuleType) -> None:
    x = torch.empty(0, 256, dtype=torch.bfloat16, device=DEVICE)
    tiles = fp8_triton.quantise(x)
    fp8_triton.dequantise(tiles, x)
    assert tiles.values.shape == (0, 256) and tiles.scales.shape == (0, 2)
    out, probs = x[:, :128].contiguous(), torch.empty(0, device=DEVICE)
    assert swiglu_triton.forward_and_tiles(x, probs, out).scales.shape == (0, 2)
    swiglu_triton.backward(out, tiles, probs, x, probs)


def swiglu_case(
    half: int, weighted: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    x, dy = 3 * normal(11, 2 * half, seed=2), normal(11, half, seed=3)
    x[4, : half // 2] = -200.0
    probs = normal(11, seed=4).sigmoid() if weighted else None
    return x.to(dtype), dy.to(dtype), probs


def in_float64(
    x: torch.Tensor, dy: torch.Tensor, probs: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, dx and dprobs by autograd."""
    wide = x.double().requires_grad_()
    weight = torch.ones(len(x), device=DEVICE).double() if probs is None else probs.double()
    weight.requires_grad_()
    gate, up = wide.chunk(2, -1)
    y = gate * torch.sigmoid(gate) * up * weight[:, None]
    y.backward(dy.double())
    assert wide.grad is not None and weight.grad is not None
    return y.detach(), wide.grad, weight.grad


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("half", HALVES)
def test_swiglu_against_float64(
    swiglu_triton: ModuleType, half: int, dtype: torch.dtype, weighted: bool
) -> None:
    x, dy, probs = swiglu_case(half, weighted, dtype)
    y, dx = torch.full_like(dy, float("nan")), torch.full_like(x, float("nan"))
    dprobs = None if probs is None else torch.full_like(probs, float("nan"))
    swiglu_triton.forward(x, probs, y)
    swiglu_triton.backward(dy, x, probs, dx, dprobs)
    exact = in_float64(x, dy, probs)
    # One rounding to bf16, half of 2^-7; in fp32 ten operations, exp's 2 ulp, and what cancels in
    # 1 + gate (1 - sigmoid).
    rtol, atol = (2.0**-8, 1e-6) if dtype == torch.bfloat16 else (3e-6, 3e-6)
    torch.testing.assert_close(y.double(), exact[0], rtol=rtol, atol=atol)
    torch.testing.assert_close(dx.double(), exact[1], rtol=rtol, atol=atol)
    if dprobs is not None:
        # A sum of up to 2304 fp32 products of size 3.
        torch.testing.assert_close(dprobs.double(), exact[2], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("half", HALVES)
def test_fused_kernels_are_their_parts_bit_for_bit(
    fp8_triton: ModuleType,
    swiglu_triton: ModuleType,
    half: int,
    dtype: torch.dtype,
    weighted: bool,
) -> None:
    x, dy, probs = swiglu_case(half, weighted, dtype)
    y, tiles = torch.empty_like(dy), fp8_triton.quantise(x)
    swiglu_triton.forward(x, probs, y)
    if half % 128 == 0:
        fused = torch.full_like(y, float("nan"))
        assert equal(swiglu_triton.forward_and_tiles(x, probs, fused), tiles)
        assert torch.equal(fused, y)
    held = numbers(tiles, dtype)
    rebuilt, expected = torch.empty_like(y), torch.empty_like(y)
    swiglu_triton.forward(tiles, probs, rebuilt)
    swiglu_triton.forward(held, probs, expected)
    assert torch.equal(rebuilt, expected)
    gradients = []
    for source in (tiles, held):
        dx = torch.full_like(x, float("nan"))
        dprobs = None if probs is None else torch.full_like(probs, float("nan"))
        swiglu_triton.backward(dy, source, probs, dx, dprobs)
        gradients.append((dx, dx if dprobs is None else dprobs))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other) and one.isfinite().all()


@on_a_gpu
@pytest.mark.parametrize("half", [2048, 100])
def test_entry_on_a_gpu(half: int) -> None:
    """The dispatchers with what K2's expert has, near the CPU and repeatable."""
    x, dy, probs = swiglu_case(half, True, torch.bfloat16)
    assert probs is not None
    y, tiles = swiglu_dispatch.swiglu_and_tiles(x, probs)
    assert torch.equal(y, swiglu_dispatch.swiglu(x, probs))
    assert equal(tiles, fp8_dispatch.quantise(x)) and equal(tiles, fp8_reference.quantise(x))
    dx, dprobs = swiglu_dispatch.swiglu_backward(dy, tiles, probs)
    again = swiglu_dispatch.swiglu_backward(dy, tiles, probs)
    assert dprobs is not None and again[1] is not None
    assert torch.equal(dx, again[0]) and torch.equal(dprobs, again[1])
    exact = in_float64(numbers(tiles, torch.bfloat16), dy, probs)
    torch.testing.assert_close(dx.double(), exact[1], rtol=2.0**-8, atol=1e-6)
    torch.testing.assert_close(dprobs.double(), exact[2], rtol=1e-5, atol=1e-4)


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("shape", [(1, 128), (3, 256), (257, 7168), (128, 4096), (33, 400)])
def test_transformer_engine_gives_the_same(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = spread(*shape, dtype)
    tiles = fp8_dispatch.quantise(x, backend="transformer_engine")
    assert tiles.values.is_contiguous() and tiles.scales.is_contiguous()
    assert equal(tiles, fp8_dispatch.quantise(x))
    assert fp8_dispatch.quantise(x[:0], backend="transformer_engine").scales.shape[0] == 0


@on_a_gpu
def test_matrices_longer_than_int32(fp8_triton: ModuleType, swiglu_triton: ModuleType) -> None:
    """Takes 18 GB."""
    rows, half = 2**20 + 3, 1024
    x = torch.ones(rows, 2 * half, dtype=torch.bfloat16, device=DEVICE)
    x[-1] = 2.0
    tiles = fp8_triton.quantise(x)
    y = torch.empty(rows, half, dtype=torch.bfloat16, device=DEVICE)
    copy = swiglu_triton.forward_and_tiles(x, None, y)
    assert equal(copy, tiles)
    expected = torch.sigmoid(torch.tensor([1.0, 2.0])) * torch.tensor([1.0, 4.0])
    for row, value in ((0, expected[0]), (-2, expected[0]), (-1, expected[1])):
        assert y[row].eq(value.bfloat16().item()).all()
    fp8_triton.dequantise(tiles, x.zero_())
    assert x[:-1].eq(1).all() and x[-1].eq(2).all()
    swiglu_triton.backward(y, tiles, None, x.zero_(), None)
    assert x[-1].isfinite().all() and x[-1].ne(0).all() and x[-1, 0] != x[-2, 0]

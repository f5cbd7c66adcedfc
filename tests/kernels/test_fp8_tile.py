# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""FP8 tiles: their reference against a search through all E4M3 numbers, and at its edges."""

from __future__ import annotations

import pytest
import torch

from k2_megatron import optional
from k2_megatron.errors import MissingPackageError
from k2_megatron.kernels.fp8_tile.dispatch import dequantise, quantise
from k2_megatron.kernels.fp8_tile.tiles import Tiles

# (rows, cols): whole tiles, a partial last tile, less than one tile, one row.
SHAPES = [(4, 256), (3, 400), (5, 8), (1, 136)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def restored(tiles: Tiles, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    out = torch.full(tiles.values.shape, float("nan"), dtype=dtype)
    dequantise(tiles, out)
    return out


def nearest_e4m3(numbers: torch.Tensor) -> torch.Tensor:
    """Codes of the nearest E4M3 numbers, ties to the even code, found by looking at all of them."""
    codes = torch.arange(127, dtype=torch.uint8)
    known = codes.view(torch.float8_e4m3fn).double()
    distance = (numbers.abs().double()[..., None] - known).abs()
    is_nearest = distance == distance.amin(-1, keepdim=True)
    # Of two neighbours as near, the even one; there are never more.
    rank = is_nearest * 2 - is_nearest * (codes % 2)
    return codes[rank.argmax(-1)] + 128 * torch.signbit(numbers)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_tile_has_its_scale_and_the_nearest_numbers(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x = (normal(*shape) * torch.logspace(-3, 1, shape[1])).to(dtype)
    tiles = quantise(x)
    rows, cols = shape
    assert tiles.values.shape == shape and tiles.values.dtype == torch.float8_e4m3fn
    assert tiles.scales.shape == (rows, -(-cols // 128)) and tiles.scales.dtype == torch.float32
    assert tiles.values.is_contiguous() and tiles.scales.is_contiguous()
    for index, begin in enumerate(range(0, cols, 128)):
        columns = slice(begin, begin + 128)
        part = x[:, columns].float()
        amax = part.abs().amax(-1)
        # Two roundings to fp32 of half 2^-23 each, and twice that where a power of two is near.
        torch.testing.assert_close(tiles.scales[:, index], amax / 448, rtol=2.0**-22, atol=0)
        # float64 rounded to fp32 is what a division of fp32 gives, and not what PyTorch makes of
        # 448 / amax.
        inverse = (448 / amax.double()).float()
        assert torch.equal(tiles.scales[:, index], (1 / inverse.double()).float())
        nearest = nearest_e4m3(part * inverse[:, None])
        assert torch.equal(tiles.values[:, columns].view(torch.uint8), nearest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_numbers_come_back_rounded_once(dtype: torch.dtype) -> None:
    tiles = quantise(normal(6, 400).bfloat16())
    wide = torch.stack(
        [tiles.values[:, c].double() * tiles.scales[:, c // 128].double() for c in range(400)], 1
    )
    # 4 and 24 significant bits: the product is exact in float64, and fp32 rounds it before.
    assert torch.equal(restored(tiles, dtype), wide.float().to(dtype))
    assert torch.equal(restored(tiles).abs().amax(), wide.float().abs().amax())


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 1e-1, 1.0, 10.0])
def test_error_does_not_depend_on_the_size_of_activations(scale: float) -> None:
    """The unscaled cast that megatron-core makes loses half of what is as small as 1e-3."""
    x = (normal(256, 1024) * scale).bfloat16()

    def error(result: torch.Tensor) -> float:
        return float((result.double() - x.double()).norm() / x.double().norm())

    ours = error(restored(quantise(x), torch.bfloat16))
    # E4M3's spacing is 1/8 to 1/16 of a number: uniform rounding errors within it, 2.6 %.
    assert 0.024 < ours < 0.028
    # At 1e-3 half of the numbers are below E4M3's smallest, at 1e-2 all but a few are subnormal.
    unscaled = error(x.to(torch.float8_e4m3fn).to(torch.bfloat16))
    assert unscaled > {1e-3: 20, 1e-2: 2}.get(scale, 0.95) * ours


def test_a_tile_of_zeros_and_the_scale_beside_it() -> None:
    x = torch.zeros(2, 256)
    x[0, 130] = -3.0
    tiles = quantise(x)
    assert tiles.scales[0, 0] == 1 and tiles.scales[1].eq(1).all()
    torch.testing.assert_close(tiles.scales[0, 1], torch.tensor(3 / 448), rtol=2.0**-22, atol=0)
    torch.testing.assert_close(restored(tiles), x, rtol=2.0**-22, atol=0)


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
def test_a_tile_with_a_number_that_is_not_finite_comes_back_nan(bad: float) -> None:
    """A stored copy must not hide what makes a step be skipped."""
    x = normal(3, 400).bfloat16()
    clean = restored(quantise(x))
    for column in (0, 300, 399):
        dirty = x.clone()
        dirty[1, column] = bad
        result = restored(quantise(dirty), torch.bfloat16)
        tile = slice(column // 128 * 128, column // 128 * 128 + 128)
        assert result[1, tile].isnan().all()
        result[1, tile] = clean[1, tile].bfloat16()
        assert torch.equal(result, clean.bfloat16())


@pytest.mark.parametrize("size", [3e38, 1e30, 1e-30, 5e-36, 1e-37, 1e-40, 1e-45])
def test_scales_of_the_largest_and_smallest_numbers(size: float) -> None:
    """Finite and normal for every amax, so that a GPU that flushes subnormals agrees."""
    x = torch.tensor([[1.0, -0.5, 0.25, 0.0]]) * size
    tiles = quantise(x)
    result = restored(tiles)
    assert tiles.scales.isfinite().all() and tiles.scales.ge(torch.finfo(torch.float32).tiny).all()
    # 2^-126 * 2^-10 is half of the smallest number that the smallest scale can hold.
    torch.testing.assert_close(result, x, rtol=2.0**-4, atol=2.0**-136)
    assert result.isfinite().all()


def test_no_rows_leading_sizes_and_bytes() -> None:
    empty = quantise(torch.empty(0, 300, dtype=torch.bfloat16))
    assert empty.values.shape == (0, 300) and empty.scales.shape == (0, 3)
    assert restored(empty).shape == (0, 300)
    x = normal(2, 3, 256).bfloat16()
    tiles = quantise(x)
    assert tiles.values.shape == (6, 256)
    assert tiles.nbytes == 6 * 256 + 6 * 2 * 4
    out = torch.empty_like(x)
    dequantise(tiles, out)
    assert torch.equal(out.view(6, 256), restored(tiles, torch.bfloat16))


def test_what_is_quantised_stays_as_it_is_and_needs_no_gradient() -> None:
    x = normal(2, 128).requires_grad_()
    before = x.detach().clone()
    tiles = quantise(x)
    assert not tiles.scales.requires_grad and torch.equal(x.detach(), before)
    out = torch.empty(2, 128, requires_grad=True)
    dequantise(tiles, out)
    assert out.is_leaf


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(AssertionError):
        quantise(torch.zeros(8, 256)[:, ::2])
    with pytest.raises(AssertionError):
        quantise(torch.zeros(2, 2, dtype=torch.int32))
    with pytest.raises(AssertionError):
        dequantise(quantise(torch.zeros(4, 64)), torch.empty(2, 128))
    with pytest.raises(AssertionError):
        dequantise(quantise(torch.zeros(4, 64)), torch.empty(64, 4).t())


def test_transformer_engine_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "available", lambda package: False)
    with pytest.raises(MissingPackageError, match=r'"transformer_engine" needs .*\[gpu\]'):
        quantise(torch.zeros(1, 128), backend="transformer_engine")

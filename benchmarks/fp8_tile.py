# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""FP8 tiles and SwiGLU: bandwidth beside a copy, Transformer Engine and megatron-core; errors.

    python3 benchmarks/fp8_tile.py            both tables, on one GPU
    python3 benchmarks/fp8_tile.py --sweep    quantise and dequantise by tiles and warps a program
    python3 benchmarks/fp8_tile.py --quick    a rehearsal on the CPU, small; its errors are true

All sides of a shape run in turn (A B A B); medians of what CUDA events say of each call. TB/s are
the bytes that have to be read and written once, over time; the share is that of the copy of the
same bf16 matrix in the same turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

# Runs as a script: its folder is on the path.
from calls import in_turn, print_machine

from k2_megatron.kernels.fp8_tile.dispatch import dequantise, quantise
from k2_megatron.kernels.swiglu.dispatch import swiglu, swiglu_and_tiles, swiglu_backward

# Tokens of one micro-batch, each at 8 experts.
UP_INPUT, SWIGLU_INPUT = (32768, 7168), (32768, 4096)
QUICK_UP_INPUT, QUICK_SWIGLU_INPUT = (64, 896), (64, 512)
SCALES = (1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.1, 1.0, 10.0)

Sides = dict[str, tuple[float, Callable[[], object]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes on the CPU, no peers")
    parser.add_argument("--sweep", action="store_true", help="other blocks of the two kernels")
    parser.add_argument("--rounds", type=int, default=21, help="turns of each side")
    args = parser.parse_args()
    device = torch.device("cpu" if args.quick else "cuda")
    print_machine(device, "torch", "triton", "transformer-engine", "megatron-core")
    print_errors(device)
    up_input = QUICK_UP_INPUT if args.quick else UP_INPUT
    swiglu_input = QUICK_SWIGLU_INPUT if args.quick else SWIGLU_INPUT
    if args.sweep:
        sweep(up_input, args.rounds)
        return
    print_table(up_input, storage_sides(up_input, device), args.rounds, device)
    sides = storage_sides(swiglu_input, device) | swiglu_sides(swiglu_input, device)
    print_table(swiglu_input, sides, args.rounds, device)


def print_errors(device: torch.device) -> None:
    """Both ways to store normal numbers in E4M3, by their size."""
    print("relative error (Frobenius) of bf16 numbers stored in E4M3 and read back")
    print(f"{'standard deviation':>20s}{'1 x 128 tiles':>15s}{'unscaled cast':>15s}", end="")
    print(f"{'of it made 0':>14s}{'over 448':>10s}")
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(1024, 4096, generator=generator)
    for scale in SCALES:
        print(error_row(f"{scale:g}", (normal * scale).bfloat16().to(device)))
    # Large activations come in a few channels.
    normal[:, ::1024] *= 1000
    print(error_row("1, 4 channels 1000", normal.bfloat16().to(device)))


def error_row(name: str, x: torch.Tensor) -> str:
    tiled, unscaled = torch.empty_like(x), x.to(torch.float8_e4m3fn).to(x.dtype)
    dequantise(quantise(x), tiled)
    lost = float((unscaled.eq(0) & x.ne(0)).float().mean())
    beyond = float(x.abs().gt(448).float().mean())
    return (
        f"{name:>20s}{relative_error(tiled, x):>15.4f}{relative_error(unscaled, x):>15.4f}"
        f"{lost:>14.2%}{beyond:>10.2%}"
    )


def relative_error(result: torch.Tensor, exact: torch.Tensor) -> float:
    return float((result.double() - exact.double()).norm() / exact.double().norm())


def storage_sides(shape: tuple[int, int], device: torch.device) -> Sides:
    """Bytes and call of each way to store a matrix."""
    torch.manual_seed(0)
    x = torch.randn(shape, device=device).bfloat16()
    out, tiles = torch.empty_like(x), quantise(x)
    stored = x.nbytes + tiles.nbytes
    sides: Sides = {
        "copy": (2.0 * x.nbytes, lambda: out.copy_(x)),
        "quantise": (stored, lambda: quantise(x)),
        "dequantise": (stored, lambda: dequantise(tiles, out)),
    }
    if device.type == "cuda":
        try:
            theirs = transformer_engine(x)
        except ImportError:
            return sides
        sides["  Transformer Engine"] = (
            stored,
            lambda: quantise(x, backend="transformer_engine"),
        )
        sides["  its dequantise"] = (stored, lambda: theirs.dequantize(dtype=torch.bfloat16))
    return sides


def transformer_engine(x: torch.Tensor) -> Any:
    """Its own FP8 tensor with the scales of ours, laid out as it lays them out by default."""
    from transformer_engine.pytorch import Float8BlockQuantizer
    from transformer_engine.pytorch.constants import TE_DType

    return Float8BlockQuantizer(
        TE_DType[torch.float8_e4m3fn],
        rowwise=True,
        columnwise=False,
        force_pow_2_scales=False,
        block_scaling_dim=1,
    )(x)


def swiglu_sides(shape: tuple[int, int], device: torch.device) -> Sides:
    """Bytes and call of each SwiGLU on an input of this shape, with weights."""
    rows, cols = shape
    x = torch.randn(shape, device=device).bfloat16()
    dy = torch.randn(rows, cols // 2, device=device).bfloat16()
    probs = torch.rand(rows, device=device)
    out, tiles = torch.empty_like(dy), quantise(x)
    forward, backward = float(x.nbytes + dy.nbytes), float(2 * x.nbytes + dy.nbytes)
    saved = x.nbytes - tiles.nbytes
    sides: Sides = {
        "SwiGLU": (forward, lambda: swiglu(x, probs, out=out)),
        "SwiGLU, writes tiles": (forward + tiles.nbytes, lambda: swiglu_and_tiles(x, probs)),
        "SwiGLU from tiles": (forward - saved, lambda: swiglu(tiles, probs, out=out)),
        "its backward": (backward, lambda: swiglu_backward(dy, x, probs)),
        "backward from tiles": (backward - saved, lambda: swiglu_backward(dy, tiles, probs)),
    }
    if device.type == "cuda":
        from megatron.core.fusions.fused_bias_swiglu import weighted_swiglu, weighted_swiglu_back

        column = probs.unsqueeze(-1)
        sides["  megatron-core SwiGLU"] = (forward, lambda: weighted_swiglu(x, column))
        sides["  its backward "] = (backward, lambda: weighted_swiglu_back(dy, x, column))
    return sides


def print_table(shape: tuple[int, int], sides: Sides, rounds: int, device: torch.device) -> None:
    seconds = in_turn([call for _, call in sides.values()], rounds, device)
    speeds = {
        name: bytes_ / time
        for (name, (bytes_, _)), time in zip(sides.items(), seconds, strict=True)
    }
    print(f"{' x '.join(map(str, shape)):24s}{'MB':>9s}{'ms':>9s}{'TB/s':>8s}{'of copy':>9s}")
    for (name, (bytes_, _)), time in zip(sides.items(), seconds, strict=True):
        print(
            f"{name:24s}{bytes_ / 1e6:>9.1f}{1e3 * time:>9.3f}{speeds[name] / 1e12:>8.3f}"
            f"{speeds[name] / speeds['copy']:>9.1%}"
        )


def sweep(shape: tuple[int, int], rounds: int) -> None:
    """The share of a copy's bandwidth for other sizes of what a program takes."""
    from k2_megatron.kernels.fp8_tile import triton_kernels

    sides = storage_sides(shape, torch.device("cuda"))
    sides = {name: sides[name] for name in ("copy", "quantise", "dequantise")}
    for tiles in (8, 16, 32, 64):
        for warps in (2, 4, 8):
            triton_kernels.TILES, triton_kernels.WARPS = tiles, warps
            print(f"{tiles} tiles, {warps} warps")
            print_table(shape, sides, rounds, torch.device("cuda"))


if __name__ == "__main__":
    main()

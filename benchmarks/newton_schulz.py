# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Newton-Schulz on Kimi K2's matrices beside emerging-optimizers, which megatron-core calls.

    python3 benchmarks/newton_schulz.py            the table, on one GPU
    python3 benchmarks/newton_schulz.py --tiles    the symmetric product by tile
    python3 benchmarks/newton_schulz.py --quick    a rehearsal on the CPU, small and without peer

Input and result are fp32 on both sides, five steps of K2's coefficients. The sides run in turn
(A B A B); medians of what CUDA events say of each call. TFLOP/s count what a dense product would
need, n * steps * (4 r r c + 2 r r r) FLOPs with r <= c, whatever is computed. Errors are relative
Frobenius norms against float64, of the first matrix. Memory is the peak above the input.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

# Runs as a script: its folder is on the path.
from calls import in_turn, print_machine, product_flops

from k2_megatron.kernels.newton_schulz.dispatch import orthogonalise
from k2_megatron.kernels.newton_schulz.reference import K2_COEFFICIENTS, newton_schulz_plain

if TYPE_CHECKING:
    from k2_megatron.kernels.newton_schulz.symmetric import Tile

Orthogonaliser = Callable[[torch.Tensor], torch.Tensor]

STEPS = 5

# One layer's share on one rank of 16-way expert parallelism: number, rows, columns.
SHAPES = {
    "experts, gate or up": (24, 2048, 7168),
    "experts, down": (24, 7168, 2048),
    "q_up nope": (1, 8192, 1536),
    "q_up rope": (1, 4096, 1536),
    "q_down": (1, 1536, 7168),
    "kv_down latent": (1, 512, 7168),
    "kv_down rope": (1, 64, 7168),
    "kv_up k, v": (2, 8192, 512),
    "out": (1, 7168, 8192),
    "router": (1, 384, 7168),
    "dense gate, up": (2, 18432, 7168),
    "dense down": (1, 7168, 18432),
}
QUICK_SHAPES = {"wide": (3, 64, 224), "tall": (3, 224, 64), "square": (1, 96, 96)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes on the CPU, no peer")
    parser.add_argument("--tiles", action="store_true", help="measure the symmetric product alone")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    args = parser.parse_args()
    device = torch.device("cpu" if args.quick else "cuda")
    torch.set_float32_matmul_precision("medium")  # what lets the peer compute in bfloat16
    peer = None if args.quick else find_peer()
    print_machine(device, "torch", "triton", "emerging-optimizers")
    if device.type == "cuda":
        print_peak(device)
    if args.tiles:
        measure_tiles(args.rounds)
        return
    print(
        f"{'':20s}{'n x rows x cols':>18s}{'peer':>9s}{'loop':>9s}{'ours':>9s}{'ratio':>7s}"
        f"{'TFLOP/s':>9s}{'peer err':>19s}{'our err':>19s}{'GiB peer':>9s}{'ours':>6s}"
    )
    print(f"{'':38s}{'ms':>9s}{'ms':>9s}{'ms':>9s}{'':16s}{'normal, low rank':>19s}", end="")
    print(f"{'normal, low rank':>19s}")
    for name, shape in (QUICK_SHAPES if args.quick else SHAPES).items():
        print(row(name, shape, peer, args.rounds, device), flush=True)
    if peer is None:
        print("peer: emerging_optimizers is not there" + (" (--quick)" if args.quick else ""))


def find_peer() -> Orthogonaliser | None:
    """emerging-optimizers' Newton-Schulz with K2's coefficients, None where it is absent."""
    try:
        from emerging_optimizers.orthogonalized_optimizers.muon_utils import newton_schulz
    except ImportError:
        return None
    return lambda matrices: newton_schulz(matrices, STEPS, "simple")


def print_peak(device: torch.device) -> None:
    """What a large product of the machine's own library reaches."""
    print(f"bf16 product of two 8192 x 8192: {product_flops(device) / 1e12:.0f} TFLOP/s")


def row(
    name: str,
    shape: tuple[int, int, int],
    peer: Orthogonaliser | None,
    rounds: int,
    device: torch.device,
) -> str:
    """One line of the table."""
    n, rows, cols = shape
    small, large = sorted((rows, cols))
    flops = n * STEPS * (4 * small**2 * large + 2 * small**3)
    # Short calls vary more and cost nothing.
    rounds = rounds if flops > 1e12 else 4 * rounds
    torch.manual_seed(0)
    normal = torch.randn(shape, device=device)
    sides: list[Callable[[], object]] = [lambda: orthogonalise(normal)]
    if peer is not None:
        sides.append(lambda: peer(normal))
        if n > 1:
            sides.append(lambda: [peer(matrix) for matrix in normal])
    seconds = in_turn(sides, rounds, device)
    ours, *theirs = (f"{1e3 * value:9.3f}" for value in seconds)
    batched, loop = (*theirs, *["        -"] * 2)[:2]
    ratio = f"{seconds[0] / seconds[1]:7.2f}" if theirs else "      -"
    memory = [peak_gib(side, device) for side in sides[:2]]
    kinds = [normal[:1], nearly_low_rank(normal[:1])]
    return (
        f"{name:20s}{' x '.join(map(str, shape)):>18s}{batched}{loop}{ours}{ratio}"
        f"{flops / seconds[0] / 1e12:9.1f}"
        f"{'-' if peer is None else ', '.join(errors(peer, kinds)):>19s}"
        f"{', '.join(errors(orthogonalise, kinds)):>19s}"
        f"{memory[-1] if theirs else '-':>9s}{memory[0]:>6s}"
    )


def nearly_low_rank(normal: torch.Tensor) -> torch.Tensor:
    """Rank 64 (a few for small ones) and a tenth of noise."""
    n, rows, cols = normal.shape
    rank = min(64, rows // 4, cols // 4)
    left = torch.randn(n, rows, rank, device=normal.device)
    right = torch.randn(n, rank, cols, device=normal.device)
    return left @ right + 0.1 * normal


def errors(side: Orthogonaliser, kinds: list[torch.Tensor]) -> list[str]:
    found = []
    for matrices in kinds:
        coefficients = (K2_COEFFICIENTS,) * STEPS
        exact = newton_schulz_plain(matrices.double(), coefficients, torch.float64)
        found.append(f"{float((side(matrices).double() - exact).norm() / exact.norm()):.4f}")
    return found


def peak_gib(side: Callable[[], object], device: torch.device) -> str:
    """What a call allocates at most, its result counted in."""
    if device.type == "cpu":
        return "-"
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    side()
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**30:.2f}"


def measure_tiles(rounds: int) -> None:
    """Time the symmetric products that one shape of each size needs, by tile."""
    from k2_megatron.kernels.newton_schulz.symmetric import LARGE, MEDIUM, SMALL

    tiles = [
        LARGE,
        replace(LARGE, num_stages=4),
        replace(LARGE, group=4),
        replace(LARGE, group=16),
        MEDIUM,
        replace(MEDIUM, num_stages=4),
        replace(MEDIUM, num_warps=8),
        SMALL,
    ]
    for shape in ((24, 2048, 7168), (1, 7168, 8192), (1, 1536, 7168)):
        products = symmetric_products(*shape)
        print(f"{' x '.join(map(str, shape))}: ms, TFLOP/s as if both halves were computed")
        print(f"{'tile; group, warps, stages':28s}" + "".join(f"{name:>20s}" for name in products))
        for tile in tiles:
            name = f"{tile.block_m} x {tile.block_n} x {tile.block_k}"
            line = f"{name}; {tile.group}, {tile.num_warps}, {tile.num_stages}"
            columns = [
                timed(flops, partial(call, tile=tile), rounds) for flops, call in products.values()
            ]
            print(f"{line:28s}" + "".join(f"{column:>20s}" for column in columns), flush=True)
        x = torch.randn(shape, device="cuda", dtype=torch.float16)
        flops = products["X Xt"][0]
        print(f"{'torch.bmm':28s}{timed(flops, lambda x=x: torch.bmm(x, x.mT), rounds):>20s}")


def timed(flops: float, call: Callable[[], object], rounds: int) -> str:
    seconds = in_turn([call], rounds, torch.device("cuda"))[0]
    return f"{1e3 * seconds:.3f} ms {flops / seconds / 1e12:6.0f}"


def symmetric_products(n: int, r: int, c: int) -> dict[str, tuple[float, Callable[..., object]]]:
    """FLOPs and call of each kind of product, on values as large as in use."""
    from k2_megatron.kernels.newton_schulz.symmetric import symmetric_product

    x = (torch.randn(n, r, c, device="cuda") * (2.0**7 / (r * c) ** 0.5)).half()
    tall = x.view(n, c, r)
    gram, out = (x.new_empty(n, r, r) for _ in range(2))
    symmetric_product(x, x, gram, alpha=2.0**-14)
    polynomial = {"addend": gram, "alpha": 2.0315, "beta": -4.7750, "gamma": 3.4445}

    def product(left: torch.Tensor, tile: Tile, **how: Any) -> None:
        symmetric_product(left, left, out, tile=tile, **how)

    long, short = 2.0 * n * r * r * c, 2.0 * n * r**3
    return {
        "X Xt": (long, partial(product, x)),
        "Xt X": (long, partial(product, tall, columns=True)),
        "c A A + b A + a I": (short, partial(product, gram, **polynomial)),
        "P A": (short, partial(product, gram)),
    }


if __name__ == "__main__":
    main()

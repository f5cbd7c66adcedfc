# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels against their references, bit for bit where the same operations run.

Triton's interpreter runs the kernels without a GPU (its bfloat16 truncates, so those cases fail):

    TRITON_INTERPRET=1 python -m pytest -m gpu tests/gpu/test_kernels.py -k "not entry"
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest
import torch

from k2_megatron.kernels.muon_update import dispatch as muon_dispatch
from k2_megatron.kernels.muon_update import reference as muon_reference
from k2_megatron.kernels.newton_schulz.dispatch import orthogonalise
from k2_megatron.kernels.newton_schulz.gram import full_product, newton_schulz_gram
from k2_megatron.kernels.newton_schulz.reference import K2_COEFFICIENTS, newton_schulz_plain

pytestmark = pytest.mark.gpu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
FIVE = (K2_COEFFICIENTS,) * 5


@pytest.fixture(scope="module")
def symmetric() -> ModuleType:
    """Imported late: Triton is absent where these tests are only collected."""
    return importlib.import_module("k2_megatron.kernels.newton_schulz.symmetric")


@pytest.fixture(scope="module")
def muon_triton() -> ModuleType:
    return importlib.import_module("k2_megatron.kernels.muon_update.triton_kernels")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def error(result: torch.Tensor, exact: torch.Tensor) -> float:
    return float((result.double() - exact).norm() / exact.norm())


# (matrices, size of the result, summed dimension): whole tiles, ragged ones, rows whose bytes the
# accelerator cannot read, one element.
PRODUCTS = [(2, 128, 64), (2, 256, 320), (3, 384, 72), (2, 200, 136), (3, 77, 45), (1, 1, 1)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("tile", ["LARGE", "MEDIUM", "SMALL"])
@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("size", PRODUCTS, ids=str)
def test_symmetric_product(
    symmetric: ModuleType,
    size: tuple[int, int, int],
    columns: bool,
    tile: str,
    dtype: torch.dtype,
) -> None:
    """Against float64: sums in fp32, then one rounding to `dtype`."""
    n, m, k = size
    x = normal(n, *((k, m) if columns else (m, k))).to(dtype)
    limit = torch.finfo(dtype).eps
    exact, out = x.new_empty((n, m, m), dtype=torch.float64), x.new_full((n, m, m), float("nan"))
    options = {"columns": columns, "alpha": 0.5}
    full_product(x.double(), x.double(), exact, **options)  # type: ignore[arg-type]
    for descriptors in (None, False):
        out.fill_(float("nan"))
        symmetric.symmetric_product(
            x, x, out, tile=getattr(symmetric, tile), descriptors=descriptors, **options
        )
        torch.testing.assert_close(out.double(), exact, rtol=limit, atol=1e-3)
        assert torch.equal(out, out.mT)

    gram, p = out / k, torch.empty_like(out)
    options = {"addend": gram, "alpha": 2.0, "beta": -3.0, "gamma": 4.0}
    wide = gram.double()
    full_product(wide, wide, exact, **{**options, "addend": wide})  # type: ignore[arg-type]
    symmetric.symmetric_product(gram, gram, p, tile=getattr(symmetric, tile), **options)
    torch.testing.assert_close(p.double(), exact, rtol=limit, atol=1e-3)
    assert torch.equal(p, p.mT)


def test_symmetric_product_of_two_matrices_that_commute(symmetric: ModuleType) -> None:
    """P A is symmetric only but for rounding: the upper half decides, every time the same."""
    x = normal(2, 256, 320) / 20
    gram = (x @ x.mT).half()
    p = torch.empty_like(gram)
    options = {"addend": gram, "alpha": 2.0, "beta": -3.0, "gamma": 4.0}
    symmetric.symmetric_product(gram, gram, p, **options)
    results = [torch.empty_like(gram) for _ in range(3)]
    for out in results:
        symmetric.symmetric_product(p, gram, out)
    exact = p.double() @ gram.double()
    assert error(results[0], exact) < 1e-3
    assert torch.equal(results[0], results[0].mT)
    assert all(torch.equal(results[0], out) for out in results)


# K2's matrices an eighth of their size: experts, query, output and feed-forward projections; and
# sizes that no tile divides.
SHAPES = [
    (3, 256, 896),
    (3, 896, 256),
    (1, 1024, 192),
    (1, 512, 192),
    (1, 192, 896),
    (1, 64, 896),
    (1, 8, 896),
    (2, 1024, 64),
    (1, 896, 1024),
    (1, 48, 896),
    (2, 2304, 896),
    (1, 896, 2304),
    (2, 250, 333),
    (2, 333, 250),
    (2, 100, 100),
]


@pytest.mark.parametrize("kind", ["normal", "low rank"])
@pytest.mark.parametrize("shape", SHAPES if not INTERPRETED else SHAPES[-3:], ids=str)
def test_gram_form_in_triton_errs_less_than_the_published_recipe(
    symmetric: ModuleType, shape: tuple[int, int, int], kind: str
) -> None:
    matrices = normal(*shape)
    if kind == "low rank":
        matrices = normal(*shape[:2], 8, seed=1) @ normal(shape[0], 8, shape[2], seed=2)
        matrices += 0.1 * normal(*shape, seed=3)
    exact = newton_schulz_plain(matrices.double(), FIVE, torch.float64)
    recipe = error(newton_schulz_plain(matrices, FIVE, torch.bfloat16), exact)
    result = newton_schulz_gram(matrices, FIVE, torch.float16, symmetric.symmetric_product)
    assert error(result, exact) < recipe / 2


@pytest.mark.parametrize("shape", [(8, 2048, 3072), (8, 3072, 2048), (2, 512, 640)], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_entry_on_a_gpu(shape: tuple[int, int, int], given: torch.dtype) -> None:
    """By default float16, in Triton where large: near float64, zeros kept, repeatable."""
    matrices = normal(*shape).to(given)
    matrices[1] = 0
    result = orthogonalise(matrices)
    exact = newton_schulz_plain(matrices.double(), FIVE, torch.float64)
    assert result.dtype == torch.float16 and result.is_contiguous()
    assert error(result, exact) < 6e-3
    assert torch.equal(result[1], torch.zeros_like(result[1]))
    assert torch.equal(result, orthogonalise(matrices))


def test_entry_in_fp32_is_the_cpus() -> None:
    matrices = normal(2, 96, 160)
    result = orthogonalise(matrices, dtype=torch.float32)
    expected = orthogonalise(matrices.cpu(), dtype=torch.float32)
    # fp32 sums in another order; 4e-6 is the bound against float64 on the CPU.
    assert error(result.cpu(), expected.double()) < 1e-5


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EDGES = [(0, 1), (1, 8191), (3, 4099), (8, 20000), (17, 17)]


@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy ball", "nesterov"])
@pytest.mark.parametrize("kept", DTYPES[:2], ids=str)
@pytest.mark.parametrize("given", DTYPES, ids=str)
@pytest.mark.parametrize("wanted", DTYPES, ids=str)
def test_direction_bit_for_bit(
    muon_triton: ModuleType,
    nesterov: bool,
    kept: torch.dtype,
    given: torch.dtype,
    wanted: torch.dtype,
) -> None:
    """At odd offsets, and nothing beyond the edges of the slice is written."""
    start = normal(20011, seed=1).to(kept), normal(20011, seed=2).to(given)
    for begin, end in EDGES:
        results = []
        for backend in (muon_reference, muon_triton):
            momentum, gradient = start[0].clone(), start[1]
            out = torch.zeros(20011, dtype=wanted, device=DEVICE)
            backend.momentum_direction_(
                momentum[begin:end],
                gradient[begin + 5 : end + 5],
                out[begin + 2 : end + 2],
                mu=0.95,
                grad_scale=0.37,
                nesterov=nesterov,
            )
            results.append((momentum, out))
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("given", DTYPES, ids=str)
@pytest.mark.parametrize("copied", [None, torch.bfloat16, torch.float16], ids=str)
def test_update_bit_for_bit(
    muon_triton: ModuleType, given: torch.dtype, copied: torch.dtype | None
) -> None:
    start, update = normal(20011, seed=3), normal(20011, seed=4).to(given)
    for begin, end in EDGES:
        results = []
        for backend in (muon_reference, muon_triton):
            master = start.clone()
            parameter = torch.zeros(20011, dtype=copied or torch.float32, device=DEVICE)
            backend.apply_update_(
                master[begin:end],
                update[begin + 3 : end + 3],
                lr=2e-4,
                weight_decay=0.1,
                scale=0.2 * 7168**0.5,
                parameter=None if copied is None else parameter[begin + 1 : end + 1],
            )
            results.append((master, parameter))
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_runs_at_equal_distances_bit_for_bit(muon_triton: ModuleType) -> None:
    """Heads' rows: seven runs longer than a block, at odd distances."""
    start = [normal(70001, seed=seed) for seed in range(3)]
    ends = []
    for backend in (muon_reference, muon_triton):
        momentum, gradient, master = (x.clone() for x in start)
        out = torch.zeros(7, 5003, dtype=torch.bfloat16, device=DEVICE)
        parameter = torch.zeros(70001, dtype=torch.bfloat16, device=DEVICE)
        m, g, w, p = (
            x.as_strided((7, 5003), (9973, 1), 11) for x in (momentum, gradient, master, parameter)
        )
        backend.momentum_direction_(m, g, out, mu=0.95, grad_scale=0.3, nesterov=True)
        backend.apply_update_(w, out, lr=0.02, weight_decay=0.1, scale=0.2, parameter=p)
        ends.append((momentum, gradient, master, out, parameter))
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_entry_of_the_update_on_a_gpu_is_the_cpus() -> None:
    """Master weights do not depend on the device, bit for bit."""
    momentum, gradient, master = (normal(10007, seed=seed) for seed in (5, 6, 7))
    ends = []
    for device in ("cpu", DEVICE):
        m, g, w = (x.to(device, copy=True) for x in (momentum, gradient, master))
        direction = torch.empty(10007, dtype=torch.bfloat16, device=device)
        muon_dispatch.momentum_direction_(m, g, direction, mu=0.95, grad_scale=0.3, nesterov=True)
        muon_dispatch.apply_update_(
            w, direction, lr=0.02, weight_decay=0.1, scale=0.2, parameter=None
        )
        ends.append((m.cpu(), direction.cpu(), w.cpu()))
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


@pytest.mark.skipif(INTERPRETED, reason="takes 13 GB")
def test_slices_longer_than_int32(muon_triton: ModuleType) -> None:
    length = 2**31 + 5000
    gradient = torch.ones(length, dtype=torch.bfloat16, device=DEVICE)
    momentum, out = torch.zeros_like(gradient), torch.zeros_like(gradient)
    muon_triton.momentum_direction_(momentum, gradient, out, mu=0.5, grad_scale=2.0, nesterov=True)
    for result, value in ((momentum, 2.0), (out, 3.0)):
        assert result[-6000:].eq(value).all() and result[:6000].eq(value).all()

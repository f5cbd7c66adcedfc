# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Newton-Schulz on the CPU: the plain form against the singular value decomposition in float64,
the Gram form and the short dtypes against the plain form in float64."""

from __future__ import annotations

import pytest
import torch
from torch.optim import Muon, _muon

from k2_megatron.kernels.newton_schulz.dispatch import fast_dtype, orthogonalise
from k2_megatron.kernels.newton_schulz.gram import (
    full_product,
    newton_schulz_gram,
    segment_lengths,
)
from k2_megatron.kernels.newton_schulz.reference import (
    K2_COEFFICIENTS,
    Triple,
    coefficients_of_steps,
    newton_schulz_plain,
)

FIVE = (K2_COEFFICIENTS,) * 5
DIFFERENT = (
    (3.4, -4.7, 2.0),
    (3.3, -4.6, 2.1),
    (3.0, -4.0, 1.8),
    (2.5, -3.0, 1.4),
    (2.0, -1.6, 0.6),
)
SHAPES = [(2, 24, 40), (2, 40, 24), (1, 32, 32), (3, 1, 8), (3, 8, 1)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nearly_low_rank(n: int, rows: int, cols: int, noise: float) -> torch.Tensor:
    product = normal(n, rows, 8, seed=1) @ normal(n, 8, cols, seed=2)
    return product + noise * normal(n, rows, cols, seed=3)


def by_svd(matrices: torch.Tensor, coefficients: tuple[Triple, ...]) -> torch.Tensor:
    """What the iteration does to singular values, done to them one by one."""
    u, s, vt = torch.linalg.svd(matrices, full_matrices=False)
    s = s / (s.norm(dim=1, keepdim=True) + 1e-7)
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return u * s[:, None, :] @ vt


def error(result: torch.Tensor, exact: torch.Tensor) -> float:
    return float((result.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("coefficients", [FIVE, DIFFERENT, FIVE[:1]], ids=["k2", "each", "one"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_plain_form_changes_singular_values_only(
    shape: tuple[int, int, int], coefficients: tuple[Triple, ...]
) -> None:
    matrices = normal(*shape).double()
    result = newton_schulz_plain(matrices, coefficients, torch.float64)
    # Float64 rounding, times the growth of small singular values, a^5 = 485.
    torch.testing.assert_close(result, by_svd(matrices, coefficients), rtol=0, atol=1e-12)


def test_singular_values_end_near_one() -> None:
    """Where the polynomial of K2's coefficients takes all that begin above 0.01."""
    values = torch.linalg.svdvals(orthogonalise(normal(4, 48, 80), dtype=torch.float32))
    assert values.min() > 0.68 and values.max() < 1.21


# Twice what was measured on these matrices; rounding grows with neither size nor batch.
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 4e-6), (torch.bfloat16, 2.5e-2), (torch.float16, 3e-3)]
)
@pytest.mark.parametrize("shape", [(2, 128, 320), (2, 320, 128), (2, 128, 128)], ids=str)
def test_error_of_plain_form_against_float64(
    shape: tuple[int, int, int], dtype: torch.dtype, limit: float
) -> None:
    matrices = normal(*shape)
    exact = newton_schulz_plain(matrices.double(), FIVE, torch.float64)
    assert error(newton_schulz_plain(matrices, FIVE, dtype), exact) < limit


@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (64, 64)], ids=str)
def test_plain_form_is_pytorchs(shape: tuple[int, int]) -> None:
    """torch.optim.Muon's iteration in bfloat16, which rounds the norm to bfloat16 too."""
    defaults = Muon([torch.zeros(2, 2, requires_grad=True)]).defaults
    assert defaults["ns_coefficients"] == K2_COEFFICIENTS and defaults["ns_steps"] == 5
    matrix = normal(*shape)
    theirs = _muon._zeropower_via_newtonschulz(matrix, K2_COEFFICIENTS, 5, 1e-7)
    ours = orthogonalise(matrix[None], dtype=torch.bfloat16)[0]
    assert error(ours, theirs.double()) < 2e-2


@pytest.mark.parametrize("steps", range(1, 8))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gram_form_is_the_plain_form(shape: tuple[int, int, int], steps: int) -> None:
    matrices = normal(*shape).double()
    coefficients = (DIFFERENT + FIVE)[:steps]
    plain = newton_schulz_plain(matrices, coefficients, torch.float64)
    gram = newton_schulz_gram(matrices, coefficients, torch.float64)
    # Float64 rounding of A relative to 1, times a^2 a step: 12^3 within a segment.
    torch.testing.assert_close(gram, plain, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "matrices",
    [
        normal(2, 128, 448),
        normal(2, 448, 128),
        normal(2, 128, 128),
        nearly_low_rank(2, 128, 448, 0.1),
        nearly_low_rank(2, 128, 448, 1e-3),
        normal(2, 128, 448) * torch.logspace(-5, 0, 128)[None, :, None],
    ],
    ids=["wide", "tall", "square", "noisy low rank", "low rank", "rows of many sizes"],
)
def test_gram_form_in_float16_errs_less_than_the_published_recipe(matrices: torch.Tensor) -> None:
    exact = newton_schulz_plain(matrices.double(), FIVE, torch.float64)
    recipe = error(newton_schulz_plain(matrices, FIVE, torch.bfloat16), exact)
    assert error(newton_schulz_gram(matrices, FIVE, torch.float16), exact) < recipe / 2


@pytest.mark.parametrize("form", [newton_schulz_plain, newton_schulz_gram])
def test_float16_keeps_rows_that_are_small_beside_others(form) -> None:  # type: ignore[no-untyped-def]
    """Entries near 5e-7, for which unscaled float16 has three bits."""
    matrices = normal(1, 64, 448)
    matrices[:, 1:] *= 1e-5
    exact = newton_schulz_plain(matrices.double(), FIVE, torch.float64)
    result = form(matrices, FIVE, torch.float16)
    assert error(result[:, 1:], exact[:, 1:]) < 1e-2


def test_five_steps_in_one_segment_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why X is folded on the way."""
    matrices = nearly_low_rank(2, 128, 448, 0.1)
    exact = newton_schulz_plain(matrices.double(), FIVE, torch.float64)
    folded = error(newton_schulz_gram(matrices, FIVE, torch.float16), exact)
    monkeypatch.setattr("k2_megatron.kernels.newton_schulz.gram.MAX_SEGMENT", 5)
    assert segment_lengths(5) == [5]
    assert error(newton_schulz_gram(matrices, FIVE, torch.float16), exact) > 5 * folded


def test_segments() -> None:
    assert [segment_lengths(steps) for steps in (1, 3, 4, 5, 7)] == [
        [1],
        [3],
        [2, 2],
        [3, 2],
        [3, 2, 2],
    ]


def test_gram_form_asks_only_for_symmetric_products() -> None:
    """Each is symmetric but for rounding, so a kernel may compute one half and mirror it."""

    def mirrored(left, right, out, **options):  # type: ignore[no-untyped-def]
        full_product(left, right, out, **options)
        torch.testing.assert_close(out, out.mT, rtol=0, atol=1e-10)
        out.copy_(out.triu() + out.triu(1).mT)

    for shape in SHAPES:
        matrices = normal(*shape).double()
        plain = newton_schulz_plain(matrices, FIVE, torch.float64)
        gram = newton_schulz_gram(matrices, FIVE, torch.float64, mirrored)
        torch.testing.assert_close(gram, plain, rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", [newton_schulz_plain, newton_schulz_gram])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_matrix_gives_zeros(form, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    matrices = normal(3, 16, 24)
    matrices[1] = 0
    result = form(matrices, FIVE, dtype)
    assert torch.equal(result[1], torch.zeros(16, 24))
    assert result[[0, 2]].isfinite().all() and result[[0, 2]].abs().sum() > 0


@pytest.mark.parametrize("form", [newton_schulz_plain, newton_schulz_gram])
@pytest.mark.parametrize("factor", [1e-4, 1e6])
def test_size_of_the_matrix_does_not_matter(form, factor: float) -> None:  # type: ignore[no-untyped-def]
    matrices = normal(2, 32, 48)
    result = form(matrices * factor, FIVE, torch.float16)
    # The rounding of another significand; and 1e-7 beside a norm of 4e-3.
    assert error(result, form(matrices, FIVE, torch.float16).double()) < 5e-3


@pytest.mark.parametrize("form", [newton_schulz_plain, newton_schulz_gram])
def test_batch_is_its_matrices(form) -> None:  # type: ignore[no-untyped-def]
    matrices = normal(5, 24, 40).double()
    singly = torch.cat([form(matrix[None], FIVE, torch.float64) for matrix in matrices])
    torch.testing.assert_close(form(matrices, FIVE, torch.float64), singly, rtol=0, atol=1e-12)


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, None])
def test_entry_gives_the_compute_dtype_and_keeps_its_input(
    given: torch.dtype, dtype: torch.dtype | None
) -> None:
    stored = normal(2, 40, 24).to(given)
    view = stored.mT
    before = stored.clone()
    result = orthogonalise(view, dtype=dtype)
    assert result.dtype == (dtype or torch.bfloat16)
    assert result.shape == view.shape and result.is_contiguous()
    assert torch.equal(stored, before)
    # Another order of summation in the norm, which may round everything else differently.
    assert error(result, orthogonalise(view.contiguous(), dtype=dtype).double()) < 1e-2


def test_entry_takes_the_form_that_the_dtype_names(monkeypatch: pytest.MonkeyPatch) -> None:
    # Between the work of the large and of the small matrix below.
    monkeypatch.setattr("k2_megatron.kernels.newton_schulz.dispatch.MIN_GRAM_FLOPS", 1.1e6)
    large, small = normal(1, 32, 40), normal(1, 40, 31)
    for matrices, dtype, form in [
        (large, torch.float16, newton_schulz_gram),
        (small, torch.float16, newton_schulz_plain),
        (large, torch.bfloat16, newton_schulz_plain),
        (large, torch.float32, newton_schulz_plain),
    ]:
        result = orthogonalise(matrices, dtype=dtype)
        assert torch.equal(result, form(matrices, FIVE, dtype))


def test_fast_dtype() -> None:
    assert fast_dtype(torch.device("cpu")) == torch.bfloat16
    assert fast_dtype(torch.device("cuda")) == torch.float16


def test_coefficients_of_steps() -> None:
    assert coefficients_of_steps([1, 2, 3], 2) == ((1, 2, 3), (1, 2, 3))
    assert coefficients_of_steps(DIFFERENT, 5) == DIFFERENT
    with pytest.raises(AssertionError, match="5 triples of coefficients for 3 steps"):
        coefficients_of_steps(DIFFERENT, 3)
    matrices = normal(1, 8, 12)
    each = orthogonalise(matrices, steps=5, coefficients=DIFFERENT, dtype=torch.float32)
    assert torch.equal(each, newton_schulz_plain(matrices, DIFFERENT, torch.float32))

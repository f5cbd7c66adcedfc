# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The elementwise halves of a Muon step: their reference against float64 and by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from k2_megatron.kernels.muon_update.dispatch import apply_update_, momentum_direction_


def normal(length: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy ball", "nesterov"])
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_direction_against_float64(
    nesterov: bool, kept: torch.dtype, given: torch.dtype, wanted: torch.dtype
) -> None:
    momentum, gradient = normal(1000, 0, kept), normal(1000, 1, given)
    out = torch.empty(1000, dtype=wanted)
    scaled = gradient.double() * 0.3
    exact = momentum.double() * 0.95 + scaled
    direction = scaled + 0.95 * exact if nesterov else exact
    before = gradient.clone()
    momentum_direction_(momentum, gradient, out, mu=0.95, grad_scale=0.3, nesterov=nesterov)
    # One rounding to the stored dtype; four to fp32 of numbers up to 4.
    for result, expected in ((momentum, exact), (out, direction)):
        rtol = torch.finfo(result.dtype).eps / 2 + 1e-7
        torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=1e-6)
    assert torch.equal(gradient, before)


def test_direction_takes_the_momentum_before_it_is_rounded() -> None:
    momentum = torch.zeros(1, dtype=torch.bfloat16)
    gradient, out = torch.tensor([1 + 2.0**-12]), torch.empty(1)
    momentum_direction_(momentum, gradient, out, mu=0.5, grad_scale=1.0, nesterov=False)
    assert momentum.item() == 1.0
    assert out.item() == 1 + 2.0**-12


def test_direction_may_overwrite_the_gradient() -> None:
    momentum, gradient = normal(100, 0), normal(100, 1)
    apart = torch.empty(100)
    options = {"mu": 0.9, "grad_scale": 0.5, "nesterov": True}
    momentum_direction_(momentum.clone(), gradient, apart, **options)  # type: ignore[arg-type]
    momentum_direction_(momentum, gradient, gradient, **options)  # type: ignore[arg-type]
    assert torch.equal(gradient, apart)


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("copied", [None, torch.bfloat16, torch.float16])
def test_update_against_float64(given: torch.dtype, copied: torch.dtype | None) -> None:
    master, update = normal(1000, 2), normal(1000, 3, given)
    parameter = None if copied is None else torch.empty(1000, dtype=copied)
    exact = master.double() - 0.02 * (0.2 * update.double() + 0.1 * master.double())
    apply_update_(master, update, lr=0.02, weight_decay=0.1, scale=0.2, parameter=parameter)
    # One rounding of the result; the change is a hundredth of it.
    torch.testing.assert_close(master.double(), exact, rtol=2e-7, atol=1e-9)
    if parameter is not None:
        assert torch.equal(parameter, master.to(parameter.dtype))


def test_cutting_the_slices_changes_no_bit() -> None:
    """Slices of a sharded optimizer begin anywhere; the tensors beside them stay as they are."""
    length, cuts = 257, [0, 1, 64, 101, 257]
    start = [normal(length, seed) for seed in range(3)]
    whole, cut = [[x.clone() for x in start] for _ in range(2)]
    outs = [torch.empty(length, dtype=torch.bfloat16) for _ in range(2)]
    parameters = [torch.empty(length, dtype=torch.bfloat16) for _ in range(2)]
    for (momentum, gradient, master), out, parameter, edges in zip(
        (whole, cut), outs, parameters, ([0, length], cuts), strict=True
    ):
        for begin, end in pairwise(edges):
            at = slice(begin, end)
            momentum_direction_(
                momentum[at], gradient[at], out[at], mu=0.95, grad_scale=0.7, nesterov=True
            )
            apply_update_(
                master[at],
                out[at],
                lr=0.1,
                weight_decay=0.1,
                scale=0.2,
                parameter=parameter[at],
            )
    for one, other in zip(
        (*whole, outs[0], parameters[0]), (*cut, outs[1], parameters[1]), strict=True
    ):
        assert torch.equal(one, other)


def test_runs_at_equal_distances_are_slices_one_by_one() -> None:
    """Rows of attention heads: three runs of 5 elements, 9 apart; what lies between stays."""
    start = [normal(40, seed) for seed in range(3)]
    together, apart = [[x.clone() for x in start] for _ in range(2)]
    outs = [torch.zeros(3, 5, dtype=torch.bfloat16) for _ in range(2)]
    parameters = [torch.zeros(40, dtype=torch.bfloat16) for _ in range(2)]

    def update(
        momentum: torch.Tensor,
        gradient: torch.Tensor,
        master: torch.Tensor,
        out: torch.Tensor,
        parameter: torch.Tensor,
    ) -> None:
        momentum_direction_(momentum, gradient, out, mu=0.95, grad_scale=0.7, nesterov=True)
        apply_update_(master, out, lr=0.1, weight_decay=0.1, scale=0.2, parameter=parameter)

    def runs(x: torch.Tensor) -> torch.Tensor:
        return x.as_strided((3, 5), (9, 1), 4)

    momentum, gradient, master = together
    update(runs(momentum), runs(gradient), runs(master), outs[0], runs(parameters[0]))
    momentum, gradient, master = apart
    for run in range(3):
        at = slice(4 + 9 * run, 9 + 9 * run)
        update(momentum[at], gradient[at], master[at], outs[1][run], parameters[1][at])
    for one, other in zip(
        (*together, outs[0], parameters[0]), (*apart, outs[1], parameters[1]), strict=True
    ):
        assert torch.equal(one, other)


def test_empty_slices() -> None:
    empty = torch.empty(0)
    momentum_direction_(empty, empty, empty, mu=0.9, grad_scale=1.0, nesterov=True)
    apply_update_(empty, empty, lr=0.1, weight_decay=0.1, scale=1.0, parameter=None)


def test_slices_that_do_not_fit_are_refused() -> None:
    with pytest.raises(AssertionError):
        apply_update_(
            torch.zeros(4), torch.zeros(1), lr=0.1, weight_decay=0.1, scale=1.0, parameter=None
        )
    with pytest.raises(AssertionError):
        momentum_direction_(
            torch.zeros(4),
            torch.zeros(8)[::2],
            torch.zeros(4),
            mu=0.9,
            grad_scale=1.0,
            nesterov=True,
        )

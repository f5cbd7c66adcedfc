# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Empty a tensor's storage between forward and backward, and fill it again in time.

Whatever saved the tensor, or a view of it, for backward holds the same storage, so it finds the
numbers again without knowing that they were gone. Saved-tensor hooks would do the same by handing
out another tensor, but under them a Parameter comes back without its attributes, and the fused
accumulation of weight gradients is silently lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def owns_storage(tensor: Tensor) -> bool:
    """Whether the tensor is the whole of its storage, so that emptying it takes nothing else."""
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes


def empty(tensor: Tensor) -> None:
    """Give the memory of a tensor back; shape and views stay.

    The tensor must not be a parameter, nor part of another's storage.
    """
    assert owns_storage(tensor) and not isinstance(tensor, torch.nn.Parameter)
    tensor.untyped_storage().resize_(0)


def allocate(tensor: Tensor) -> Tensor:
    """Give an emptied tensor memory again.

    Returns:
        The tensor under a version counter of its own: writing to it is no change in the eyes of
        autograd, which saved the same numbers before.
    """
    tensor.untyped_storage().resize_(tensor.nbytes)
    return tensor.data


class EmptyUntil:
    """Tensors whose storage is empty until the gradient of a later tensor is there.

    Args:
        tensors: whose storage is emptied now.
        until: a tensor computed from them. Backward reaches it before anything reads `tensors`;
            it must require a gradient.
        fill: given the tensors, still empty, calls `allocate` and writes their numbers: as late as
            it can, because both take memory. It is called once, without gradients, and then
            dropped with all it holds.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        *,
        until: Tensor,
        fill: Callable[[list[Tensor]], None],
    ) -> None:
        assert until.requires_grad, "without backward there is nothing to keep"
        self._tensors: list[Tensor] | None = [tensor.detach() for tensor in tensors]
        self._fill: Callable[[list[Tensor]], None] | None = fill
        for tensor in self._tensors:
            empty(tensor)
        until.register_hook(self._on_gradient)  # type: ignore[no-untyped-call]

    def _on_gradient(self, gradient: Tensor) -> None:
        # The hook lives as long as the graph; what it holds must not.
        tensors, fill = self._tensors, self._fill
        self._tensors = self._fill = None
        assert tensors is not None and fill is not None, "backward a second time"
        with torch.no_grad():
            fill(tensors)

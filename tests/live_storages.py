# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Count the storages that some operations made and that are still alive.

Autograd holds what it saved out of Python's sight; but every storage is made by an operation that a
dispatch mode sees, and a weak reference tells whether it is still there, and how large.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveStorages(TorchDispatchMode):
    """A context in which storages are watched."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, tuple[StorageWeakRef, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if _is(one)}
        for one in tree_leaves(out):
            if _is(one) and one.untyped_storage()._cdata not in known:
                ref = StorageWeakRef(one.untyped_storage())
                self._seen[ref.cdata] = (ref, f"{func} {one.dtype} {tuple(one.shape)}")
        return out

    def alive(self) -> list[tuple[str, int]]:
        """(operation with dtype and shape, bytes) of everything that is alive and not empty."""
        gc.collect()
        found = []
        for ref, what in self._seen.values():
            storage = torch.UntypedStorage._new_with_weak_ptr(ref.cdata)
            if storage is not None and storage.nbytes():
                found.append((what, storage.nbytes()))
        return found


def _is(value: Any) -> bool:
    return isinstance(value, torch.Tensor)

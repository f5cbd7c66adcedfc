# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Python's garbage collector, at moments that all ranks share."""

from __future__ import annotations

import gc

EVERY_STEPS = 50


class GarbageCollection:
    """Collects between steps, in place of whenever a rank happens to have allocated enough.

    A collection stops the host for some tens of milliseconds; where each rank has its own moments,
    all wait for each of them in turn.
    """

    def __enter__(self) -> GarbageCollection:
        """Forget about what was built before: it lives as long as the run."""
        gc.collect()
        gc.freeze()
        gc.disable()
        return self

    def __exit__(self, *exception: object) -> None:
        """Back to Python's own ways."""
        gc.enable()
        gc.unfreeze()

    def after(self, step: int) -> None:
        """Collect young objects when the time has come; call after every step."""
        if step % EVERY_STEPS == 0:
            gc.collect(1)

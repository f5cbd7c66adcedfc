# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Where the numbers of a tensor are while its own storage is empty: an FP8 copy."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from k2_megatron.kernels.fp8_tile.dispatch import dequantise, quantise
from k2_megatron.kernels.fp8_tile.tiles import Tiles


class Fp8Handle:
    """An FP8 copy, dropped once it is read."""

    def __init__(self, tiles: Tiles) -> None:
        self._tiles: Tiles | None = tiles

    def restore(self, into: Tensor) -> None:
        """Write the dequantised numbers into a contiguous tensor of the same shape.

        Called once, in backward, on the stream that reads `into` next.
        """
        assert self._tiles is not None, "restored twice"
        dequantise(self._tiles, into)
        self._tiles = None


class Fp8Store:
    """E4M3 in tiles of 1 x 128 on the tensor's own device.

    Args:
        take: told of the tensors of each copy, which may be away until it is restored; None:
            nobody is.
    """

    def __init__(self, take: Callable[[Tensor], None] | None = None) -> None:
        self._take = take

    def keep(self, tensor: Tensor) -> Fp8Handle:
        """Quantise a contiguous tensor, [..., cols].

        When it returns, the tensor's storage may be given back to the allocator by the current
        stream.
        """
        return Fp8Handle(self.announce(quantise(tensor)))

    def announce(self, tiles: Tiles) -> Tiles:
        """Tell of a copy that somebody else made and keeps."""
        if self._take is not None:
            self._take(tiles.values)
            self._take(tiles.scales)
        return tiles

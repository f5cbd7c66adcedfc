# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""QK-Clip (K2 report, section 2.1): shrink the query and key rows of heads whose logits run away.

With S a head's largest logit of the step and gamma = tau / S where S > tau: the content rows of
q_up and kv_up take sqrt(gamma), the rotary rows of q_up take gamma, and the rotary key, which all
heads share, and the values stay. Every logit of the head is then multiplied by gamma.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from k2_megatron.offload.state import HostState
from k2_megatron.parallel.geometry import ParameterGeometry
from k2_megatron.parallel.muonclip.shards import OwnedShard
from k2_megatron.parallel.rectangles import row_rectangles

# Exponent of gamma by the end of a canonical name.
_EXPONENTS = {".q_up.nope": 0.5, ".q_up.rope": 1.0, ".kv_up.k": 0.5, ".kv_up.v": 0.0}


@dataclass(frozen=True, kw_only=True)
class _ClippedShard:
    """The rows that one shard touches. heads, exponents: [rows]; the layer's row of gamma."""

    shard: OwnedShard
    layer: int
    heads: torch.Tensor
    exponents: torch.Tensor


class QKClip:
    """Scales this rank's shards of q_up and kv_up."""

    def __init__(
        self,
        shards: Sequence[OwnedShard],
        host: HostState,
        *,
        threshold: float,
        num_decoder_layers: int,
    ) -> None:
        """Find the shards.

        Args:
            shards: what this rank owns.
            host: where the state of some of them is.
            threshold: tau, 100 in K2.
            num_decoder_layers: where MTP layers begin in the table of maxima.
        """
        self._threshold, self._host = threshold, host
        self._clipped = [
            found
            for shard in shards
            if (found := _clipped_shard(shard, num_decoder_layers)) is not None
        ]

    def gammas(self, max_logits: torch.Tensor) -> torch.Tensor:
        """What each head's logits are to be multiplied with.

        Args:
            max_logits: fp32 [layers, heads]; anything that is not finite, and any maximum up to the
                threshold (so all that are not positive), gives 1.
        """
        hot = max_logits.isfinite() & (max_logits > self._threshold)
        return torch.where(hot, self._threshold / max_logits.clamp(min=self._threshold), 1.0)

    @torch.no_grad()
    def apply(self, gammas: torch.Tensor) -> None:
        """Scale the fp32 masters and round them into the parameters.

        A sweep of the host memory of its own: the step's has just written the same rows.
        """
        with self._host.sweep("qk_clip"):
            for one in self._clipped:
                factors = gammas[one.layer, one.heads] ** one.exponents
                for _, cols, (master,) in self._host.visit(one.shard.master[None]):
                    _scale_rows(one.shard, cols, master[0], factors)
                    one.shard.round_columns(cols, master)


def _scale_rows(
    shard: OwnedShard, columns: slice, master: torch.Tensor, factors: torch.Tensor
) -> None:
    """Scale elements `columns` of a shard, which are `master`, by the factors of its rows."""
    width = shard.entry.shape[1]
    first_row = shard.begin // width
    start, end = shard.begin + columns.start, shard.begin + columns.stop
    for (top, bottom), (left, right) in row_rectangles(start, end, width):
        begin = top * width + left - start
        rows = master[begin : begin + (bottom - top) * (right - left)]
        rows = rows.view(bottom - top, right - left)
        rows *= factors[top - first_row : bottom - first_row, None]


def _clipped_shard(shard: OwnedShard, num_decoder_layers: int) -> _ClippedShard | None:
    """The rows of a shard of q_up or kv_up; None for any other parameter or an empty shard."""
    if shard.master.numel() == 0 or not shard.entry.pieces[0].key.endswith(tuple(_EXPONENTS)):
        return None
    width = shard.entry.shape[1]
    rows = slice(shard.begin // width, -(-(shard.begin + shard.master.numel()) // width))
    heads, exponents = _head_and_exponent_of_rows(shard.entry)
    device = shard.gradient.device
    return _ClippedShard(
        shard=shard,
        layer=_layer(shard.entry.pieces[0].key, num_decoder_layers),
        heads=torch.tensor(heads[rows], device=device),
        exponents=torch.tensor(exponents[rows], device=device),
    )


def _head_and_exponent_of_rows(entry: ParameterGeometry) -> tuple[list[int], list[float]]:
    """Global head and exponent of every local row; each piece is one head's block."""
    heads, exponents = [], []
    for piece in entry.pieces:
        height = piece.rows[1] - piece.rows[0]
        heads += [piece.rows[0] // height] * height
        suffix = next(end for end in _EXPONENTS if piece.key.endswith(end))
        exponents += [_EXPONENTS[suffix]] * height
    return heads, exponents


def _layer(key: str, num_decoder_layers: int) -> int:
    match = re.match(r"(layers|mtp)\.(\d+)\.", key)
    assert match is not None, key
    return int(match[2]) + (num_decoder_layers if match[1] == "mtp" else 0)

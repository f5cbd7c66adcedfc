# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Routed experts: what is kept of their input, of SwiGLU's input and of its output.

One forward for Transformer Engine's grouped experts and for the CPU's, which run one by one: both
compute the up-projections of all experts, SwiGLU over all rows at once, and the down-projections.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.transformer.moe.experts import SequentialMLP, TEGroupedMLP
from torch import Tensor

from k2_megatron.kernels.store import Fp8Store
from k2_megatron.recompute.storage import EmptyUntil, allocate
from k2_megatron.recompute.swiglu import Swiglu, SwigluPolicy


@dataclass(frozen=True, kw_only=True)
class ExpertsPolicy:
    """What is done with the tensors of routed experts.

    Attributes:
        input_store: where the tokens are kept; None: on the device as they are.
        take_input: told of the tokens where they are kept as they are: they may be away until
            backward; None: nobody is.
        read_later: a context for whoever sends the tokens, or their copy, to the host: it is given
            the tensor whose gradient comes before they are read.
        rebuild_input: the tokens are emptied and sent here again.
        swiglu: of what lies between the projections.
    """

    input_store: Fp8Store | None = None
    take_input: Callable[[Tensor], None] | None = None
    read_later: Callable[[Tensor], AbstractContextManager[object]] = nullcontext
    rebuild_input: bool = False
    swiglu: SwigluPolicy = field(default_factory=SwigluPolicy)


class _Experts:
    """The forward of both kinds.

    Attributes:
        policy: set by whoever builds the model.
        make_redispatch: gives, for the forward under way, a function that fills its emptied tokens
            by sending them here again; needed where the policy rebuilds them.
    """

    policy = ExpertsPolicy()
    make_redispatch: Callable[[], Callable[[Tensor], None]] | None = None
    config: Any

    def _up(self, tokens: Tensor, counts: list[int]) -> Tensor:
        raise NotImplementedError

    def _down(self, hidden: Tensor, counts: list[int]) -> Tensor:
        raise NotImplementedError

    def forward(
        self,
        permuted_local_hidden_states: Tensor,
        tokens_per_expert: Tensor,
        permuted_probs: Tensor,
    ) -> tuple[Tensor, None]:
        """Run this rank's experts.

        Args:
            permuted_local_hidden_states: [rows, h], sorted by expert; of its own storage, which is
                emptied if the policy says so.
            tokens_per_expert: [experts], int64: their rows.
            permuted_probs: fp32 [rows], the router's weights.

        Returns:
            [rows, h], and no bias.
        """
        assert not self.config.fp8 and not self.config.moe_apply_probs_on_input
        tokens, policy = permuted_local_hidden_states, self.policy
        counts = tokens_per_expert.tolist()
        up = self._up(tokens, counts)
        gated = Swiglu(up, permuted_probs, policy.swiglu)
        output = self._down(gated.output, counts)
        if output.requires_grad:
            self._discard(tokens, up, gated, output, counts)
        return output, None

    def _discard(
        self, tokens: Tensor, up: Tensor, gated: Swiglu, output: Tensor, counts: list[int]
    ) -> None:
        """Empty what the policy says. Hooks on one tensor run in the order of their making.

        Backward comes to the down-projection, SwiGLU and the up-projection in turn: SwiGLU's
        output must be there when the gradient of `output` is, the tokens when that of `up` is,
        unless SwiGLU's input is rebuilt from them.
        """
        policy = self.policy
        early = policy.swiglu.rebuild_input
        if policy.rebuild_input:
            assert self.make_redispatch is not None, "nobody can send the tokens again"
            redispatch = self.make_redispatch()
            EmptyUntil(
                [tokens],
                until=output if early else up,
                fill=lambda tensors: redispatch(*tensors),
            )
        elif policy.input_store is not None:
            assert not early, "SwiGLU's input would be rebuilt from rounded tokens"
            with policy.read_later(up):
                handle = policy.input_store.keep(tokens)
            EmptyUntil(
                [tokens],
                until=up,
                fill=lambda tensors: handle.restore(allocate(tensors[0])),
            )
        elif policy.take_input is not None:
            with policy.read_later(output if early else up):
                policy.take_input(tokens)
        if early:
            alive = tokens.detach()

            def rebuild(_: list[Tensor]) -> None:
                gated.kept.set(self._up(alive, counts))

            EmptyUntil([], until=output, fill=rebuild)
        gated.discard_output(until=output)


class GroupedExperts(_Experts, TEGroupedMLP):  # type: ignore[misc]
    """Transformer Engine's: one grouped product for all experts, fused weight gradients kept."""

    def _up(self, tokens: Tensor, counts: list[int]) -> Tensor:
        return self.linear_fc1(tokens, counts)[0]  # type: ignore[no-any-return]

    def _down(self, hidden: Tensor, counts: list[int]) -> Tensor:
        return self.linear_fc2(hidden, counts)[0]  # type: ignore[no-any-return]


class SequentialExperts(_Experts, SequentialMLP):  # type: ignore[misc]
    """megatron-core's own linear layers, expert by expert."""

    def _up(self, tokens: Tensor, counts: list[int]) -> Tensor:
        return self._each("linear_fc1", tokens, counts)

    def _down(self, hidden: Tensor, counts: list[int]) -> Tensor:
        return self._each("linear_fc2", hidden, counts)

    def _each(self, name: str, rows: Tensor, counts: list[int]) -> Tensor:
        parts = [
            getattr(expert, name)(part)[0]
            for expert, part in zip(self.local_experts, torch.split(rows, counts), strict=True)
        ]
        return torch.cat(parts)

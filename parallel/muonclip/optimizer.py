# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""MuonClip (K2 report, section 2.1): Muon for hidden matrices, AdamW for the rest, QK-Clip.

A ZeRO-1 optimizer on megatron-core's DistributedDataParallel. One step, top to bottom: the global
norm decides whether the step counts; momentum becomes a direction; matrices that shard or tensor
boundaries cut travel to their owners, all are orthogonalised, results travel back; masters move;
QK-Clip scales the rows of hot heads; the rounded weights are gathered.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel

from k2_megatron.kernels.muon_update.dispatch import apply_update_, momentum_direction_
from k2_megatron.kernels.newton_schulz.dispatch import orthogonalise
from k2_megatron.offload.state import HostState
from k2_megatron.parallel.geometry import ParameterGeometry
from k2_megatron.parallel.max_logits import MaxLogits
from k2_megatron.parallel.muonclip.adamw import ShardedAdamW
from k2_megatron.parallel.muonclip.exchange import Exchange
from k2_megatron.parallel.muonclip.gradient_norm import GradientNorm, clip_factor
from k2_megatron.parallel.muonclip.matrices import Part, agree_on_matrices
from k2_megatron.parallel.muonclip.qk_clip import QKClip
from k2_megatron.parallel.muonclip.report import Report, describe
from k2_megatron.parallel.muonclip.rules import Assignment, LogicalMatrix
from k2_megatron.parallel.muonclip.shards import own_shards
from k2_megatron.parallel.optimizer import ShardState, StepResult
from k2_megatron.parallel.topology import Topology

# Some eight times as many 16-bit values are held at once: the batch, a round in each direction and
# Newton-Schulz's own matrices.
BATCH_ELEMENTS = 360_000_000


@dataclass(frozen=True, kw_only=True)
class MuonClipOptions:
    """Constants of the rule.

    Attributes:
        momentum, nesterov: of Muon; M = momentum M + G, and G + momentum M is orthogonalised.
        ns_steps, ns_coefficients, ns_dtype: of Newton-Schulz; dtype as in `orthogonalise`.
        momentum_dtype: of the stored momentum.
        wire_dtype: of directions that travel.
        betas, eps: of AdamW.
        clip_grad: largest global gradient norm, 0 for no clipping.
        qk_threshold: tau.
        qk_clips: scale hot heads; else they are only reported.
        host_fraction: of the state, by bytes, in host memory.
    """

    momentum: float
    nesterov: bool
    ns_steps: int
    ns_coefficients: tuple[float, float, float]
    ns_dtype: torch.dtype
    momentum_dtype: torch.dtype
    wire_dtype: torch.dtype
    betas: tuple[float, float]
    eps: float
    clip_grad: float
    qk_threshold: float
    qk_clips: bool
    host_fraction: float = 0.0

    @property
    def result_dtype(self) -> torch.dtype:
        """Of results that travel: that of Newton-Schulz where it is as wide as the wire's."""
        same_width = self.ns_dtype.itemsize == self.wire_dtype.itemsize
        return self.ns_dtype if same_width else self.wire_dtype


class MuonClip:
    """K2's optimizer over the shards of this rank."""

    def __init__(
        self,
        chunks: Sequence[DistributedDataParallel],
        parameters: Iterable[tuple[torch.nn.Parameter, ParameterGeometry]],
        assignment: Assignment,
        topology: Topology,
        options: MuonClipOptions,
        *,
        max_logits: MaxLogits | None,
        num_decoder_layers: int,
    ) -> None:
        """Shard the state and agree with the other ranks of the stage. Collective.

        Args:
            chunks: this rank's model chunks.
            parameters: their parameters with their entries in the geometry table.
            assignment: the rule of every canonical matrix.
            topology: where this rank stands.
            options: constants.
            max_logits: the recorder of attention logits; None for plain Muon.
            num_decoder_layers: of the whole model, without MTP layers.
        """
        self._chunks, self._options = list(chunks), options
        self._assignment = assignment
        self._shards, self._host = own_shards(
            chunks,
            parameters,
            assignment,
            topology,
            momentum_dtype=options.momentum_dtype,
            host_fraction=options.host_fraction,
        )
        device = self._shards[0].gradient.device
        self._norm = GradientNorm(
            [s.gradient for s in self._shards if s.counted and s.gradient.numel()], device
        )
        self._adamw = ShardedAdamW(
            [s for s in self._shards if s.momentum is None],
            self._host,
            betas=options.betas,
            eps=options.eps,
        )
        self._matrices = agree_on_matrices(
            self._shards, assignment, topology, batch_elements=BATCH_ELEMENTS
        )
        self._exchange = Exchange(
            self._matrices.placement.rounds,
            self._matrices.holdings,
            topology.tp_dp_cp.group,
            dtype=options.wire_dtype,
            result_dtype=options.result_dtype,
            device=device,
        )
        self._report = Report(
            self._matrices.placement, assignment, options.wire_dtype, topology, device
        )
        self._max_logits = max_logits
        self._qk_clip = QKClip(
            self._shards,
            self._host,
            threshold=options.qk_threshold,
            num_decoder_layers=num_decoder_layers,
        )
        self._muon_group: dict[str, Any] = {"params": [], "lr": 0.0, "weight_decay": 0.0}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Muon's group and AdamW's: the same rate and decay for both, as in Moonlight."""
        return [self._muon_group, *self._adamw.param_groups]

    @property
    def host(self) -> HostState:
        """The part of the state in host memory."""
        return self._host

    def describe(self) -> str:
        """The table of parameters and rules, the balance and the bytes, as text."""
        return describe(self._assignment, self._report)

    def zero_grad(self) -> None:
        """Forget the logits of the last step; the gradients are in the chunks' buffers."""
        if self._max_logits is not None:
            self._max_logits.reset()

    @torch.no_grad()
    def step(self) -> StepResult:
        """Clip, update and gather; a non-finite norm skips the step on all ranks. Collective."""
        self._host.begin_step()
        norm = self._norm.compute()
        if not math.isfinite(norm):
            return StepResult(grad_norm=norm, skipped=True)
        began = time.perf_counter()
        factor = clip_factor(norm, self._options.clip_grad)
        with self._host.sweep("update"):
            self._adamw.step(factor)
            self._step_muon(factor)
        gammas = logits = None
        if self._max_logits is not None:
            logits = self._max_logits.reduce()
            gammas = self._qk_clip.gammas(logits)
            if self._options.qk_clips:
                self._qk_clip.apply(gammas)
        for chunk in self._chunks:
            if not chunk.ddp_config.overlap_param_gather:
                chunk.start_param_sync()
        metrics = self._report.metrics(logits, gammas)
        return StepResult(
            grad_norm=norm,
            skipped=False,
            metrics={**metrics, "muon/seconds": time.perf_counter() - began},
        )

    def _step_muon(self, factor: float) -> None:
        """Orthogonalise once what this rank owns, in the shadow of what travels.

        While a round travels either way, a batch that stays is worked on; results of a round are
        applied after the next round has left, so that no more than two are held.
        """
        exchange, staying = self._exchange, iter(self._matrices.batches)
        sent: set[int] = set()

        def pack(number: int, out: torch.Tensor) -> None:
            sent.add(number)
            self._direction(self._matrices.travelling[number], factor, out)

        def step_one_that_stays() -> None:
            batch = next(staying, None)
            if batch is not None:
                self._step_batch(batch, factor)

        arriving = exchange.gather(0, pack) if len(exchange) else None
        returning: Callable[[], list[tuple[int, torch.Tensor]]] | None = None
        step_one_that_stays()
        for index in range(len(exchange)):
            assert arriving is not None
            batches = arriving()
            arriving = exchange.gather(index + 1, pack) if index + 1 < len(exchange) else None
            for arrived in batches:
                arrived.values = self._orthogonalise(arrived.matrices, arrived.values)
            before, returning = returning, exchange.scatter(index, batches)
            del batches
            self._apply_results(before)
            step_one_that_stays()
        for batch in staying:
            self._step_batch(batch, factor)
        self._apply_results(returning)
        for number, part in enumerate(self._matrices.travelling):
            if number not in sent:  # a copy, whose momentum moves all the same
                self._direction(part, factor, part.of(part.shard.gradient))

    def _apply_results(self, finish: Callable[[], list[tuple[int, torch.Tensor]]] | None) -> None:
        """Wait for the results of a round and move this rank's masters by them."""
        if finish is not None:
            for number, update in finish():
                self._apply(self._matrices.travelling[number], update)

    def _step_batch(self, batch: Sequence[tuple[LogicalMatrix, list[Part]]], factor: float) -> None:
        """Matrices of one shape that lie whole in this rank's shards."""
        first, some = batch[0]
        values = torch.empty(
            len(batch),
            first.rows * first.cols,
            dtype=self._options.wire_dtype,
            device=some[0].shard.gradient.device,
        )
        for row, (_, parts) in zip(values, batch, strict=True):
            for part in parts:
                self._direction(part, factor, row[_flat_place(part, first.cols)])
        update = self._orthogonalise(
            [matrix for matrix, _ in batch], values.view(-1, first.rows, first.cols)
        )
        for row, (_, parts) in zip(update.flatten(1), batch, strict=True):
            for part in parts:
                self._apply(part, row[_flat_place(part, first.cols)])

    def _direction(self, part: Part, factor: float, out: torch.Tensor) -> None:
        assert part.shard.momentum is not None
        gradient = part.of(part.shard.gradient)
        out = out.view(part.fragment.count, part.fragment.length)
        for rows, cols, (momentum,) in self._host.visit(part.of(part.shard.momentum)):
            momentum_direction_(
                momentum,
                gradient[rows, cols],
                out[rows, cols],
                mu=self._options.momentum,
                grad_scale=factor,
                nesterov=self._options.nesterov,
            )

    def _orthogonalise(
        self, matrices: Sequence[LogicalMatrix], values: torch.Tensor
    ) -> torch.Tensor:
        update = orthogonalise(
            values,
            steps=self._options.ns_steps,
            coefficients=self._options.ns_coefficients,
            dtype=self._options.ns_dtype,
        )
        self._report.add(matrices, update)
        return update

    def _apply(self, part: Part, update: torch.Tensor) -> None:
        weights = part.shard.parameter_view
        weights = None if weights is None else part.of(weights)
        update = update.view(part.fragment.count, part.fragment.length)
        for rows, cols, (master,) in self._host.visit(part.of(part.shard.master)):
            apply_update_(
                master,
                update[rows, cols],
                lr=self._muon_group["lr"],
                weight_decay=self._muon_group["weight_decay"],
                scale=self._assignment.matrices[part.fragment.matrix].scale,
                parameter=None if weights is None else weights[rows, cols],
            )

    def kinds(self, key: str) -> tuple[str, ...]:
        """Master weight, and the momentum of Muon or both moments of AdamW."""
        if self._assignment.uses_muon(key):
            return ("weight", "momentum")
        return ("weight", "exp_avg", "exp_avg_sq")

    def shard_states(self) -> list[ShardState]:
        """Masters, momenta and AdamW's moments of the shards that have elements."""
        self._host.settle()
        found = []
        for shard in self._shards:
            if not shard.master.numel():
                continue
            moments = (
                self._adamw.moments(shard)
                if shard.momentum is None
                else {"momentum": shard.momentum}
            )
            found.append(
                ShardState(
                    parameter=shard.parameter,
                    begin=shard.begin,
                    tensors={"weight": shard.master, **moments},
                )
            )
        return found

    def num_updates(self) -> int | None:
        """Updates that AdamW has made; None where this rank has none of its parameters."""
        return self._adamw.num_updates()

    @torch.no_grad()
    def loaded(self, num_updates: int) -> None:
        """Set AdamW's count, and round the masters into this rank's part of the buckets."""
        self._adamw.set_num_updates(num_updates)
        for shard in self._shards:
            shard.round_master()


def _flat_place(part: Part, cols: int) -> slice:
    """Where a part of a matrix that lies whole on one rank begins in the flattened matrix."""
    (top, _), (left, _) = part.fragment.rectangles[0]
    begin = top * cols + left
    return slice(begin, begin + part.fragment.size)

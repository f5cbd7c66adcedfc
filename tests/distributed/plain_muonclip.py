# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""All of MuonClip on one process and whole matrices, written from the reports alone.

K2 report, algorithm 1, and Moonlight (arXiv 2502.16982): nothing of the product's optimizer is used
here; the model and its gradients are.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch

from k2_megatron.config.config import Config
from k2_megatron.train.step import forward_backward
from tests.distributed.canonical import assemble
from tests.distributed.jobs import build, gradients, parameters, synthetic_batches
from tests.distributed.max_logit_jobs import PlainMaxima

Matrix = torch.Tensor
NORMS_AND_TABLES = re.compile(r"embedding|output|(.+\.)?[a-z]+_norm")
# Neighbours that `muon_split_* = false` orthogonalises as one matrix.
JOINED = {
    "muon_split_gate_up": (".gate", ".up"),
    "muon_split_q_up": (".q_up.nope", ".q_up.rope"),
    "muon_split_kv_up": (".kv_up.k", ".kv_up.v"),
    "muon_split_kv_down": (".kv_down.latent", ".kv_down.rope"),
}


@dataclass
class PlainMuonClip:
    """Weights by canonical name and what the rule remembers of them."""

    config: Config
    weights: dict[str, Matrix]
    momenta: dict[str, Matrix] = field(default_factory=dict)
    moments: dict[str, tuple[Matrix, Matrix]] = field(default_factory=dict)
    num_steps: int = 0

    def step(self, gradients: dict[str, Matrix], lr: float, maxima: dict[int, Matrix]) -> float:
        """One step; returns the norm before clipping."""
        self.num_steps += 1
        options = self.config.optimizer
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        factor = min(1.0, options.clip_grad / norm) if options.clip_grad else 1.0
        updates = {}
        for key, gradient in gradients.items():
            gradient = gradient * factor
            if self._takes_adamw(key):
                updates[key] = self._adamw(key, gradient)
            else:
                momentum = self.momenta.get(key, torch.zeros_like(gradient))
                momentum = options.muon_momentum * momentum + gradient
                self.momenta[key] = momentum
                ahead = gradient + options.muon_momentum * momentum
                updates[key] = ahead if options.muon_nesterov else momentum
        muon = {key: update for key, update in updates.items() if not self._takes_adamw(key)}
        updates |= self._orthogonalised(muon)
        for key, update in updates.items():
            self.weights[key] -= lr * (update + options.weight_decay * self.weights[key])
        if options.qk_clip == "clip":
            self._clip(maxima)
        return norm

    def _takes_adamw(self, key: str) -> bool:
        is_router = key.endswith(".router") and not self.config.optimizer.muon_router
        return is_router or NORMS_AND_TABLES.fullmatch(key) is not None

    def _adamw(self, key: str, gradient: Matrix) -> Matrix:
        options = self.config.optimizer
        first, second = self.moments.get(key, (torch.zeros_like(gradient),) * 2)
        first = options.adam_beta1 * first + (1 - options.adam_beta1) * gradient
        second = options.adam_beta2 * second + (1 - options.adam_beta2) * gradient.square()
        self.moments[key] = first, second
        unbiased = second / (1 - options.adam_beta2**self.num_steps)
        rate = 1 / (1 - options.adam_beta1**self.num_steps)
        return rate * first / (unbiased.sqrt() + options.adam_eps)

    def _orthogonalised(self, directions: dict[str, Matrix]) -> dict[str, Matrix]:
        options, found = self.config.optimizer, {}
        for key, direction in directions.items():
            heads = self.config.model.num_attention_heads
            setting = next((s for s, ends in JOINED.items() if key.endswith(ends)), None)
            if setting and not getattr(options, setting):
                first, second = JOINED[setting]
                if key.endswith(second):
                    continue
                other = key.removesuffix(first) + second
                joined = self._update(torch.cat([direction, directions[other]]))
                found[key], found[other] = joined.split([len(direction), len(directions[other])])
            elif options.muon_per_head and (".q_up." in key or ".kv_up." in key):
                found[key] = torch.cat([self._update(head) for head in direction.chunk(heads)])
            else:
                found[key] = self._update(direction)
        return found

    def _update(self, direction: Matrix) -> Matrix:
        options = self.config.optimizer
        a, b, c = options.muon_ns_coefficients
        x = direction.T if direction.shape[0] > direction.shape[1] else direction
        x = x / (x.norm() + 1e-7)
        for _ in range(options.muon_ns_steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        x = x.T if direction.shape[0] > direction.shape[1] else x
        return options.muon_update_rms * math.sqrt(max(direction.shape)) * x

    def _clip(self, maxima: dict[int, Matrix]) -> None:
        model, tau = self.config.model, self.config.optimizer.qk_clip_threshold
        for layer, heads in maxima.items():
            prefix = f"layers.{layer}"
            if layer >= model.num_layers:
                prefix = f"mtp.{layer - model.num_layers}.layer"
            for head, largest in enumerate(heads.tolist()):
                if largest <= tau:
                    continue
                gamma = tau / largest
                for key, size, factor in (
                    ("q_up.nope", model.qk_head_dim, math.sqrt(gamma)),
                    ("q_up.rope", model.qk_pos_emb_head_dim, gamma),
                    ("kv_up.k", model.qk_head_dim, math.sqrt(gamma)),
                ):
                    rows = slice(head * size, (head + 1) * size)
                    self.weights[f"{prefix}.attention.{key}"][rows] *= factor


def train(config_path: str, overrides: list[str], num_steps: int) -> dict[str, Any]:
    """Some steps of the plain rule on one process; matrices whole, by canonical name."""
    session = build(config_path, overrides)
    shapes = session.model.shapes
    rule = PlainMuonClip(session.config, assemble([parameters(session.model)], shapes))
    norms, hot = [], 0
    plain = PlainMaxima(session)
    for step in range(1, num_steps + 1):
        plain.visible.clear()
        for chunk in session.model.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        batches = synthetic_batches(session.config, session, step)
        forward_backward(session, batches, forward_only=False)
        rate = session.set_rates(step)
        found = assemble([gradients(session.model)], shapes)
        norms.append(rule.step(found, rate, plain.visible))
        tau = session.config.optimizer.qk_clip_threshold
        hot += sum(int((heads > tau).sum()) for heads in plain.visible.values())
        _write(session, rule.weights)
        session.router_bias.update()
    return {
        "parameters": rule.weights,
        "momenta": rule.momenta,
        "grad_norms": norms,
        "hot": hot,
        "shapes": shapes,
    }


def _write(session: Any, weights: dict[str, Matrix]) -> None:
    """Put whole matrices into the parameters of the one process."""
    for parameter, entry in session.model.parameters():
        local = parameter.data.view(entry.shape)
        for piece in entry.pieces:
            part = weights[piece.key][slice(*piece.rows), slice(*piece.cols)]
            local[slice(*piece.local_rows), slice(*piece.local_cols)] = part

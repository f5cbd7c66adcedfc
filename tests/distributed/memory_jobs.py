# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks of the memory tests do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from k2_megatron.kernels.fp8_tile.dispatch import dequantise, quantise
from k2_megatron.kernels.store import Fp8Store
from k2_megatron.kernels.swiglu.dispatch import swiglu, swiglu_backward
from k2_megatron.memory.policy import policy_of
from k2_megatron.planner.activations import layer_tensors
from k2_megatron.planner.job import job_of
from k2_megatron.recompute.experts import ExpertsPolicy
from k2_megatron.recompute.swiglu import SwigluPolicy
from k2_megatron.train.step import forward_backward
from tests.distributed.jobs import build, steps, synthetic_batches
from tests.live_storages import LiveStorages


def live_storages(config_path: str, overrides: list[str], grad: bool = True) -> dict[str, Any]:
    """(what, bytes) that one forward left alive, and that its backward left; the planner's table.

    The table is that of the last layer, in bytes by tensor.
    """
    session = build(config_path, overrides)
    batch = synthetic_batches(session.config, session, 1)[0]
    with LiveStorages() as live, torch.set_grad_enabled(grad):
        loss = session.model.chunks[0](
            batch["tokens"], batch["position_ids"], None, labels=batch["labels"]
        )
        alive = live.alive()
        if grad:
            loss.sum().backward()
        del loss
        session.model.chunks[0].zero_grad_buffer()
        after = live.alive()
    job = job_of(session.config, 1, on_gpu=False)
    layer = session.config.model.num_layers - 1
    table = {
        tensor.name: tensor.device_bytes(policy_of(job.policies_of(layer), tensor.name))
        for tensor in layer_tensors(job, dense=job.shape.is_dense(layer))
    }
    return {"alive": alive, "after": after, "table": table}


def left_behind(config_path: str, overrides: list[str]) -> list[tuple[str, int]]:
    """Operation and bytes of the large storages that a forward and backward leaves."""
    session = build(config_path, overrides)
    batches = synthetic_batches(session.config, session, 1)
    forward_backward(session, batches, forward_only=False)  # buffers are allocated once
    with LiveStorages() as live:
        forward_backward(session, batches, forward_only=False)
        model, schedule = session.config.model, session.config.schedule
        hidden = schedule.seq_length * model.hidden_size * 2
        return [(what, size) for what, size in live.alive() if size >= hidden]


def shared_outputs_behind_their_sum(config_path: str, overrides: list[str]) -> list[int]:
    """Bytes of every shared expert's output of a step, behind the sum that it goes into."""
    session = build(config_path, overrides)
    sizes = []

    def watch(layer: Any) -> None:
        postprocess = layer.postprocess

        def watched(output: Tensor, shared: Tensor) -> Tensor:
            result: Tensor = postprocess(output, shared)
            sizes.append(shared.untyped_storage().nbytes())
            return result

        layer.postprocess = watched

    for chunk in session.model.modules:
        for layer in chunk.decoder.layers:
            if hasattr(layer.mlp, "router"):
                watch(layer.mlp)
    steps(session, 1, 1)
    return sizes


def experts_and_plain_program(config_path: str, overrides: list[str]) -> dict[str, Any]:
    """Gradients of routed experts with FP8 storage, and of a plain program that rounds by hand."""
    session = build(config_path, overrides)
    experts = session.model.modules[0].decoder.layers[1].mlp.experts
    store = Fp8Store()
    experts.policy = ExpertsPolicy(
        input_store=store, swiglu=SwigluPolicy(input_store=store, rebuild_output=True)
    )
    counts = [5, 0, 130, 1, 7, 0, 3, 14]
    rows, hidden = sum(counts), session.config.model.hidden_size
    generator = torch.Generator().manual_seed(3)
    tokens, gradient = (torch.randn(rows, hidden, generator=generator) for _ in range(2))
    probs = torch.rand(rows, generator=generator)
    ups = [one.linear_fc1.weight for one in experts.local_experts]
    downs = [one.linear_fc2.weight for one in experts.local_experts]

    given = tokens.clone().requires_grad_(), probs.clone().requires_grad_()
    # As from a dispatcher: not a leaf, and of a storage that nobody else has.
    sent = given[0] * 1.0
    output, _ = experts(sent, torch.tensor(counts), given[1])
    emptied = sent.untyped_storage().nbytes()
    output.backward(gradient)
    found = {"output": output.detach(), "tokens": given[0].grad, "probs": given[1].grad}
    plain = _plain(tokens, probs, gradient, counts, ups, downs)
    for index, (up, down) in enumerate(zip(ups, downs, strict=True)):
        found |= {f"up {index}": up.main_grad.clone(), f"down {index}": down.main_grad.clone()}
    exact = _plain(tokens, probs, gradient, counts, ups, downs, rounded=False)
    return {"found": found, "plain": plain, "exact": exact, "emptied": emptied}


@torch.no_grad()
def _plain(
    tokens: Tensor,
    probs: Tensor,
    gradient: Tensor,
    counts: list[int],
    ups: list[Tensor],
    downs: list[Tensor],
    *,
    rounded: bool = True,
) -> dict[str, Tensor]:
    """The same without autograd, layers or storages."""

    def stored(values: Tensor) -> Tensor:
        out = torch.empty_like(values)
        dequantise(quantise(values), out)
        return out if rounded else values

    found: dict[str, Any] = {"output": [], "tokens": [], "probs": []}
    parts = [torch.split(whole, counts) for whole in (tokens, probs, gradient)]
    for index, (x, p, dy) in enumerate(zip(*parts, strict=True)):
        up = x @ ups[index].T
        found["output"].append(swiglu(up, p) @ downs[index].T)
        seen = stored(up)
        found[f"down {index}"] = dy.T @ swiglu(seen, p)
        dup, dp = swiglu_backward(dy @ downs[index], seen, p)
        found[f"up {index}"] = dup.T @ stored(x)
        found["tokens"].append(dup @ ups[index])
        found["probs"].append(dp)
    return {
        name: torch.cat(value) if isinstance(value, list) else value
        for name, value in found.items()
    }

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The memory policy of every activation, with bytes: what is installed, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from k2_megatron.memory.policy import Policy, policy_of
from k2_megatron.memory.tensors import ACTIVATIONS
from k2_megatron.planner.activations import SavedTensor, installed_policy, layer_tensors
from k2_megatron.planner.job import Job


def policy_rows(job: Job) -> list[tuple[str, str, str, str, str]]:
    """(tensor, layers, policy, bytes a token before, after), titles first, the sum last.

    Bytes are those of one layer on one rank, for a token of those that the rank has of a
    micro-batch, with evenly loaded experts. The sum is over all layers of the model.
    """
    count = job.shape.num_layers + job.shape.num_mtp_layers
    tokens = job.tokens / job.degrees.context / job.degrees.tensor
    rows = [("tensor", "layers", "policy", "bytes/token", "kept")]
    before = after = 0.0
    by_kind = {
        dense: {one.name: one for one in layer_tensors(job, dense=dense)} for dense in (True, False)
    }
    for name in ACTIVATIONS:
        groups: dict[tuple[str, float, float], list[int]] = {}
        for layer in range(count):
            dense = job.shape.is_dense(min(layer, job.shape.num_layers - 1))
            tensor = by_kind[dense].get(name)
            policy = policy_of(job.policies_of(layer), name)
            if tensor is None:
                if name == "expert_output" and not dense and policy is Policy.RECOMPUTE:
                    groups.setdefault(("satisfied: never stored", 0.0, 0.0), []).append(layer)
                continue
            what, kept = _installed(job, tensor, policy, dense=dense)
            whole = tensor.elements * tensor.width / tokens
            groups.setdefault((what, whole, kept / tokens), []).append(layer)
        for (what, whole, kept), layers in groups.items():
            rows.append((name, ranges(layers), what, f"{whole:.0f}", f"{kept:.0f}"))
            before, after = before + whole * len(layers), after + kept * len(layers)
    rows.append(("all layers", "", "", f"{before:.0f}", f"{after:.0f}"))
    return rows


def _installed(job: Job, tensor: SavedTensor, policy: Policy, *, dense: bool) -> tuple[str, float]:
    """What is done, in words, and the bytes that stay."""
    found = installed_policy(job, {tensor.name: policy}, tensor.name, dense=dense)
    norm = tensor.name == "mlp_norm_output"
    why = "one with the next product" if norm else "Transformer Engine copies it"
    words = policy.value if found is policy else f"{found.value}: {why}"
    return words, tensor.device_bytes(found)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers with runs drawn together: 0-3, 7."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found)

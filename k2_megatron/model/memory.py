# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Give every layer of a chunk what the memory policy says of its tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor

from k2_megatron.kernels.store import Fp8Store
from k2_megatron.memory.policy import Policies, Policy, policy_of
from k2_megatron.offload.engine import OffloadEngine
from k2_megatron.recompute.experts import ExpertsPolicy
from k2_megatron.recompute.mlp import empty_shared_output_behind_sum
from k2_megatron.recompute.redispatch import Redispatcher
from k2_megatron.recompute.swiglu import SwigluPolicy

Take = Callable[[Tensor], None]


def install(layer: Any, policies: Policies, offload: OffloadEngine | None = None) -> None:
    """Set a transformer layer up.

    Args:
        layer: built by the specs of `k2_megatron.model.spec`.
        policies: of its tensors; what is not named is kept.
        offload: told in forward of each tensor that host memory may hold until backward; needed
            where the policies of any layer name host memory.
    """
    take = None if offload is None else offload.take
    if offload is not None:
        _watch_attention(layer, policies, offload)

    def rebuilt(name: str) -> bool:
        return policy_of(policies, name) is Policy.RECOMPUTE

    layer.recompute_input_layernorm = rebuilt("attention_norm_output")
    # Transformer Engine's dense layers have this norm inside their up-projection.
    has_norm = any(True for _ in layer.pre_mlp_layernorm.parameters())
    layer.recompute_pre_mlp_layernorm = has_norm and rebuilt("mlp_norm_output")
    attention, mlp = layer.self_attention, layer.mlp
    tokens = policy_of(policies, "expert_input")
    attention.recompute_up_proj = rebuilt("query")
    if rebuilt("query"):
        _discard_latent_norms(attention)
    if not isinstance(mlp, MoELayer):
        mlp.policy = _swiglu_policy(policies, "dense", take)
        return
    if mlp.shared_experts is not None:
        mlp.shared_experts.policy = _swiglu_policy(policies, "shared", take)
        if mlp.config.overlap_moe_expert_parallel_comm:
            empty_shared_output_behind_sum(mlp)
    mlp.experts.policy = ExpertsPolicy(
        input_store=_store(tokens, take),
        take_input=_if_host(tokens, take),
        read_later=_read_later(tokens, offload),
        rebuild_input=rebuilt("expert_input"),
        swiglu=_swiglu_policy(policies, "expert", take),
    )
    if rebuilt("expert_input"):
        mlp.experts.make_redispatch = Redispatcher(mlp)


def _store(policy: Policy, take: Take | None) -> Fp8Store | None:
    """Where a tensor is kept that is not kept as it is."""
    if policy is Policy.FP8_HOST:
        assert take is not None, "nobody sends to the host"
        return Fp8Store(take)
    return Fp8Store() if policy is Policy.FP8 else None


def _if_host(policy: Policy, take: Take | None) -> Take | None:
    """Who is told of a tensor that travels as it is."""
    if policy is not Policy.HOST:
        return None
    assert take is not None, "nobody sends to the host"
    return take


def _read_later(
    policy: Policy, offload: OffloadEngine | None
) -> Callable[[Tensor], AbstractContextManager[object]]:
    """The context of what travels and is not read at once."""
    if not policy.travels:
        return nullcontext
    assert offload is not None, "nobody sends to the host"
    return offload.read_later


def _watch_attention(layer: Any, policies: Policies, offload: OffloadEngine) -> None:
    """Tell of each layer's begin, and of what attention and the residual path keep as it is.

    Both the plain and the overlapped schedule go through `_forward_attention`, and neither does so
    again in backward.
    """
    attention, forward, take = layer.self_attention, layer._forward_attention, offload.take
    before, behind = (
        policy_of(policies, name) is Policy.HOST for name in ("attention_input", "mlp_input")
    )

    def watched(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        offload.begin_layer(hidden)
        if before:
            take(hidden)
        output = forward(*args, **kwargs)
        offload.begin_part(output[0])
        if behind:
            take(output[0])
        return output

    def on_output(module: Any, inputs: Any, output: Any) -> None:
        take(output[0])

    def on_input(module: Any, inputs: Any) -> None:
        take(inputs[0])

    layer._forward_attention = watched
    if policy_of(policies, "query_latent") is Policy.HOST:
        attention.linear_q_down_proj.register_forward_hook(on_output)
    if policy_of(policies, "kv_latent") is Policy.HOST:
        attention.linear_kv_down_proj.register_forward_hook(on_output)
    if policy_of(policies, "attention_output") is Policy.HOST:
        attention.linear_proj.register_forward_pre_hook(on_input)


def _swiglu_policy(policies: Policies, which: str, take: Take | None) -> SwigluPolicy:
    kept = policy_of(policies, f"{which}_swiglu_input")
    return SwigluPolicy(
        input_store=_store(kept, take),
        take=_if_host(kept, take),
        rebuild_input=kept is Policy.RECOMPUTE,
        rebuild_output=policy_of(policies, f"{which}_swiglu_output") is Policy.RECOMPUTE,
    )


def _discard_latent_norms(attention: Any) -> None:
    """Throw away the outputs of the latents' norms where these are modules of their own.

    They are inputs of the up-projections' checkpoint. The hook that fills them again is made before
    that checkpoint's own, on the same tensor, and so runs before it.
    """
    found: list[Any] = [getattr(attention, "q_layernorm", None), attention.kv_layernorm]
    norms = [norm for norm in found if hasattr(norm, "discards_output")]
    for norm in norms:
        norm.discards_output = True

    def after_attention(core: Any, inputs: Any, context: Any) -> None:
        for norm in norms:
            norm.discard(until=context)

    if norms:
        attention.core_attention.register_forward_hook(after_attention)

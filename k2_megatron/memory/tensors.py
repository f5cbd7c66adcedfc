# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""K2's activations by name: in which layers each is, and what training can do with it."""

from __future__ import annotations

from dataclasses import dataclass

from k2_megatron.memory.policy import Policy
from k2_megatron.parallel.canonical import ModelShape

_KEPT = (Policy.KEEP,)
_KEPT_OR_AWAY = (Policy.KEEP, Policy.HOST)
_IN_ANY_FORM = (Policy.KEEP, Policy.FP8, Policy.HOST, Policy.FP8_HOST)
_REBUILT = (Policy.KEEP, Policy.RECOMPUTE)


@dataclass(frozen=True, kw_only=True)
class Activation:
    """A tensor that a layer may keep for backward.

    Attributes:
        what: it in words.
        policies: those that training has for it.
        where: "every layer", "dense layers", "MoE layers", "layers with a query latent" or
            "layers with a shared expert".
    """

    what: str
    policies: tuple[Policy, ...] = _KEPT
    where: str = "every layer"

    def is_in(self, shape: ModelShape, layer: int) -> bool:
        """Whether a layer has it; MTP layers are counted behind the decoder's."""
        dense = shape.is_dense(min(layer, shape.num_layers - 1))
        return {
            "every layer": True,
            "layers with a query latent": shape.q_lora_rank is not None,
            "dense layers": dense,
            "MoE layers": not dense,
            "layers with a shared expert": not dense and shape.shared_expert_size > 0,
        }[self.where]


_QUERY, _MOE, _SHARED, _DENSE = (
    "layers with a query latent",
    "MoE layers",
    "layers with a shared expert",
    "dense layers",
)

ACTIVATIONS: dict[str, Activation] = {
    "attention_input": Activation(what="the layer's input", policies=_KEPT_OR_AWAY),
    "attention_norm_output": Activation(what="input of the down-projections", policies=_REBUILT),
    "query_latent": Activation(
        what="output of the query's down-projection", policies=_KEPT_OR_AWAY, where=_QUERY
    ),
    "query_latent_norm_output": Activation(
        what="input of the query's up-projection", policies=_REBUILT, where=_QUERY
    ),
    "kv_latent": Activation(what="output of the key-value down-projection", policies=_KEPT_OR_AWAY),
    "kv_latent_norm_output": Activation(
        what="input of the key-value up-projection", policies=_REBUILT
    ),
    "query": Activation(what="queries, rotated", policies=_REBUILT),
    "key": Activation(what="keys, rotated", policies=_REBUILT),
    "value": Activation(what="values", policies=_REBUILT),
    "attention_output": Activation(what="input of the output projection", policies=_KEPT_OR_AWAY),
    "attention_statistics": Activation(what="log-sum-exp of each row of logits"),
    "mlp_input": Activation(what="the residual stream behind attention", policies=_KEPT_OR_AWAY),
    "mlp_norm_output": Activation(what="input of the feed-forward", policies=_REBUILT),
    "router": Activation(what="the router's scores and maps", where=_MOE),
    "expert_input": Activation(
        what="tokens as sent to this rank's experts",
        policies=(*_IN_ANY_FORM, Policy.RECOMPUTE),
        where=_MOE,
    ),
    "expert_swiglu_input": Activation(
        what="output of the experts' gate and up",
        policies=(*_IN_ANY_FORM, Policy.RECOMPUTE),
        where=_MOE,
    ),
    "expert_swiglu_output": Activation(
        what="input of the experts' down-projection", policies=_REBUILT, where=_MOE
    ),
    # The router's weights are applied in front of the down-projection.
    "expert_output": Activation(
        what="never stored by this engine", policies=(Policy.RECOMPUTE,), where=_MOE
    ),
    "shared_swiglu_input": Activation(
        what="output of the shared expert's gate and up",
        policies=_IN_ANY_FORM,
        where=_SHARED,
    ),
    "shared_swiglu_output": Activation(
        what="input of the shared expert's down-projection", policies=_REBUILT, where=_SHARED
    ),
    "dense_swiglu_input": Activation(
        what="output of gate and up", policies=_IN_ANY_FORM, where=_DENSE
    ),
    "dense_swiglu_output": Activation(
        what="input of the down-projection", policies=_REBUILT, where=_DENSE
    ),
}

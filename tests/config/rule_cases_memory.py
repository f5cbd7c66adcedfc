# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The cases of `rule_cases` for the rules about activation memory."""

MEMORY_CASES = [
    (
        "refuse_activations_that_do_not_exist",
        ["memory.tensors=[{tensors: swiglu_output, policy: recompute}]"],
        "given a list of 1 item; allowed: attention_input, attention_norm_output, query_latent, "
        "query_latent_norm_output, kv_latent, kv_latent_norm_output, query, key, value, "
        "attention_output, mlp_input, mlp_norm_output, expert_input, "
        "expert_swiglu_input, expert_swiglu_output, shared_swiglu_input, shared_swiglu_output, "
        "dense_swiglu_input, dense_swiglu_output; item 1: there is no activation swiglu_output",
    ),
    (
        "refuse_memory_of_layers_that_do_not_exist",
        ["memory.tensors=[{tensors: expert_input, policy: fp8, layers: '1-4'}]"],
        "given a list of 1 item; allowed: layers from 0 to 3; item 1: layers 1-4 are not all there",
    ),
    (
        "refuse_memory_of_layers_that_do_not_exist",
        ["memory.tensors=[{tensors: expert_input, policy: fp8, stages: '0'}]", "PP=2"],
        "given a list of 1 item; allowed: stages where "
        "parallel.pipeline_model_parallel_layout is given; "
        "item 1: an automatic layout depends on the policies",
    ),
    (
        "refuse_policies_that_an_activation_cannot_have",
        ["memory.tensors=[{tensors: 'expert_input, router', policy: fp8}]"],
        "given a list of 1 item; allowed: keep for router; item 1: router is the router's scores "
        "and maps",
    ),
    (
        "refuse_policies_that_an_activation_cannot_have",
        ["memory.tensors=[{tensors: query, policy: host}]", "PP=2", "VPP=2"],
        "given a list of 1 item; allowed: keep or recompute for query; item 1: query is queries, "
        "rotated",
    ),
    (
        "refuse_policies_that_an_activation_cannot_have",
        ["memory.tensors=[{tensors: expert_output, policy: keep}]"],
        "given a list of 1 item; allowed: recompute for expert_output; item 1: expert_output is "
        "never stored by this engine",
    ),
    (
        "refuse_memory_policies_without_effect",
        ["memory.tensors=[{tensors: dense_swiglu_input, policy: fp8, layers: 2-3}]"],
        "given a list of 1 item; allowed: leaving it out; item 1: dense_swiglu_input is in dense "
        "layers alone, and none of the chosen layers is one",
    ),
    (
        "refuse_memory_policies_without_effect",
        ["memory.tensors=[{tensors: expert_input, policy: keep}]"],
        "given a list of 1 item; allowed: leaving it out; item 1: expert_input is keep without it",
    ),
    (
        "refuse_memory_policies_without_effect",
        [
            "memory.tensors=[{tensors: expert_input, policy: fp8, layers: '3', stages: '0'}]",
            "PP=2",
            "LAYOUT=Ett|ttL",
        ],
        "given a list of 1 item; allowed: leaving it out; item 1: layers 3 are not on stages 0",
    ),
    (
        "refuse_activations_that_cannot_be_rebuilt",
        ["memory.tensors=[{tensors: 'query, key', policy: recompute}]"],
        "given a list of 1 item; allowed: one policy for query_latent_norm_output, "
        "kv_latent_norm_output, query, key, value; layer 0: one pass rebuilds them all",
    ),
    (
        "refuse_activations_that_cannot_be_rebuilt",
        ["memory.tensors=[{tensors: expert_swiglu_input, policy: recompute}]", "memory.preset=k2"],
        "given a list of 1 item; allowed: expert_swiglu_input not recompute where expert_input is "
        "fp8; layer 1: it would be recomputed from rounded numbers",
    ),
    (
        "refuse_host_memory_where_nothing_waits",
        ["memory.preset=k2-full", "EP=2", "OVERLAP=true"],
        "given k2-full with PP 1 (default), VPP null (default), OVERLAP true (=OVERLAP); allowed: "
        "none, k2 or k2-lean; backward follows forward so soon that nothing would leave; that "
        "takes a pipeline of 3 stages, or of 2 with virtual stages, or, without that overlap, 3 "
        "layers in a chunk",
    ),
    (
        "refuse_host_memory_where_nothing_waits",
        ["memory.tensors=[{tensors: mlp_input, policy: host}]", "PP=2", "LAYOUT=Ett|ttL"],
        "given a list of 1 item with PP 2 (=PP), VPP null (default), OVERLAP false (default); "
        "allowed: no host and no fp8+host; backward follows forward so soon that nothing would "
        "leave; that takes a pipeline of 3 stages, or of 2 with virtual stages, or, without that "
        "overlap, 3 layers in a chunk",
    ),
    (
        "refuse_host_budgets_that_are_not_one_for_each_stage",
        ["memory.host_budget=50%, 20GiB, 0%", "memory.preset=k2-full", "PP=2", "VPP=2"],
        "given 50%, 20GiB, 0% with PP 2 (=PP); allowed: one budget or 2; each pipeline stage has "
        "one",
    ),
    (
        "refuse_host_budgets_that_are_not_one_for_each_stage",
        ["memory.host_budget=0%, 0.0GiB", "memory.preset=k2-full", "PP=2", "VPP=2"],
        "given 0%, 0.0GiB; allowed: a budget above 0; no stage has room for anything",
    ),
]

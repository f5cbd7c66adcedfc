# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Every cross-field rule refuses what it is named for, and says so with values and places."""

import re

import pytest
from config_helpers import TINY, load, problems
from phase_cases import PHASE_CASES
from rule_cases import CASES

from k2_megatron.config.rules import RULES

# Short names of keys, written out below.
SHORT = {
    "TP": "parallel.tensor_model_parallel_size",
    "SP": "parallel.sequence_parallel",
    "PP": "parallel.pipeline_model_parallel_size",
    "VPP": "parallel.virtual_pipeline_model_parallel_size",
    "LAYOUT": "parallel.pipeline_model_parallel_layout",
    "CP": "parallel.context_parallel_size",
    "EP": "parallel.expert_model_parallel_size",
    "OVERLAP": "parallel.overlap_moe_expert_parallel_comm",
    "ETP": "parallel.expert_tensor_parallel_size",
    "GROUPS": "model.moe_router_num_groups",
    "DENSE": "model.first_k_dense_replace",
    "GBS": "schedule.global_batch_size",
    "MBS": "schedule.micro_batch_size",
    "MUONCLIP": "optimizer.type=muonclip",
}


# (rule, overrides, the key that is blamed, its message after the place)
# In messages `=KEY` stands for the place of an override of KEY.
def written_out(text: str) -> str:
    """Replace the short names by the keys."""
    return re.sub(rf"\b({'|'.join(SHORT)})\b", lambda found: SHORT[found[1]], text)


def with_places(message: str, overrides: list[str]) -> str:
    """Replace `(=KEY)` by the place of the override of KEY."""
    for override in overrides:
        key = override.partition("=")[0]
        message = message.replace(f"(={key})", f"(--set {override})")
    return message


@pytest.mark.parametrize(("rule", "overrides", "message"), CASES, ids=[str(c[1]) for c in CASES])
def test_refused(tmp_path, rule, overrides, message):
    overrides = [written_out(override) for override in overrides]
    message = with_places(written_out(message), overrides)
    blamed = overrides[0].partition("=")[0]
    assert problems(tmp_path, *overrides) == [f"--set {overrides[0]}: {blamed}: {message}"]


def test_every_rule_has_a_case():
    cases = {rule for rule, _, _ in (*CASES, *PHASE_CASES)}
    assert {rule.__name__ for rule in RULES} == cases


ALLOWED = [
    ["TP=2", "SP=true"],
    ["SP=false"],
    ["TP=2", "EP=2", "ETP=1"],
    ["TP=2", "EP=2", "ETP=2"],
    ["TP=2", "ETP=2"],
    ["PP=2", "VPP=2"],
    ["PP=4", "LAYOUT=E|tt|tt|L"],
    ["PP=2", "VPP=2", "LAYOUT=Et|t|t|tL"],
    ["CP=2", "schedule.seq_length=68"],
    ["DENSE=4", "TP=2"],
    ["DENSE=0"],
    ["model.moe_router_num_groups=4", "model.moe_router_group_topk=2"],
    ["model.moe_aux_loss_coeff=0.001"],
    ["model.rope_type=yarn", "model.rotary_scaling_factor=4"],
    ["model.mtp_num_layers=1", "model.mtp_loss_scaling_factor=0.3"],
    ["parallel.overlap_param_gather=true", "parallel.overlap_grad_reduce=true"],
    ["schedule.lr_wsd_decay_steps=18"],
    ["schedule.lr_decay_style=constant", "schedule.lr_wsd_decay_steps=null"],
    ["run.stop_after_step=20"],
    ["MUONCLIP", "optimizer.muon_per_head=true"],
    ["MUONCLIP", "optimizer.muon_split_q_up=false", "optimizer.muon_split_kv_up=false"],
    ["MUONCLIP", "optimizer.qk_clip=observe", "optimizer.qk_clip_threshold=30"],
    ["MUONCLIP", "DENSE=4"],
    ["cluster.nodes=1", "cluster.time_limit='1-00:00:00'", "cluster.environment=[]"],
    ["cluster.nodes=4", "cluster.gpus_per_node=0", "cluster.tasks_per_node=2"],
    ["checkpoint.resume=never", "cluster.nodes=1", "cluster.requeue=false"],
    ["run.folder=a%b"],
    ["memory.preset=k2", "memory.tensors=[{tensors: 'expert_output', policy: recompute}]"],
    ["memory.preset=k2-full", "PP=2", "VPP=2", "memory.host_budget=100%, 1.5GiB"],
    ["memory.tensors=[{tensors: mlp_input, policy: host}]", "PP=3", "LAYOUT=Et|t|ttL"],
    ["memory.preset=k2-full"],
    ["memory.preset=k2-full", "PP=2", "LAYOUT=Et|tttL"],
    ["memory.preset=k2", "memory.tensors=[{tensors: 'expert_input', policy: keep, layers: '1,3'}]"],
]


@pytest.mark.parametrize("overrides", ALLOWED, ids=str)
def test_allowed(tmp_path, overrides):
    load(tmp_path, *[written_out(override) for override in overrides])


NO_TAIL = "schedule.lr_wsd_decay_steps=null"
NO_EFFECT = [
    *[
        (f"model.{given}", [], "model.rope_type rope (default)", "only rope_type yarn uses it")
        for given in (
            "rotary_scaling_factor=2.0",
            "original_max_position_embeddings=2048",
            "beta_fast=32.0",
            "beta_slow=2.0",
            "mscale=0.5",
            "mscale_all_dim=0.5",
        )
    ],
    *[
        (given, ["DENSE=4"], "DENSE 4 (=DENSE)", "every layer is dense")
        for given in (
            "model.num_experts=8",
            "model.moe_ffn_hidden_size=96",
            "model.moe_shared_expert_intermediate_size=96",
            "model.moe_router_topk=2",
            "model.moe_router_num_groups=1",
            "model.moe_router_group_topk=1",
            "model.moe_router_topk_scaling_factor=2.0",
            "model.moe_router_bias_update_rate=0.0",
            "model.moe_aux_loss_coeff=0.1",
            "parallel.moe_token_dispatcher_type=allgather",
        )
    ],
    *[
        (
            f"optimizer.{given}",
            ["optimizer.type=adamw"],
            "optimizer.type adamw (=optimizer.type)",
            "only type muonclip uses it",
        )
        for given in (
            "muon_momentum=0.9",
            "muon_nesterov=true",
            "muon_ns_steps=5",
            "muon_update_rms=0.2",
            "muon_momentum_dtype=fp32",
            "muon_ns_dtype=fp32",
            "muon_wire_dtype=fp32",
            "muon_split_gate_up=true",
            "muon_split_q_up=true",
            "muon_split_kv_up=false",
            "muon_split_kv_down=true",
            "muon_per_head=true",
            "muon_router=true",
            "qk_clip=none",
            "qk_clip_threshold=30.0",
        )
    ],
    (
        "optimizer.qk_clip_threshold=30.0",
        ["MUONCLIP", "optimizer.qk_clip=none"],
        "optimizer.qk_clip none (=optimizer.qk_clip)",
        "no logit is measured",
    ),
    (
        "optimizer.muon_router=true",
        ["DENSE=4", "MUONCLIP"],
        "DENSE 4 (=DENSE)",
        "every layer is dense",
    ),
    *[
        (
            f"run.{given}",
            [],
            "run.loss_spike_factor null (default)",
            "without it no spike is looked for",
        )
        for given in ("loss_spike_steps=2", "loss_spike_window=50", "max_rollbacks=1")
    ],
    (
        "logging.straggler_reports=3",
        ["logging.straggler_factor=null"],
        "logging.straggler_factor null (=logging.straggler_factor)",
        "without it ranks are not compared",
    ),
    ("model.ffn_hidden_size=384", ["DENSE=0"], "DENSE 0 (=DENSE)", "no layer is dense"),
    (
        "model.mtp_loss_scaling_factor=0.2",
        [],
        "model.mtp_num_layers 0 (default)",
        "there is no MTP layer",
    ),
    (
        "schedule.min_lr=0.0",
        ["schedule.lr_decay_style=constant", NO_TAIL],
        "schedule.lr_decay_style constant (=schedule.lr_decay_style)",
        "the rate never decays",
    ),
    *[
        (f"cluster.{given}", [], "cluster.nodes null (default)", "without it there is no job")
        for given in ("gpus_per_node=8", "partition=gpu", "requeue=true", "venv=.venv")
    ],
    (
        "cluster.tasks_per_node=2",
        ["cluster.nodes=1"],
        "cluster.gpus_per_node 8 (default)",
        "each GPU gets one rank",
    ),
    (
        "cluster.gpu_type=h100",
        ["cluster.gpus_per_node=0", "cluster.nodes=1", "cluster.tasks_per_node=1"],
        "cluster.gpus_per_node 0 (=cluster.gpus_per_node)",
        "the job has no GPU",
    ),
    *[
        (
            f"cluster.{given}",
            ["cluster.nodes=1"],
            "cluster.container null (default)",
            "there is no container",
        )
        for given in ("container_runtime=pyxis", "container_mounts=/data:/data")
    ],
    *[
        (
            f"memory.{given}",
            ["memory.preset=k2"],
            "memory.preset k2 (=memory.preset)",
            "no activation is in host memory",
        )
        for given in ("host_budget=50%", "host_headroom=2.0")
    ],
    (
        "memory.host_headroom=2.0",
        ["memory.preset=k2-full", "PP=4"],
        "parallel.expert_model_parallel_size 1 (default)",
        "every rank has all tokens of its experts",
    ),
    (
        "logging.trace_ranks=1-2",
        [],
        "logging.trace_steps null (default)",
        "no step is traced",
    ),
    (
        "schedule.lr_wsd_decay_steps=5",
        ["schedule.lr_decay_style=cosine"],
        "schedule.lr_decay_style cosine (=schedule.lr_decay_style)",
        "only lr_decay_style wsd uses it",
    ),
]


@pytest.mark.parametrize(
    ("override", "others", "cause", "reason"), NO_EFFECT, ids=[case[0] for case in NO_EFFECT]
)
def test_setting_without_effect(tmp_path, override, others, cause, reason):
    others = [written_out(other) for other in others]
    cause = with_places(written_out(cause), others)
    key, _, value = override.partition("=")
    load(tmp_path, *(others or ["run.seed=1"]), *([NO_TAIL] if "cosine" in str(others) else []))
    (problem,) = problems(tmp_path, override, *others)
    assert problem == (
        f"--set {override}: {key}: given {value} with {cause}; allowed: leaving it out; {reason}"
    )


def test_a_list_without_effect(tmp_path):
    override = "optimizer.muon_ns_coefficients=[1, 2, 3]"
    assert problems(tmp_path, override, "optimizer.type=adamw") == [
        f"--set {override}: optimizer.muon_ns_coefficients: given a list of 3 items with "
        "optimizer.type adamw (--set optimizer.type=adamw); allowed: leaving it out; only type "
        "muonclip uses it"
    ]


def test_places_in_the_file(tmp_path):
    """The first key that was given is the place; the others are named with theirs."""
    text = TINY + "parallel:\n  pipeline_model_parallel_size: 4\n"
    text += "  virtual_pipeline_model_parallel_size: 2\n"
    assert problems(tmp_path, text=text) == [
        "c.yaml:13: parallel.pipeline_model_parallel_size: given 4 with "
        "parallel.virtual_pipeline_model_parallel_size 2 (c.yaml:14), model.num_layers 4 "
        "(preset k2-tiny), parallel.pipeline_model_parallel_layout null (default); "
        "allowed: fewer stages, or an explicit layout; 4 ranks x 2 chunks are too many stages for "
        "4 layers: every rank and every further row of chunks needs one; nearest that fit: 3 ranks "
        "x 2 chunks, or 4 ranks x 1 chunk"
    ]


def test_place_of_another_key_where_the_first_was_not_given(tmp_path):
    text = TINY + "parallel:\n  tensor_model_parallel_size: 8\n"
    assert problems(tmp_path, text=text) == [
        "c.yaml:13: model.num_attention_heads: given 4 (preset k2-tiny) with "
        "parallel.tensor_model_parallel_size 8 (c.yaml:13); allowed: a multiple of 8; "
        "it is divided evenly over 8 processes"
    ]


def test_host_memory_beside_a_layout_that_cannot_be(tmp_path):
    """Chunks of a pipeline of one stage ended with a traceback."""
    virtual = "parallel.virtual_pipeline_model_parallel_size=2"
    (told,) = problems(tmp_path, virtual, "memory.preset=k2-full")
    assert "only a pipeline of 2 or more stages interleaves" in told

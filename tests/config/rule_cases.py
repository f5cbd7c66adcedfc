# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""(rule, overrides that break it, what is said) for every cross-field rule; keys in short form."""

from rule_cases_memory import MEMORY_CASES

CASES = [
    (
        "refuse_odd_rotary_size",
        ["model.qk_pos_emb_head_dim=15"],
        "given 15; allowed: an even integer; rotation takes pairs",
    ),
    (
        "refuse_more_dense_layers_than_layers",
        ["DENSE=5"],
        "given 5 with model.num_layers 4 (preset k2-tiny); allowed: an integer from 0 to 4; "
        "the dense layers are among the model's layers",
    ),
    (
        "refuse_choosing_more_experts_than_exist",
        ["model.moe_router_topk=9"],
        "given 9 with model.num_experts 8 (preset k2-tiny); allowed: an integer from 1 to 8; "
        "a token's experts are different ones",
    ),
    (
        "refuse_uneven_expert_groups",
        ["model.moe_router_num_groups=3"],
        "given 3 with model.num_experts 8 (preset k2-tiny); allowed: a divisor of 8; "
        "groups of experts are of one size",
    ),
    (
        "refuse_choosing_more_groups_than_exist",
        ["model.moe_router_group_topk=2"],
        "given 2 with model.moe_router_num_groups 1 (default); allowed: an integer from 1 to 1; "
        "the chosen groups are different ones",
    ),
    (
        "refuse_topk_that_chosen_groups_cannot_give",
        ["model.moe_router_topk=3", "model.moe_router_group_topk=2", "GROUPS=4"],
        "given 3 with model.moe_router_group_topk 2 (=model.moe_router_group_topk), "
        "GROUPS 4 (=GROUPS), model.num_experts 8 "
        "(preset k2-tiny); allowed: a multiple of 2, at most 4; "
        "each of the 2 chosen groups of 2 experts gives as many",
    ),
    (
        "refuse_topk_that_chosen_groups_cannot_give",
        ["model.moe_router_topk=3", "model.moe_router_num_groups=4"],
        "given 3 with model.moe_router_group_topk 1 (default), "
        "model.moe_router_num_groups 4 (=model.moe_router_num_groups), model.num_experts 8 "
        "(preset k2-tiny); allowed: a multiple of 1, at most 2; "
        "each of the 1 chosen groups of 2 experts gives as many",
    ),
    (
        "refuse_sizes_that_do_not_divide",
        ["model.num_attention_heads=5", "TP=2"],
        "given 5 with TP 2 (=TP); allowed: a multiple of 2; it is divided evenly over 2 processes",
    ),
    (
        "refuse_sizes_that_do_not_divide",
        ["model.vocab_size=257", "TP=2"],
        "given 257 with TP 2 (=TP); allowed: a multiple of 2; "
        "it is divided evenly over 2 processes",
    ),
    (
        "refuse_sizes_that_do_not_divide",
        ["model.ffn_hidden_size=383", "TP=2"],
        "given 383 with TP 2 (=TP); allowed: a multiple of 2; "
        "it is divided evenly over 2 processes",
    ),
    (
        "refuse_sizes_that_do_not_divide",
        ["model.moe_shared_expert_intermediate_size=95", "TP=2", "EP=2"],
        "given 95 with TP 2 (=TP); allowed: a multiple of 2; it is divided evenly over 2 processes",
    ),
    (
        "refuse_sizes_that_do_not_divide",
        ["model.moe_ffn_hidden_size=95", "TP=2"],
        "given 95 with ETP 2 (automatic); allowed: a multiple of 2; "
        "it is divided evenly over 2 processes",
    ),
    (
        "refuse_sizes_that_do_not_divide",
        ["model.num_experts=9", "EP=2"],
        "given 9 with EP 2 (=EP); allowed: a multiple of 2; it is divided evenly over 2 processes",
    ),
    (
        "refuse_tensor_without_sequence_parallelism",
        ["SP=false", "TP=2"],
        "given false with TP 2 (=TP); allowed: true, or leaving it out; without it megatron-core "
        "0.16.1 gets the gradients of MLA's latent norms and down-projections wrong",
    ),
    (
        "refuse_sequence_without_tensor_parallelism",
        ["SP=true"],
        "given true with TP 1 (default); allowed: false, or leaving it out; "
        "it has no effect without tensor parallelism",
    ),
    (
        "refuse_sequence_that_does_not_divide",
        ["schedule.seq_length=63", "TP=2"],
        "given 63 with TP 2 (=TP), SP true (automatic), CP 1 (default); allowed: a multiple of 2; "
        "every tensor-parallel process takes an equal part, every context-parallel one two",
    ),
    (
        "refuse_sequence_that_does_not_divide",
        ["schedule.seq_length=66", "CP=2"],
        "given 66 with TP 1 (default), SP false (automatic), CP 2 (=CP); "
        "allowed: a multiple of 4; "
        "every tensor-parallel process takes an equal part, every context-parallel one two",
    ),
    (
        "refuse_sequence_that_does_not_divide",
        ["schedule.seq_length=68", "CP=2", "TP=4"],
        "given 68 with TP 4 (=TP), SP true (automatic), CP 2 (=CP); allowed: a multiple of 8; "
        "every tensor-parallel process takes an equal part, every context-parallel one two",
    ),
    (
        "refuse_interleaving_without_a_pipeline",
        ["VPP=2"],
        "given 2 with PP 1 (default); allowed: leaving it out; "
        "only a pipeline of 2 or more stages interleaves",
    ),
    (
        "refuse_interleaving_without_a_pipeline",
        ["VPP=1", "PP=2"],
        "given 1; allowed: an integer >= 2, or null; one chunk has no effect: it is plain 1F1B",
    ),
    (
        "refuse_more_stages_than_layers",
        ["PP=5"],
        "given 5 with VPP null (default), model.num_layers 4 (preset k2-tiny), LAYOUT null "
        "(default); allowed: fewer stages, or an explicit layout; 5 ranks x 1 chunks are too many "
        "stages for 4 layers: every rank and every further row of chunks needs one; nearest that "
        "fit: 4 ranks x 1 chunk",
    ),
    (
        "refuse_more_stages_than_layers",
        ["PP=4", "VPP=2"],
        "given 4 with VPP 2 (=VPP), model.num_layers 4 (preset k2-tiny), LAYOUT null "
        "(default); allowed: fewer stages, or an explicit layout; 4 ranks x 2 chunks are too many "
        "stages for 4 layers: every rank and every further row of chunks needs one; nearest that "
        "fit: 3 ranks x 2 chunks, or 4 ranks x 1 chunk",
    ),
    (
        "refuse_layout_without_a_pipeline",
        ["LAYOUT=Et*4L"],
        "given Et*4L with PP 1 (default); allowed: leaving it out; "
        "it has no effect without a pipeline",
    ),
    (
        "refuse_layout_that_does_not_fit",
        ["LAYOUT=Ett|tL", "PP=2"],
        "given Ett|tL with PP 2 (=PP), VPP null (default), model.num_layers 4 (preset k2-tiny), "
        "model.mtp_num_layers 0 (default); allowed: a layout of exactly this model and pipeline; "
        "'Ett|tL' places {'E': 1, 't': 3, 'm': 0, 'L': 1}; "
        "needed, in this order: 1 E, 4 t, 0 m, 1 L",
    ),
    (
        "refuse_dividing_experts_of_a_dense_model",
        ["EP=2", "DENSE=4"],
        "given 2 with DENSE 4 (=DENSE), model.num_layers 4 (preset k2-tiny); allowed: 1; "
        "every layer is dense",
    ),
    (
        "refuse_expert_tensor_size_that_loses_gradients",
        ["ETP=1", "TP=2"],
        "given 1 with TP 2 (=TP), EP 1 (default); allowed: 2, or leaving it out, or "
        "expert_model_parallel_size above 1; without expert parallelism megatron-core 0.16.1 "
        "never reduces expert gradients over the tensor-parallel processes that act as expert "
        "data parallelism",
    ),
    (
        "refuse_gather_overlap_without_reduce_overlap",
        ["parallel.overlap_param_gather=true"],
        "given true with parallel.overlap_grad_reduce false (default); allowed: false, or "
        "overlap_grad_reduce true as well; the gather is overlapped in the buckets that the "
        "reduction makes",
    ),
    (
        "refuse_expert_overlap_that_the_engine_cannot_do",
        ["parallel.overlap_moe_expert_parallel_comm=true", "EP=2", "precision.dtype=fp32"],
        "given true with precision.dtype fp32 (=precision.dtype); allowed: false; the engine has "
        "it for bf16 alone",
    ),
    (
        "refuse_delayed_weight_gradients_without_overlap",
        ["parallel.delay_wgrad_compute=true"],
        "given true with parallel.overlap_moe_expert_parallel_comm false (default); allowed: "
        "false, or overlap_moe_expert_parallel_comm true as well; weight gradients are computed "
        "later in the schedule with overlap only",
    ),
    (
        "refuse_context_parallelism_in_fp32",
        ["CP=2", "precision.dtype=fp32"],
        "given 2 with precision.dtype fp32 (=precision.dtype); allowed: 1; Transformer Engine's "
        "attention over divided sequences takes bf16 alone",
    ),
    (
        "refuse_heads_apart_in_whole_blocks",
        ["optimizer.muon_per_head=true", "optimizer.muon_split_kv_up=false", "MUONCLIP"],
        "given true with optimizer.muon_split_q_up true (default), optimizer.muon_split_kv_up "
        "false (=optimizer.muon_split_kv_up); allowed: false, or both splits true as well; heads "
        "are divided within blocks that are apart",
    ),
    (
        "refuse_heads_apart_in_whole_blocks",
        ["optimizer.muon_per_head=true", "optimizer.muon_split_q_up=false", "MUONCLIP"],
        "given true with optimizer.muon_split_q_up false (=optimizer.muon_split_q_up), "
        "optimizer.muon_split_kv_up true (default); allowed: false, or both splits true as well; "
        "heads are divided within blocks that are apart",
    ),
    (
        "refuse_newton_schulz_that_runs_away",
        ["optimizer.muon_ns_coefficients=[3.5, -3, 3]", "MUONCLIP"],
        "given a list of 3 items with optimizer.muon_ns_steps 5 (default); allowed: coefficients "
        "that keep every singular value under 2; one of 0.01 would be 8.9 after step 5",
    ),
    (
        "refuse_more_on_the_host_than_there_is",
        ["optimizer.optimizer_offload_fraction=1.5"],
        "given 1.5; allowed: a number from 0 to 1; it is a part of the optimizer's state",
    ),
    (
        "refuse_layout_that_does_not_fit",
        ["LAYOUT=Etttt|mL", "PP=2", "model.mtp_num_layers=1"],
        "given Etttt|mL with model.mtp_num_layers 1 (=model.mtp_num_layers); allowed: a decoder "
        "layer beside the multi-token-prediction layers; megatron-core takes their form from it",
    ),
    (
        "refuse_batch_that_no_process_count_fits",
        ["GBS=3", "EP=2"],
        "given 3 with MBS 1 (default), TP 1 (default), PP 1 (default), VPP null (default), "
        "CP 1 (default), EP 2 (=EP), ETP 1 (automatic); allowed: a batch that some number of "
        "processes can divide; data parallelism divides the micro-batches of a global batch and "
        "has to be large enough for the experts; with interleaving a multiple of "
        "pipeline_model_parallel_size remains",
    ),
    (
        "refuse_wsd_without_its_tail",
        ["schedule.lr_wsd_decay_steps=null"],
        "given null with schedule.lr_decay_style wsd (default); allowed: an integer >= 1; "
        "wsd needs the length of its decay",
    ),
    (
        "refuse_tail_longer_than_the_run",
        ["schedule.lr_wsd_decay_steps=19"],
        "given 19 with schedule.train_steps 20 (c.yaml:4), schedule.lr_warmup_steps 2 (c.yaml:7), "
        "schedule.lr_decay_style wsd (default); allowed: at most 18; "
        "the decay begins after the warm-up and ends with the run",
    ),
    (
        "refuse_warmup_as_long_as_the_run",
        ["schedule.lr_warmup_steps=20"],
        "given 20 with schedule.train_steps 20 (c.yaml:4); allowed: less than 20; "
        "the run would end before its learning rate is reached",
    ),
    (
        "refuse_decay_that_rises",
        ["schedule.min_lr=0.001"],
        "given 0.001 with schedule.lr 0.0002 (default), schedule.lr_decay_style wsd (default); "
        "allowed: a number <= 0.0002; the rate decays from lr to min_lr",
    ),
    (
        "refuse_batch_that_does_not_divide",
        ["GBS=8", "MBS=3"],
        "given 8 with MBS 3 (=MBS); allowed: a multiple of 3; "
        "a global batch is made of whole micro-batches",
    ),
    (
        "refuse_stop_after_the_end",
        ["run.stop_after_step=21"],
        "given 21 with schedule.train_steps 20 (c.yaml:4); allowed: at most 20, or null; "
        "the run ends before that",
    ),
    (
        "refuse_corpus_given_twice",
        ["data.corpora=[{path: a}, {path: b}, {path: a}]"],
        "given a list of 3 items; allowed: each path once; "
        "a is listed 2 times; raise its weight instead",
    ),
    (
        "refuse_keeping_steps_that_are_not_saved",
        ["checkpoint.keep_every_steps=1500"],
        "given 1500 with checkpoint.save_every_steps 1000 (default); allowed: a multiple of 1000; "
        "no checkpoint would be saved at such a step",
    ),
    (
        "refuse_keeping_steps_that_are_not_saved",
        ["checkpoint.keep_every_steps=10", "checkpoint.save_every_steps=null"],
        "given 10 with checkpoint.save_every_steps null (=checkpoint.save_every_steps); "
        "allowed: null; no checkpoint would be saved at such a step",
    ),
    (
        "refuse_keeping_some_where_all_are_kept",
        ["checkpoint.keep_every_steps=1000", "checkpoint.keep_last=null"],
        "given 1000 with checkpoint.keep_last null (=checkpoint.keep_last); allowed: null; "
        "keep_last null keeps all",
    ),
    (
        "refuse_hangs_found_after_the_timeout",
        ["run.hang_timeout_seconds=600"],
        "given 600.0 with run.distributed_timeout_seconds 600.0 (default); allowed: a number < "
        "600, or null; a collective would end the rank before its stacks are written",
    ),
    (
        "refuse_rollbacks_to_nothing",
        ["run.loss_spike_factor=6", "checkpoint.save_every_steps=null"],
        "given 6.0 with checkpoint.save_every_steps null (=checkpoint.save_every_steps); allowed: "
        "null, or checkpoints every so many steps; there would be nothing to go back to",
    ),
    (
        "refuse_rollbacks_to_what_is_removed",
        ["checkpoint.keep_last=2", "run.loss_spike_factor=6", "checkpoint.save_every_steps=2"],
        "given 2 with run.loss_spike_factor 6.0 (=run.loss_spike_factor), run.loss_spike_steps 3 "
        "(default), checkpoint.save_every_steps 2 (=checkpoint.save_every_steps); allowed: at "
        "least 3, or null; a spike is known after its last step, and a checkpoint from before it "
        "must be left",
    ),
    (
        "refuse_cpu_job_without_tasks",
        ["cluster.tasks_per_node=null", "cluster.nodes=1", "cluster.gpus_per_node=0"],
        "given null with cluster.gpus_per_node 0 (=cluster.gpus_per_node); allowed: an integer "
        ">= 1; a job on CPUs needs the number of its ranks",
    ),
    (
        "refuse_nodes_that_do_not_fit",
        ["cluster.nodes=3"],
        "given 3 with cluster.gpus_per_node 8 (default), "
        "TP 1 (default), PP 1 (default), VPP null (default), CP 1 (default), EP 1 (default), ETP 1 "
        "(automatic), GBS 8 (c.yaml:6), MBS 1 (default); "
        "allowed: 1; 24 processes do not fit the parallel layout and the batch; the smallest "
        "numbers that do: 1, 2, 4, 8",
    ),
    (
        "refuse_nodes_that_do_not_fit",
        ["cluster.nodes=2", "cluster.gpus_per_node=3"],
        "given 2 with cluster.gpus_per_node 3 (=cluster.gpus_per_node), "
        "TP 1 (default), PP 1 (default), VPP null (default), CP 1 (default), EP 1 (default), ETP 1 "
        "(automatic), GBS 8 (c.yaml:6), MBS 1 (default); "
        "allowed: no number of nodes of 3 ranks; 6 processes do not fit the parallel layout and "
        "the batch; the smallest numbers that do: 1, 2, 4, 8",
    ),
    (
        "refuse_saving_before_the_job_begins",
        [
            "cluster.save_before_limit_seconds=600",
            "cluster.time_limit='00:10:00'",
            "cluster.nodes=1",
        ],
        "given 600 with cluster.time_limit 00:10:00 (=cluster.time_limit); allowed: less than 600; "
        "the ranks would be told to stop before they could start",
    ),
    (
        "refuse_requeue_that_cannot_resume",
        ["cluster.requeue=true", "checkpoint.resume=never", "cluster.nodes=1"],
        "given true with checkpoint.resume never (=checkpoint.resume), cluster.nodes 1 "
        "(=cluster.nodes); allowed: false, or checkpoint.resume auto; a requeued job goes on from "
        "its checkpoint",
    ),
    (
        "refuse_environment_given_twice_or_set_by_the_script",
        ["cluster.environment=[{name: A, value: x}, {name: A, value: y}]", "cluster.nodes=1"],
        "given a list of 2 items; allowed: each name once; A is listed 2 times",
    ),
    (
        "refuse_environment_given_twice_or_set_by_the_script",
        ["cluster.environment=[{name: SLURM_X, value: x}]", "cluster.nodes=1"],
        "given a list of 1 item; allowed: other names than SLURM_X; the job itself sets it",
    ),
    (
        "refuse_log_path_that_slurm_rewrites",
        ["run.folder=a%b", "cluster.nodes=1"],
        "given a%b with cluster.nodes 1 (=cluster.nodes); allowed: a path without % and \\; SLURM "
        "gives them a meaning of its own in the path of a log",
    ),
    *MEMORY_CASES,
    (
        "refuse_ranges_that_run_backwards",
        ["logging.trace_steps='5-3'"],
        "given 5-3; allowed: ranges that run upwards; a range ends before it begins",
    ),
    (
        "refuse_traces_of_steps_that_never_come",
        ["logging.trace_steps='3, 0-1'", "run.stop_after_step=4"],
        "given 3, 0-1 with run.stop_after_step 4 (=run.stop_after_step); allowed: steps from 1 to "
        "4; others never come",
    ),
    (
        "refuse_more_traces_than_anyone_reads",
        ["logging.trace_steps='1-5'", "logging.trace_ranks='0-999999999999'"],
        "given 1-5 with logging.trace_ranks 0-999999999999 (=logging.trace_ranks); allowed: at "
        "most 64 traces, steps times ranks; these are 5000000000000, of megabytes each",
    ),
]

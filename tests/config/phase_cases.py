# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A schedule in phases, and what breaks each rule about them."""

PHASED = """\
run: {name: tiny}
model: {preset: k2-tiny}
schedule:
  seq_length: 64
  global_batch_size: 8
  phases:
    - {name: warmup, steps: 5, lr_style: linear, lr: 1.0e-3}
    - {name: main, tokens: 10_240, lr_style: cosine, lr: 1.0e-4}
    - {name: more, until_tokens: 23_040, lr_style: continue, global_batch_size: 16}
    - name: long
      steps: 4
      lr_style: linear
      lr: 0
      seq_length: 128
      parallel: {expert_model_parallel_size: 2, tensor_model_parallel_size: 2}
      model: {moe_router_bias_update_rate: 0}
    - {name: last, steps: 3, lr: 1.0e-6, parallel: {tensor_model_parallel_size: 1}}
data:
  corpora:
    - path: corpus
"""

_DEFAULTS = (
    "parallel.tensor_model_parallel_size 1 (default), "
    "parallel.pipeline_model_parallel_size 1 (default), "
    "parallel.virtual_pipeline_model_parallel_size null (default), "
    "parallel.context_parallel_size 1 (default), "
    "parallel.expert_model_parallel_size 1 (default), "
    "parallel.expert_tensor_parallel_size 1 (automatic)"
)

# (rule, what of PHASED is replaced, by what, what is told)
PHASE_CASES = [
    (
        "refuse_new_processes_that_cannot_resume",
        ("data:\n", "checkpoint: {resume: never}\ndata:\n"),
        "c.yaml:18: checkpoint.resume: given never with schedule.phases a list of 5 items "
        "(c.yaml:6); allowed: auto; phase long begins in new processes, from a checkpoint",
    ),
    (
        "refuse_phases_that_no_process_count_fits",
        ("{expert_model_parallel_size: 2, tensor", "{pipeline_model_parallel_size: 3, tensor"),
        "c.yaml:6: schedule.phases: given a list of 5 items with schedule.global_batch_size 8 "
        f"(c.yaml:5), schedule.micro_batch_size 1 (default), {_DEFAULTS}; allowed: phases that "
        "share a number of processes; the number must fit every phase: phase long takes 6, 12, "
        "24, 48, 96; all before it 1, 2, 4, 8",
    ),
    (
        "refuse_phase_without_one_length",
        ("steps: 5", "steps: 5, tokens: 3"),
        "c.yaml:7: schedule.phases[0].steps: given 5 with schedule.phases[0].tokens 3 (c.yaml:7); "
        "allowed: exactly one of steps, tokens and until_tokens; it is the length of the phase",
    ),
    (
        "refuse_phase_without_one_length",
        (", steps: 5", ""),
        "c.yaml:7: schedule.phases[0].steps: given null (default) with schedule.phases[0].tokens "
        "null (default), schedule.phases[0].until_tokens null (default); allowed: exactly one of "
        "steps, tokens and until_tokens; it is the length of the phase",
    ),
    (
        "refuse_phase_that_has_ended_before_it_begins",
        ("23_040", "12_000"),
        "c.yaml:9: schedule.phases[2].until_tokens: given 12000; allowed: at least 13312; the "
        "phases before it have consumed 12800, and a step takes 1024",
    ),
    (
        "refuse_phase_name_given_twice",
        ("name: more", "name: main"),
        "c.yaml:9: schedule.phases[2].name: given main; allowed: a name of its own; an earlier "
        "phase has this name",
    ),
    (
        "refuse_changes_in_the_first_phase",
        ("steps: 5", "steps: 5, seq_length: 64"),
        "c.yaml:7: schedule.phases[0].seq_length: given 64; allowed: schedule.seq_length in its "
        "place; the first phase is what the sections say",
    ),
    (
        "refuse_changes_in_the_first_phase",
        ("steps: 5", "steps: 5, parallel: {context_parallel_size: 1}"),
        "c.yaml:7: schedule.phases[0].parallel.context_parallel_size: given 1; allowed: "
        "parallel.context_parallel_size in its place; the first phase is what the sections say",
    ),
    (
        "refuse_course_without_its_end",
        ("lr_style: cosine, lr: 1.0e-4", "lr_style: cosine"),
        "c.yaml:8: schedule.phases[1].lr: given null (default) with schedule.phases[1].lr_style "
        "cosine (c.yaml:8); allowed: a number >= 0; it is the learning rate of the last step of "
        "the phase",
    ),
    (
        "refuse_rate_without_effect",
        ("lr_style: continue", "lr_style: continue, lr: 0.5"),
        "c.yaml:9: schedule.phases[2].lr: given 0.5 with schedule.phases[2].lr_style continue "
        "(c.yaml:9); allowed: leaving it out; the course of the phase before goes on to its own "
        "end",
    ),
    (
        "refuse_rate_without_effect",
        ("steps: 3, lr: 1.0e-6", "steps: 3, lr: 1.0e-6, lr_start: 0"),
        "c.yaml:17: schedule.phases[4].lr_start: given 0.0 with schedule.phases[4].lr_style "
        "constant (default); allowed: leaving it out; only linear and cosine leave from somewhere",
    ),
    (
        "refuse_going_on_with_no_course",
        ("lr_style: cosine, lr: 1.0e-4", "lr: 1.0e-4"),
        "c.yaml:9: schedule.phases[2].lr_style: given continue; allowed: constant, linear or "
        "cosine; the phase before has no linear or cosine course that could go on",
    ),
]

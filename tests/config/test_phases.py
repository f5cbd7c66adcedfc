# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The table of phases: lengths, what each one inherits, what needs new processes, what is told."""

from dataclasses import replace
from pathlib import Path

import pytest
from config_helpers import TINY, load, problems
from phase_cases import PHASE_CASES, PHASED

from k2_megatron.config.config import Config
from k2_megatron.config.dump import dump_config
from k2_megatron.config.loader import load_config
from k2_megatron.config.phases import (
    check_world_size,
    first_step_here,
    last_step_here,
    most_tokens_here,
    phase_at,
    phases_of,
    run_world_sizes,
    runs_on,
)
from k2_megatron.errors import TopologyError


def phased(folder: Path, *overrides: str) -> Config:
    return load(folder, *overrides, text=PHASED)


def test_table(tmp_path):
    config = phased(tmp_path)
    table = phases_of(config)
    assert [(phase.name, phase.first_step, phase.last_step) for phase in table] == [
        ("warmup", 1, 5),
        ("main", 6, 25),
        ("more", 26, 35),
        ("long", 36, 39),
        ("last", 40, 42),
    ]
    assert [phase.consumed_samples for phase in table] == [0, 40, 200, 360, 424]
    assert [phase.consumed_tokens for phase in table] == [0, 2560, 12800, 23040, 31232]
    assert [phase.step_tokens for phase in table] == [512, 512, 1024, 2048, 2048]
    assert table[2].consumed_after(27) == (232, 12800 + 2048)
    assert table[2].consumed_after(25) == (200, 12800)
    assert config.schedule.train_steps == 42
    assert {phase.config.schedule.train_steps for phase in table} == {42}


def test_changes_stay_and_automatic_values_follow(tmp_path):
    """Tensor parallelism brings sequence parallelism with it, and takes it away again."""
    table = phases_of(phased(tmp_path))
    parallel = [phase.config.parallel for phase in table]
    assert [one.tensor_model_parallel_size for one in parallel] == [1, 1, 1, 2, 1]
    assert [one.sequence_parallel for one in parallel] == [False, False, False, True, False]
    assert [one.expert_model_parallel_size for one in parallel] == [1, 1, 1, 2, 2]
    assert [phase.config.schedule.global_batch_size for phase in table] == [8, 8, 16, 16, 16]
    rates = [phase.config.model.moe_router_bias_update_rate for phase in table]
    assert rates == [1e-3, 1e-3, 1e-3, 0, 0]


@pytest.mark.parametrize(
    ("tokens", "steps"), [(1, 1), (255, 1), (767, 1), (768, 2), (1279, 2), (1280, 3)]
)
def test_tokens_become_the_nearest_number_of_steps(tmp_path, tokens, steps):
    config = load(tmp_path, text=PHASED.replace("10_240", str(tokens)))
    assert phases_of(config)[1].num_steps == steps


def test_where_a_step_belongs_and_how_far_processes_go(tmp_path):
    table = phases_of(phased(tmp_path))
    steps = (0, 1, 5, 6, 35, 36, 42, 43)
    names = ["warmup", "warmup", "warmup", "main", "more", "long", "last", "last"]
    assert [phase_at(table, step).name for step in steps] == names
    assert [last_step_here(table, step) for step in (1, 5, 26, 35, 36, 40)] == [
        35, 35, 35, 35, 39, 42,
    ]  # fmt: skip
    assert [first_step_here(table, step) for step in (1, 5, 26, 35, 36, 40)] == [
        1, 1, 1, 1, 36, 40,
    ]  # fmt: skip


def test_processes_are_made_for_the_longest_of_their_micro_batches(tmp_path):
    """`main` is longer than `warmup`, which the same processes train first."""
    changed = PHASED.replace("lr_style: cosine,", "lr_style: cosine, seq_length: 256,")
    table = phases_of(load(tmp_path, text=changed.replace("23_040", "29_184")))
    assert [phase.micro_batch_tokens for phase in table[:2]] == [64, 256]
    assert most_tokens_here(table, 1) == most_tokens_here(table, 6) == 256
    assert most_tokens_here(table, table[3].first_step) == 128


def test_what_needs_new_processes(tmp_path):
    config = load(tmp_path)
    numbers = replace(config.model, moe_router_bias_update_rate=0.0)
    assert runs_on(config, replace(config, model=numbers))
    batch = replace(config.schedule, seq_length=32, global_batch_size=4, micro_batch_size=2)
    assert runs_on(config, replace(config, schedule=batch))
    assert not runs_on(config, replace(config, model=replace(config.model, rope_type="yarn")))
    parallel = replace(config.parallel, context_parallel_size=2)
    assert not runs_on(config, replace(config, parallel=parallel))


def test_run_without_phases_is_one(tmp_path):
    config = load(tmp_path)
    (phase,) = phases_of(config)
    assert (phase.name, phase.first_step, phase.last_step) == ("", 1, 20)
    assert phase.config is config and last_step_here((phase,), 1) == 20


def test_world_size_must_fit_every_phase(tmp_path):
    config = phased(tmp_path)
    assert run_world_sizes(config) == [2, 4, 8]
    check_world_size(config, 4)
    with pytest.raises(TopologyError, match=r"phase long: 1 process does not fit") as caught:
        check_world_size(config, 1)
    assert "numbers of processes that fit: 2, 4, 8, 16" in str(caught.value)
    with pytest.raises(TopologyError, match=r"phase warmup: 16 processes do not fit"):
        check_world_size(config, 16)


def test_round_trip(tmp_path):
    text = PHASED.replace("lr: 0\n", "lr: 0\n      data: {corpora: [{path: other, weight: 2}]}\n")
    config = load(tmp_path, text=text)
    path = tmp_path / "resolved_config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    assert "train_steps" not in path.read_text()


def test_rules_name_the_phase_and_its_line(tmp_path):
    text = PHASED.replace("expert_model_parallel_size: 2", "expert_model_parallel_size: 16")
    text = text.replace("global_batch_size: 8\n", "global_batch_size: 16\n")  # for 16 processes
    assert problems(tmp_path, text=text) == [
        "c.yaml:15: model.num_experts: phase long: given 8 (preset k2-tiny) with "
        "parallel.expert_model_parallel_size 16 (c.yaml:15); allowed: a multiple of 16; it is "
        "divided evenly over 16 processes"
    ]
    text = PHASED.replace("seq_length: 128", "seq_length: 127")
    assert problems(tmp_path, text=text) == [
        "c.yaml:14: schedule.phases[3].seq_length: phase long: given 127 with "
        "parallel.tensor_model_parallel_size 2 (c.yaml:15), parallel.sequence_parallel true "
        "(automatic), parallel.context_parallel_size 1 (default); allowed: a multiple of 2; every "
        "tensor-parallel process takes an equal part, every context-parallel one two"
    ]


def test_key_of_a_phase_without_effect(tmp_path):
    text = PHASED.replace("bias_update_rate: 0", "bias_update_rate: 0, mscale: 0.5")
    assert problems(tmp_path, text=text) == [
        "c.yaml:16: schedule.phases[3].model.mscale: phase long: given 0.5 with model.rope_type "
        "rope (default); allowed: leaving it out; only rope_type yarn uses it"
    ]


def test_mistakes_in_a_phase_have_their_places(tmp_path):
    text = PHASED.replace("steps: 4", "stepz: 4").replace(
        "{moe_router", "{num_layers: 2, moe_router"
    )
    text = text.replace("expert_model_parallel_size: 2", "expert_model_parallel_size: two")
    allowed = (
        "moe_router_bias_update_rate, moe_aux_loss_coeff, mtp_loss_scaling_factor, rope_type, "
        "rotary_scaling_factor, original_max_position_embeddings, beta_fast, beta_slow, mscale, "
        "mscale_all_dim"
    )
    assert problems(tmp_path, text=text) == [
        "c.yaml:11: schedule.phases[3].stepz: unknown key; did you mean schedule.phases[3].steps?",
        "c.yaml:15: schedule.phases[3].parallel.expert_model_parallel_size: given 'two' (text); "
        "allowed: an integer >= 1",
        "c.yaml:16: schedule.phases[3].model.num_layers: a run keeps its model.num_layers; "
        f"allowed: {allowed}",
    ]
    text = PHASED.replace("{moe_router_bias_update_rate: 0}", "3")
    assert problems(tmp_path, text=text) == [
        "c.yaml:16: schedule.phases[3].model: given 3; allowed: a mapping with " + allowed
    ]


@pytest.mark.parametrize(
    "given",
    ["train_steps: 42", "lr: 1.0e-4", "min_lr: 1.0e-5", "lr_warmup_steps: 3",
     "lr_decay_style: cosine", "lr_wsd_decay_steps: 3"],
)  # fmt: skip
def test_keys_that_phases_replace(tmp_path, given):
    key, _, value = given.partition(": ")
    text = PHASED.replace("  phases:", f"  {given}\n  phases:")
    (told,) = problems(tmp_path, text=text)
    value = "cosine" if value == "cosine" else str(float(value) if "e" in value else int(value))
    assert told == (
        f"c.yaml:6: schedule.{key}: given {value} with schedule.phases a list of 5 items "
        "(c.yaml:7); allowed: leaving it out; the phases say it"
    )


def test_empty_list_of_phases_is_none(tmp_path):
    assert load(tmp_path, "schedule.phases=[]") == load(tmp_path)
    text = TINY.replace("train_steps: 20", "phases: []")
    assert problems(tmp_path, text=text) == [
        "c.yaml:3: schedule.train_steps: not given and has no default; allowed: an integer >= 1"
    ]


def test_stop_is_within_all_phases(tmp_path):
    assert phased(tmp_path, "run.stop_after_step=42").run.stop_after_step == 42
    assert problems(tmp_path, "run.stop_after_step=43", text=PHASED) == [
        "--set run.stop_after_step=43: run.stop_after_step: given 43 with schedule.train_steps 42 "
        "(automatic); allowed: at most 42, or null; the run ends before that"
    ]


@pytest.mark.parametrize(
    ("rule", "change", "told"), PHASE_CASES, ids=[case[2][:70] for case in PHASE_CASES]
)
def test_refused(tmp_path, rule, change, told):
    assert change[0] in PHASED
    assert problems(tmp_path, text=PHASED.replace(*change)) == [told]

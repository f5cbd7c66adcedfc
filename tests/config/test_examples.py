# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Every example is valid, fits its own nodes, says each key's reason, and K2's are the report's."""

import re
from pathlib import Path

import pytest

from k2_megatron.config.loader import load_config
from k2_megatron.config.phases import check_world_size, phases_of, run_world_sizes
from k2_megatron.config.resolve import resolve_world

FOLDER = Path(__file__).parents[2] / "examples" / "configs"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))
COMMENTED = ("k2-mini-8xh100", "moonlight-16b-a3b", "kimi-k2-1t")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_valid(path):
    config = load_config(path)
    assert config.run.name == path.stem
    assert run_world_sizes(config)
    if config.cluster.nodes is not None:
        check_world_size(config, config.cluster.nodes * config.cluster.gpus_per_node)


@pytest.mark.parametrize("name", COMMENTED)
def test_every_key_has_a_comment(name):
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    keys = [line for line in lines if re.match(r"\s+(- )?[{\w]", line)]
    bare = [line for line in keys if "#" not in line and not line.rstrip().endswith(":")]
    assert keys and not bare


def test_kimi_k2_is_the_reports():
    """Sections 2.4.2 and 2.5; the products are the tokens that the report names."""
    config = load_config(FOLDER / "kimi-k2-1t.yaml")
    table, parallel = phases_of(config), config.parallel
    assert {phase.step_tokens for phase in table} == {2**26}  # "67 M", in every phase
    ends = [phase.last_step for phase in table]
    assert ends == [500, 149_012, 230_968, 236_928, 237_822]
    consumed = [round(phase.consumed_after(phase.last_step)[1] / 1e12, 2) for phase in table]
    assert consumed == [0.03, 10.0, 15.5, 15.9, 15.96]
    assert [phase.config.schedule.seq_length for phase in table] == [4096] * 4 + [32768]
    rates = [phase.config.model.moe_router_bias_update_rate for phase in table]
    assert rates == [1e-3] * 3 + [0.0] * 2
    assert parallel.pipeline_model_parallel_size == parallel.expert_model_parallel_size == 16
    assert parallel.tensor_model_parallel_size == parallel.context_parallel_size == 1
    assert (config.optimizer.weight_decay, config.optimizer.qk_clip_threshold) == (0.1, 100.0)
    for nodes in (32, 64, 128, 256):  # any power of two of model-parallel groups
        check_world_size(config, nodes * 8)
        assert resolve_world(table[0].config, nodes * 8).data_parallel_size == nodes // 2


def test_moonlight_is_its_reports():
    """The batch doubles at 200 B tokens, the cosine ends at 5.2 T, the cool-down takes 500 B."""
    table = phases_of(load_config(FOLDER / "moonlight-16b-a3b.yaml"))
    assert [phase.step_tokens for phase in table] == [2**24] * 2 + [2**25] * 3
    ends = [phase.consumed_after(phase.last_step)[1] / 1e12 for phase in table]
    assert ends == pytest.approx([0.0336, 0.2, 5.2, 5.2034, 5.7034], abs=1e-4)

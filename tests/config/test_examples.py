# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Every example is valid, fits its own nodes, says each key's reason, and K2's are the report's."""

import re
from pathlib import Path

import pytest

from k2_megatron.config.loader import load_config
from k2_megatron.config.resolve import fitting_world_sizes, resolve_world

FOLDER = Path(__file__).parents[2] / "examples" / "configs"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))
COMMENTED = ("k2-mini-8xh100", "moonlight-16b-a3b", "kimi-k2-1t")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_valid(path):
    config = load_config(path)
    assert config.run.name == path.stem
    assert fitting_world_sizes(config)
    if config.cluster.nodes is not None:
        resolve_world(config, config.cluster.nodes * config.cluster.gpus_per_node)


@pytest.mark.parametrize("name", COMMENTED)
def test_every_key_has_a_comment(name):
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    keys = [line for line in lines if re.match(r"\s+(- )?[{\w]", line)]
    bare = [line for line in keys if "#" not in line and not line.rstrip().endswith(":")]
    assert keys and not bare


def test_kimi_k2_is_the_reports():
    """Sections 2.4.2 and 2.5; the products are the tokens that the report names."""
    config = load_config(FOLDER / "kimi-k2-1t.yaml")
    schedule, parallel = config.schedule, config.parallel
    tokens = schedule.global_batch_size * schedule.seq_length
    assert tokens == 2**26  # "67 M"
    constant = schedule.train_steps - (schedule.lr_wsd_decay_steps or 0)
    assert round(constant * tokens / 1e12, 3) == 10.0
    assert round((schedule.lr_wsd_decay_steps or 0) * tokens / 1e12, 3) == 5.5
    assert (schedule.lr, schedule.min_lr, schedule.lr_warmup_steps) == (2e-4, 2e-5, 500)
    assert parallel.pipeline_model_parallel_size == parallel.expert_model_parallel_size == 16
    assert parallel.tensor_model_parallel_size == parallel.context_parallel_size == 1
    assert (config.optimizer.weight_decay, config.optimizer.qk_clip_threshold) == (0.1, 100.0)
    for nodes in (32, 64, 128, 256):  # any power of two of model-parallel groups
        assert resolve_world(config, nodes * 8).data_parallel_size == nodes // 2

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Every example is valid, fits its own nodes, says what differs and why; K2's are the report's."""

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from k2_megatron.config.config import Config
from k2_megatron.config.learning_rate import courses_of
from k2_megatron.config.loader import load_config
from k2_megatron.config.phases import check_world_size, phases_of, run_world_sizes
from k2_megatron.config.resolve import resolve_world
from k2_megatron.errors import ConfigError
from k2_megatron.planner.job import job_of
from k2_megatron.planner.phase_peaks import peaks_of_phases

FOLDER = Path(__file__).parents[2] / "examples" / "configs"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))
of_every_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)

# What the two rules below are for, each broken once.
BARE = "run:\n  name: a  # a name\n  seed: 7\nmodel: {preset: k2-tiny}\n"
REPEATS = """\
run: {name: a, seed: 1234}
model: {preset: k2-tiny, hidden_size: 128, num_layers: 3}
parallel: {sequence_parallel: false}
schedule:
  seq_length: 64
  global_batch_size: 8
  phases:
    - {name: up, steps: 4, lr_style: linear, lr: 1.0e-3}
    - {name: more, steps: 4, lr_style: constant, global_batch_size: 8}
data: {corpora: [{path: corpus, weight: 1.0}]}
"""


@of_every_example
def test_valid(path):
    config = load_config(path)
    assert config.run.name == path.stem
    assert run_world_sizes(config)
    if config.cluster.nodes is not None:
        check_world_size(config, config.cluster.nodes * config.cluster.gpus_per_node)


@of_every_example
def test_planned(path):
    """Every phase fits on H100s: those of its job, or the fewest that its layout takes."""
    config = load_config(path)
    nodes = config.cluster.nodes
    counts = [nodes * config.cluster.gpus_per_node] if nodes else run_world_sizes(config)[:1]
    if path.stem == "kimi-k2-1t":
        counts = [256, 512, *counts, 2048, 4096]  # the numbers of nodes that its comment names
    for count in counts:
        peaks = peaks_of_phases(config, partial(job_of, num_gpus=count))
        assert [peak.phase.name for peak in peaks if not peak.fits] == []


@of_every_example
def test_every_key_has_a_comment(path):
    assert _without_comment(path.read_text()) == []


@of_every_example
def test_every_key_differs_from_what_it_would_be_without_it(path, tmp_path):
    assert _without_effect(path.read_text(), tmp_path) == []


def test_what_breaks_the_two_rules_is_found(tmp_path):
    """Defaults of the schema and of the preset, automatic values, what a phase finds as it is."""
    assert _without_comment(BARE) == ["seed", "preset"]
    assert _without_effect(REPEATS, tmp_path) == [
        "run.seed",
        "model.hidden_size",
        "parallel.sequence_parallel",
        "schedule.phases.1.lr_style",
        "schedule.phases.1.global_batch_size",
        "data.corpora.0.weight",
    ]


def _without_comment(text: str) -> list[str]:
    """Keys on whose line nothing is said; sections are headings."""
    lines = text.splitlines()
    keys = [key for _, section in yaml.compose(text).value for key in _keys(section)]
    return [key.value for key in keys if not re.search(r" # ?\S", lines[key.start_mark.line])]


def _keys(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """Every key inside a node, in the order of the file."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield from _keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _keys(item)


def _without_effect(text: str, folder: Path) -> list[str]:
    """Keys that could be left out: the run would be the same."""
    root, file = yaml.safe_load(text), folder / "shorter.yaml"

    def meaning(values: object) -> object:
        file.write_text(yaml.safe_dump(values))
        return _meaning(load_config(file))

    whole, found = meaning(root), []
    for path in _leaves(root):
        shorter = copy.deepcopy(root)
        at = shorter
        for step in path[:-1]:
            at = at[step]
        del at[path[-1]]
        try:
            same = meaning(shorter) == whole
        except ConfigError:
            continue
        if same:
            found.append(".".join(map(str, path)))
    return found


def _leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything that is neither a mapping nor a list."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


def _meaning(config: Config) -> object:
    """What a run does: its phases resolved, however they are written."""
    unphased = replace(config, schedule=replace(config.schedule, phases=()))
    return unphased, phases_of(config), courses_of(config)


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

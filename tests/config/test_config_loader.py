# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The strict loader: what it accepts, and the text of everything it refuses."""

import subprocess
import sys

import pytest
from config_helpers import TINY, load, problems

from k2_megatron.config.data import CorpusConfig
from k2_megatron.config.loader import load_config
from k2_megatron.config.model import ModelConfig
from k2_megatron.errors import ConfigError


def test_given_values_preset_values_and_defaults(tmp_path):
    config = load(tmp_path, "model.num_layers=6", "data.corpora=[{path: a, weight: 3}, {path: b}]")
    assert config.run.name == "tiny"
    assert config.model.num_layers == 6
    assert config.model.hidden_size == 128
    assert config.model.rotary_base == ModelConfig(preset="kimi-k2").rotary_base
    assert config.schedule.lr == 2e-4
    expected = (CorpusConfig(path="a", weight=3.0), CorpusConfig(path="b", weight=1.0))
    assert config.data.corpora == expected
    assert isinstance(config.data.corpora[0].weight, float)


def test_integer_is_taken_for_a_number_and_null_for_an_optional_key(tmp_path):
    config = load(tmp_path, "optimizer.clip_grad=2", "checkpoint.keep_last=null")
    assert config.optimizer.clip_grad == 2.0 and isinstance(config.optimizer.clip_grad, float)
    assert config.checkpoint.keep_last is None


def test_an_override_replaces_a_wrong_value_of_the_file(tmp_path):
    text = TINY.replace("train_steps: 20", "train_steps: many")
    assert load(tmp_path, "schedule.train_steps=30", text=text).schedule.train_steps == 30


def test_empty_section_is_allowed(tmp_path):
    assert load(tmp_path, text=TINY + "parallel:\n") == load(tmp_path)


NAME = "text of letters, digits and . _ - that begins with a letter or digit"
DECIMALS = "write plain decimals"
VALUES = [
    ("schedule.lr=1e-4", "'1e-4' (text)", "a number > 0; YAML reads 1e-4 as text: write 1.0e-4"),
    ("schedule.lr=1.5e3", "'1.5e3' (text)", "a number > 0; YAML reads 1.5e3 as text: write 1.5e+3"),
    ("schedule.lr='2.0'", "'2.0' (text)", "a number > 0; leave out the quotes"),
    ("schedule.lr=fast", "'fast' (text)", "a number > 0"),
    ("schedule.lr=0", "0 (an integer)", "a number > 0"),
    ("schedule.lr=.inf", ".inf (a number)", "a number > 0"),
    ("schedule.lr=.nan", ".nan (a number)", "a number > 0"),
    ("schedule.lr=true", "true (a boolean)", "a number > 0"),
    ("schedule.lr=[1]", "a list", "a number > 0"),
    ("schedule.lr={a: 1}", "a mapping", "a number > 0"),
    ("schedule.lr=null", "null", "a number > 0"),
    ("schedule.lr=1:30", "1:30 (an integer)", "a number > 0; YAML reads 1:30 as 90: " + DECIMALS),
    ("schedule.train_steps=1e3", "'1e3' (text)", "an integer >= 1; write 1000"),
    ("schedule.train_steps=100.0", "100.0 (a number)", "an integer >= 1; write 100"),
    ("schedule.train_steps=0.5", "0.5 (a number)", "an integer >= 1"),
    ("schedule.train_steps=yes", "yes (a boolean)", "an integer >= 1"),
    ("schedule.train_steps=010", "010 (an integer)",
     "an integer >= 1; YAML reads 010 as 8: " + DECIMALS),
    ("schedule.train_steps=-5", "-5 (an integer)", "an integer >= 1"),
    ("schedule.train_steps=2020-01-01", "2020-01-01 (a date)", "an integer >= 1"),
    ("schedule.train_steps=2020-99-99", "tag:yaml.org,2002:timestamp '2020-99-99'",
     "an integer >= 1"),
    ("schedule.train_steps=!mine 3", "!mine '3'", "an integer >= 1"),
    ("checkpoint.keep_last=None", "'None' (text)", "an integer >= 1, or null; write null"),
    ("logging.tensorboard=1", "1 (an integer)", "true or false"),
    ("logging.tensorboard='1'", "'1' (text)", "true or false"),
    ("run.name=12", "12 (an integer)",
     NAME + "; put it in quotes to make it text"),
    ("run.name=no", "no (a boolean)",
     NAME + "; put it in quotes to make it text"),
    ("run.name=../x", "'../x' (text)",
     NAME),
    ("run.folder=' '", "' ' (text)", "text that is not empty, without blanks at its ends"),
    ("precision.dtype=fp16", "'fp16' (text)", "one of bf16, fp32; did you mean bf16?"),
    ("precision.dtype=double", "'double' (text)", "one of bf16, fp32"),
    ("precision.dtype=16", "16 (an integer)", "one of bf16, fp32; did you mean bf16?"),
    ("data.valid_fraction=1", "1 (an integer)", "a number > 0 and < 1"),
    ("data.valid_fraction=0.0", "0.0 (a number)", "a number > 0 and < 1"),
    ("data.corpora=corpus", "corpus", "a list of mappings with path, weight"),
    ("data.corpora={path: a}", "a mapping", "a list of mappings with path, weight"),
    ("data.corpora=[]", "an empty list", "a list of mappings with path, weight"),
    ("optimizer.muon_ns_coefficients=1.5", "1.5", "a list of 3 numbers"),
    ("optimizer.muon_ns_coefficients=null", "null", "a list of 3 numbers"),
    ("optimizer.muon_ns_coefficients={a: 1}", "a mapping", "a list of 3 numbers"),
    ("optimizer.muon_ns_coefficients=[]", "a list of 0 items", "a list of 3 numbers"),
    ("optimizer.muon_ns_coefficients=[1.5]", "a list of 1 item", "a list of 3 numbers"),
    *[
        (
            f"cluster.time_limit='{none}'",
            f"'{none}' (text)",
            "text of the form 'HH:MM:SS' or 'DAYS-HH:MM:SS', longer than 0, or null",
        )
        for none in ("0:00:00", "00:00:00", "0-00:00:00")
    ],
]  # fmt: skip


@pytest.mark.parametrize(("override", "given", "allowed"), VALUES, ids=[v[0] for v in VALUES])
def test_wrong_value(tmp_path, override, given, allowed):
    key = override.partition("=")[0]
    expected = f"--set {override}: {key}: given {given}; allowed: {allowed}"
    assert problems(tmp_path, override) == [expected]


def test_number_too_large_for_a_float(tmp_path):
    digits = "9" * 400
    (problem,) = problems(tmp_path, f"schedule.lr={digits}")
    assert problem.endswith(f"given {digits} (an integer); allowed: a number > 0")


def test_wrong_items_of_a_list(tmp_path):
    text = TINY.replace(
        "    - path: corpus\n",
        "    - path: a\n      wight: 2\n      weight: 0\n    - weight: 1.0\n    - b\n"
        "    - {path: c, path: d}\n",
    )
    assert problems(tmp_path, text=text) == [
        "c.yaml:12: data.corpora[0].wight: unknown key; did you mean data.corpora[0].weight?",
        "c.yaml:13: data.corpora[0].weight: given 0 (an integer); allowed: a number > 0",
        "c.yaml:14: data.corpora[1].path: not given and has no default; allowed: "
        "text that is not empty, without blanks at its ends",
        "c.yaml:15: data.corpora[2]: given b; allowed: a mapping with path, weight",
        "c.yaml:16: data.corpora[3].path: given twice, first at c.yaml:16; allowed: once",
    ]


def test_list_of_numbers(tmp_path):
    override = "optimizer.muon_ns_coefficients=[2, -1.5, .5]"
    found = load(tmp_path, "optimizer.type=muonclip", override).optimizer.muon_ns_coefficients
    assert found == (2.0, -1.5, 0.5) and all(isinstance(number, float) for number in found)


def test_wrong_numbers_of_a_list(tmp_path):
    text = TINY + "optimizer:\n  type: muonclip\n  muon_ns_coefficients:\n    - 1e5\n    - 2\n"
    assert problems(tmp_path, text=text + "    - null\n") == [
        "c.yaml:15: optimizer.muon_ns_coefficients[0]: given '1e5' (text); allowed: a number; "
        "YAML reads 1e5 as text: write 1.0e+5",
        "c.yaml:17: optimizer.muon_ns_coefficients[2]: given null; allowed: a number",
    ]


def test_wrong_item_in_an_override(tmp_path):
    override = "data.corpora=[{weight: 2}]"
    (problem,) = problems(tmp_path, override)
    assert problem.startswith(f"--set {override}: data.corpora[0].path: not given")


def test_unknown_and_repeated_keys_and_sections(tmp_path):
    text = (
        "run: {name: tiny}\n"
        "modle: {preset: k2-tiny}\n"
        "model: {preset: k2-tiny, num_layer: 3, zzz: 1, seq_length: 3}\n"
        "cake: {}\n"
        + TINY[TINY.index("schedule:") :]
        + "schedule: {}\n"
        + "logging:\n  valid_steps: 2\n  valid_steps: 3\n  1: 2\n  [a]: 2\n"
        + "memory: none\nprecision: [bf16]\n"
    )
    known = (
        "run, model, parallel, precision, optimizer, schedule, data, memory, checkpoint, logging, "
        "cluster"
    )
    logging = (
        "log_every_steps, valid_every_steps, valid_steps, tensorboard, trace_steps, trace_ranks, "
        "straggler_factor, straggler_reports"
    )
    found = problems(tmp_path, text=text)
    (zzz,) = [line for line in found if "zzz" in line]
    assert zzz.startswith("c.yaml:3: model.zzz: unknown key; allowed: preset, num_layers, ")
    found.remove(zzz)
    assert found == [
        "c.yaml:2: modle: unknown section; did you mean model?",
        "c.yaml:3: model.num_layer: unknown key; did you mean model.num_layers?",
        "c.yaml:3: model.seq_length: unknown key; did you mean schedule.seq_length?",
        f"c.yaml:4: cake: unknown section; allowed: {known}",
        "c.yaml:14: schedule: given twice, first at c.yaml:5; allowed: once",
        "c.yaml:17: logging.valid_steps: given twice, first at c.yaml:16; allowed: once",
        f"c.yaml:18: logging.1: unknown key; allowed: {logging}",
        f"c.yaml:19: logging.a list: unknown key; allowed: {logging}",
        "c.yaml:20: memory: given none; allowed: a mapping of keys",
        "c.yaml:21: precision: given a list; allowed: a mapping of keys",
    ]


def test_missing_keys_are_told_at_their_section_or_the_file(tmp_path):
    assert problems(tmp_path, text="run: {seed: 1}\n\nschedule:\n  seq_length: 64\n") == [
        f"c.yaml:1: run.name: not given and has no default; allowed: {NAME}",
        "c.yaml:3: schedule.train_steps: not given and has no default; allowed: an integer >= 1",
        "c.yaml:3: schedule.lr_wsd_decay_steps: given null (default) with schedule.lr_decay_style "
        "wsd (default); allowed: an integer >= 1; wsd needs the length of its decay",
        "c.yaml: model.preset: not given and has no default; "
        "allowed: one of kimi-k2, moonlight-16b-a3b, k2-tiny",
        "c.yaml: data.corpora: not given and has no default; "
        "allowed: a list of mappings with path, weight",
    ]


def test_everything_wrong_is_told_at_once_in_the_order_of_the_file(tmp_path):
    text = TINY.replace("model: {preset: k2-tiny}", "model: {preset: k2-tiny, num_experts: 7}")
    text = text.replace("seq_length: 64", "seq_length: 1e2") + "parallel:\n"
    text += "  expert_model_parallel_size: 2\n  tensor_model_parallel_size: 2\n"
    assert problems(tmp_path, "schedule.lr=-1", "run.sed=3", text=text) == [
        "c.yaml:2: model.num_experts: given 7 with parallel.expert_model_parallel_size 2 "
        "(c.yaml:13); allowed: a multiple of 2; it is divided evenly over 2 processes",
        "c.yaml:5: schedule.seq_length: given '1e2' (text); allowed: an integer >= 2; write 100",
        "--set schedule.lr=-1: schedule.lr: given -1 (an integer); allowed: a number > 0",
        "--set run.sed=3: run.sed: unknown key; did you mean run.seed?",
    ]


def test_rules_that_rest_on_an_unreadable_value_are_silent(tmp_path):
    """What stands in for an unreadable value, and what follows from that, is not judged."""
    found = problems(
        tmp_path, "parallel.tensor_model_parallel_size=three", "parallel.sequence_parallel=true"
    )
    assert len(found) == 1 and "tensor_model_parallel_size: given 'three'" in found[0]
    found = problems(
        tmp_path,
        "parallel.expert_model_parallel_size=two",
        "parallel.tensor_model_parallel_size=2",
        "model.moe_ffn_hidden_size=95",
    )
    assert len(found) == 1 and "expert_model_parallel_size: given 'two'" in found[0]
    found = problems(
        tmp_path,
        "model.preset=k3",
        "parallel.tensor_model_parallel_size=3",
        "schedule.seq_length=66",
    )
    assert len(found) == 1 and "model.preset: given 'k3'" in found[0]


OVERRIDES = [
    ("model", "--set model: allowed: --set section.key=value"),
    ("model=1", "--set model=1: allowed: --set section.key=value"),
    ("a.b.c=1", "--set a.b.c=1: allowed: --set section.key=value"),
    (".b=1", "--set .b=1: allowed: --set section.key=value"),
    ("run.seed=", "--set run.seed=: the value is empty; write null for no value"),
    ("ruin.seed=1", "--set ruin.seed=1: ruin: unknown section; did you mean run?"),
    (
        "run.seed=[",
        "--set run.seed=[: the value is not YAML: while parsing a flow node, "
        "expected the node content, but found '<stream end>'",
    ),
]


@pytest.mark.parametrize(("override", "expected"), OVERRIDES, ids=[o[0] for o in OVERRIDES])
def test_malformed_override(tmp_path, override, expected):
    assert problems(tmp_path, override) == [expected]


def test_override_given_twice(tmp_path):
    assert problems(tmp_path, "run.seed=1", "run.seed=2") == [
        "--set run.seed=2: run.seed: given twice, first by --set run.seed=1; allowed: once"
    ]


FILES = [
    ("", "c.yaml:1: is empty; allowed: sections of keys"),
    ("# nothing\n", "c.yaml:1: is empty; allowed: sections of keys"),
    (
        "\n- run\n",
        "c.yaml:2: given a list; allowed: a mapping of sections, such as run: and model:",
    ),
    (
        "run:\n\tname: x\n",
        "c.yaml:2: is not YAML: while scanning for the next token, "
        "found character '\\t' that cannot start any token",
    ),
    (
        "run: {}\n---\nrun: {}\n",
        "c.yaml:2: is not YAML: expected a single document in the stream, "
        "but found another document",
    ),
    ("run:\n  name: \x01\n", "c.yaml:2: is not YAML: a character that YAML does not allow"),
]


@pytest.mark.parametrize(("text", "expected"), FILES)
def test_file_without_a_mapping(tmp_path, text, expected):
    assert problems(tmp_path, text=text) == [expected]


def test_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file or directory"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r": cannot be read: Is a directory"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"run: {name: \xe9}")
    with pytest.raises(ConfigError, match=r"latin\.yaml: is not UTF-8 text"):
        load_config(str(tmp_path / "latin.yaml"))


def test_config_and_planner_do_not_import_torch():
    modules = "k2_megatron.config.loader, k2_megatron.config.dump, k2_megatron.config.reference, "
    modules += "k2_megatron.planner.parameters, k2_megatron.planner.flops"
    code = f"import sys, {modules}\nassert not {{'torch', 'megatron'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Phases on gloo: what changes between them, and that a stop anywhere in them changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from k2_megatron.data.prepare import prepare
from k2_megatron.data.tokenizer import build_tokenizer
from tests.distributed.canonical import assemble
from tests.distributed.equality import PARAMETER
from tests.distributed.harness import run_ranks
from tests.distributed.test_resume import assert_same_end

JOB = "tests.distributed.phase_jobs.train_phases"
SMALL = (Path(__file__).with_name("small.yaml")).read_text()
PHASES = """\
schedule:
  seq_length: 16
  global_batch_size: 4
  phases:
    - {name: warmup, steps: 2, lr_style: linear, lr: 2.0e-3}
    - {name: main, tokens: 256, lr_style: cosine, lr: 1.0e-3, global_batch_size: 8}
    - name: long
      steps: 3
      lr_style: linear
      lr: 0.0
      seq_length: 32
      global_batch_size: 4
      micro_batch_size: 2
      model: {moe_router_bias_update_rate: 0.0}
"""
NUM_DOCUMENTS = 60


@pytest.fixture
def phased(tmp_path: Path) -> Path:
    """The small model with phases, on documents whose every token tells which one it is."""
    text = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": chr(32 + index) * 30}) for index in range(NUM_DOCUMENTS)]
    text.write_text("\n".join(lines))
    prepare([text], tmp_path / "corpus", build_tokenizer("byte"))
    head, _, _ = SMALL.partition("schedule:")
    head = head.replace("vocab_size: 128", "vocab_size: 260")
    path = tmp_path / "phased.yaml"
    data = f"data: {{corpora: [{{path: {tmp_path}/corpus}}], valid_fraction: 0.2}}\n"
    path.write_text(f"{head}{PHASES}{data}logging: {{valid_steps: 1}}\n")
    return path


def train(config: Path, world_size: int, name: str, **kwargs: Any) -> list[dict[str, Any]]:
    overrides = [f"run.folder={config.parent}", f"run.name={name}", *kwargs.pop("overrides", ())]
    return run_ranks(
        JOB, world_size, config_path=str(config), overrides=overrides, **({"last": None} | kwargs)
    )


def steps_of(ranks: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Step, loss, rate, consumed tokens and phase of every step; the same on all ranks."""
    found = [[step[:5] for step in rank["steps"]] for rank in ranks]
    assert all(one == found[0] for one in found)
    return found[0]


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5], ids="stop after {}".format)
def test_resume_equals_not_stopping(phased: Path, stop: int) -> None:
    """Within a phase and at each of its ends: batch, length, rate and bias rate change between."""
    whole = train(phased, 2, "whole", save_after=stop)
    train(phased, 2, "halves", last=stop)
    second = train(phased, 2, "halves")
    assert steps_of(second) == steps_of(whole)[stop:]
    for one, other in zip(whole, second, strict=True):
        assert one["steps"][stop:] == other["steps"]  # the very text, too
        assert one["valid"] == other["valid"]
    # Of more than three steps its last three are compared.
    for rank in (*whole, *second):
        rank["losses"] = [step[1] for step in rank["steps"]][-2:]
    assert_same_end(whole, second)


def test_what_changes_and_when(phased: Path) -> None:
    (one,) = train(phased, 1, "one", save_after=4)
    assert [step[2:5] for step in one["steps"]] == [
        (pytest.approx(1.0e-3), 64, "warmup"),
        (pytest.approx(2.0e-3), 128, "warmup"),
        (pytest.approx(1.5e-3), 256, "main"),
        (pytest.approx(1.0e-3), 384, "main"),
        (pytest.approx(1.0e-3 * 2 / 3), 512, "long"),
        (pytest.approx(1.0e-3 / 3), 640, "long"),
        (0.0, 768, "long"),
    ]
    texts = [step[5] for step in one["steps"]]
    assert [(len(text), len(text[0])) for text in texts] == [
        (4, 16), (4, 16), (8, 16), (8, 16), (4, 32), (4, 32), (4, 32),
    ]  # fmt: skip
    (before,) = train(phased, 1, "four", last=4)
    assert before["biases"] == one["biases"] and any(map(any, one["biases"].values()))


def test_no_text_is_read_twice(phased: Path) -> None:
    """Neither across a change of the batch nor across one of the length, which has documents of
    its own; a document is whole in one of the lengths."""
    (one,) = train(phased, 1, "one")
    texts = [step[5] for step in one["steps"]]
    samples = [tuple(row) for text in texts for row in text]
    assert len(set(samples)) == len(samples)
    short, long = (
        {token for text in part for row in text for token in row if token < 256}
        for part in (texts[:4], texts[4:])
    )
    assert short and long and not short & long


def test_batch_is_the_same_for_any_number_of_ranks(phased: Path) -> None:
    (one,) = train(phased, 1, "one")
    two = train(phased, 2, "two")
    for index, step in enumerate(one["steps"]):
        parts = [rank["steps"][index][5] for rank in two]
        size = 2 if step[4] == "long" else 1
        pairs = zip(*[range(0, len(part), size) for part in parts], strict=True)
        merged = [row for at in pairs for part, i in zip(parts, at, strict=True)
                  for row in part[i : i + size]]  # fmt: skip
        assert merged == step[5], f"step {step[0]}"
    losses = [step[1] for step in one["steps"]]
    # fp32 sums in another order, as in equality.py.
    assert [step[1] for step in steps_of(two)] == pytest.approx(losses, rel=2e-6)


def test_a_pipeline_passes_on_sequences_of_every_length(phased: Path) -> None:
    """Its stages must know the length of what they are sent."""
    (one,) = train(phased, 1, "one")
    two = train(phased, 2, "two", overrides=["parallel.pipeline_model_parallel_size=2"])
    losses = [step[1] for step in one["steps"]]
    assert [step[1] for step in steps_of(two)] == pytest.approx(losses, rel=2e-6)


def test_phase_of_another_layout_goes_on(phased: Path) -> None:
    """The checkpoint decides what is built: a pipeline at first, then experts divided."""
    text = phased.read_text()
    plain = phased.with_name("plain.yaml")
    plain.write_text(text)
    change = "      parallel: {pipeline_model_parallel_size: 1, expert_model_parallel_size: 2}\n"
    phased.write_text(text.replace("      seq_length: 32\n", "      seq_length: 32\n" + change))
    piped = ["parallel.pipeline_model_parallel_size=2"]
    first = train(phased, 2, "two", overrides=piped)
    assert [step[0] for step in steps_of(first)] == [1, 2, 3, 4]
    second = train(phased, 2, "two", overrides=piped)
    assert [step[0] for step in steps_of(second)] == [5, 6, 7]
    assert "pp2" in first[0]["built"] and "ep2" in second[0]["built"]
    assert second[0]["notes"][0].startswith("another layout (parallel.expert_model_parallel_size 1")
    (one,) = train(plain, 1, "one")
    losses = [step[1] for step in one["steps"]]
    found = [step[1] for step in (*steps_of(first), *steps_of(second))]
    assert found == pytest.approx(losses, rel=2e-6)
    expected = assemble([one["parameters"]], one["shapes"])
    for key, values in assemble([rank["parameters"] for rank in second], one["shapes"]).items():
        torch.testing.assert_close(values, expected[key], **PARAMETER)


def test_past_phases_stay_as_they_were(phased: Path) -> None:
    """What is to come may be changed, what is done may not."""
    train(phased, 1, "one", last=4)
    text = phased.read_text()
    phased.write_text(text.replace("steps: 2", "steps: 3"))
    (refused,) = train(phased, 1, "one")
    assert (
        "it has consumed 24 samples in 4 steps, and by this schedule that would be 20"
        in refused["refused"]
    )
    phased.write_text(text.replace("seq_length: 16", "seq_length: 8").replace("256", "128"))
    (refused,) = train(phased, 1, "one")
    assert "samples in another order" in refused["refused"]
    assert refused["refused"].endswith(
        "; a phase of another seq_length that is added now needs data.corpora of its own"
    )
    phased.write_text(text.replace("steps: 3", "steps: 1"))
    (going_on,) = train(phased, 1, "one")
    assert [step[0] for step in going_on["steps"]] == [5]


def test_run_without_phases_goes_on_with_them(phased: Path) -> None:
    """They begin like it; a longer sequence is added with corpora of its own."""
    head, _, rest = phased.read_text().partition("schedule:")
    data = rest[rest.index("data:") :]
    flat = "schedule: {train_steps: 2, seq_length: 16, global_batch_size: 4, lr_warmup_steps: 1, "
    phased.write_text(f"{head}{flat}lr_decay_style: cosine}}\n{data}")
    train(phased, 1, "one")
    phased.write_text(f"{head}schedule:{rest}")
    (refused,) = train(phased, 1, "one")
    assert "needs data.corpora of its own" in refused["refused"]
    corpora = data[data.index("{corpora") : data.index("}]") + 2] + "}"
    longer = "      seq_length: 32\n"
    phased.write_text(
        f"{head}schedule:{rest.replace(longer, f'{longer}      data: {corpora}' + chr(10))}"
    )
    (going_on,) = train(phased, 1, "one")
    assert [step[0] for step in going_on["steps"]] == [3, 4, 5, 6, 7]
    assert [len(step[5][0]) for step in going_on["steps"]] == [16, 16, 32, 32, 32]

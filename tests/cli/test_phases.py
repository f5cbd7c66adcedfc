# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A run in phases from the command line: it goes on by itself in another layout, or when told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.commands import CONFIG, assert_refused, k2
from tests.cli.test_training import metrics

HEAD, _, REST = CONFIG.read_text().partition("schedule:\n")
HEAD = HEAD.replace("parallel: {pipeline_model_parallel_size: 2}\n", "")  # one rank starts sooner
PHASED = f"""{HEAD}schedule:
  seq_length: 32
  global_batch_size: 4
  micro_batch_size: 2
  phases:
    - {{name: warmup, steps: 2, lr_style: linear, lr: 2.0e-3}}
    - {{name: main, tokens: 512, lr_style: cosine, lr: 1.0e-3, global_batch_size: 8}}
    - name: long
      steps: 2
      lr_style: linear
      lr: 0.0
      seq_length: 64
      global_batch_size: 4
      micro_batch_size: 1
      model: {{moe_router_bias_update_rate: 0.0}}
      parallel: {{moe_token_dispatcher_type: allgather}}
data:{REST.partition("data:")[2]}"""


@pytest.fixture
def phased(own_place: Path) -> Path:
    (own_place / "phased.yaml").write_text(PHASED)
    return own_place


def test_run_goes_on_in_another_layout_by_itself(phased):
    """Ranks that have ended with 3 at the end of a phase are started anew."""
    done = k2(phased, "train", "phased.yaml", "--set=run.name=whole")
    assert (done.code, done.err) == (0, "")
    for text in (
        "phase warmup (1 of 3): steps 1 to 2, 4 x 32 tokens a step, 2 micro-batches\n",
        "phase main (2 of 3): steps 3 to 4, 8 x 32 tokens a step, 4 micro-batches\n",
        "step 4 of 6 is done and saved: phase long needs other processes; the same command goes "
        "on with it\n",
        "resumed after step 4 from runs/whole/checkpoints/step_00000004\n",
        "phase long (3 of 3): steps 5 to 6, 4 x 64 tokens a step, 4 micro-batches\n",
        "step 6 of 6 is done: runs/whole/checkpoints\n",
    ):
        assert done.out.count(text) == 1, done.out
    lines = metrics(phased / "runs" / "whole")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["phase"] for line in lines] == ["warmup"] * 2 + ["main"] * 2 + ["long"] * 2
    assert [line["consumed_tokens"] for line in lines] == [128, 256, 512, 768, 1024, 1280]
    assert [float(str(line["lr"])) for line in lines] == pytest.approx(
        [1e-3, 2e-3, 1.5e-3, 1e-3, 5e-4, 0.0]
    )


def test_validate_and_plan_know_phases(phased):
    done = k2(phased, "validate", "phased.yaml")
    assert done.code == 0 and "numbers of processes that fit: 1, 2\n" in done.out
    rows = [" ".join(line.split()) for line in done.out.splitlines()[-4:]]
    assert rows == [
        "phase steps ends at tokens a step lr at its end * new processes",
        "warmup 2 256 4 x 32 2.00e-03 linear",
        "main 2 768 8 x 32 1.00e-03 cosine",
        "long 2 1280 4 x 64 0.00e+00 linear * moe_router_bias_update_rate 0.0, "
        "moe_token_dispatcher_type allgather",
    ]
    first = k2(phased, "plan", "phased.yaml", "--html", "plan.html")
    assert first.code == 0 and "Plan of phase warmup; --phase plans another" in first.out
    assert "2 micro-batches of 2 x 32 a pipeline" in first.out
    fits = [line.split() for line in first.out.split("\n\n")[1].splitlines()]
    assert [line[:2] for line in fits] == [[name, "fits"] for name in ("warmup", "main", "long")]
    page = (phased / "plan.html").read_text()
    assert "\nlong    fits  peak" in page
    assert page.count("<polyline") == 1 and page.count('stroke-dasharray="5 4"') == 1
    named = k2(phased, "plan", "phased.yaml", "--phase", "long", "--json")
    plan = json.loads(named.out)
    assert plan["phase"] == "long" and plan["num_microbatches"] == 4
    assert [phase["last_step"] for phase in plan["phases"]] == [2, 4, 6]
    assert [phase["fits"] for phase in plan["phases"]] == [True] * 3
    assert_refused(
        k2(phased, "plan", "phased.yaml", "--phase", "lang"),
        "--phase lang: allowed: warmup, main, long",
    )
    assert_refused(
        k2(phased, "plan", "tiny.yaml", "--phase", "main"),
        "--phase main: the configuration has no schedule.phases",
    )


def test_plan_says_which_phase_does_not_fit(phased):
    """The first phase was planned, and fits; nothing was said of the last."""
    text = PHASED.replace("seq_length: 64", "seq_length: 67108864")
    (phased / "phased.yaml").write_text(text)
    done = k2(phased, "plan", "phased.yaml", "--gpus", "1")
    assert done.code == 0
    rows = [" ".join(line.split()) for line in done.out.split("\n\n")[1].splitlines()]
    assert rows[0].startswith("warmup fits peak ") and rows[0].endswith(" of 76.1 GiB 1 x H100")
    assert rows[1].startswith("main fits peak ") and rows[2].startswith("long DOES NOT FIT peak ")
    several = k2(phased, "plan", "phased.yaml", "--gpus", "1,2,4", "--phase", "long")
    assert several.out.count("DOES NOT FIT") == 3
    assert re.search(r"warmup +CANNOT RUN +4 x H100\n", several.out), several.out


def test_number_of_ranks_that_one_phase_cannot_use(phased):
    assert_refused(
        k2(phased, "train", "phased.yaml", "--nproc", "8"),
        "phase warmup: 8 processes do not fit the parallel layout",
    )


def test_phases_that_no_number_of_ranks_fits(phased):
    """`validate` called them valid, and `train` ended with an IndexError."""
    text = PHASED.replace(
        "{moe_token_dispatcher_type: allgather}", "{tensor_model_parallel_size: 8}"
    )
    (phased / "phased.yaml").write_text(
        text.replace("num_attention_heads: 2", "num_attention_heads: 8")
    )
    for command in ("validate", "train"):
        assert_refused(
            k2(phased, command, "phased.yaml"),
            "schedule.phases: given a list of 3 items with schedule.global_batch_size 4 (phased",
            "allowed: phases that share a number of processes; the number must fit every phase: "
            "phase long takes 8, 16, 32; all before it 1, 2\n",
        )

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What `launch` looks at before it submits: whether the plan fits the GPUs of the job."""

from __future__ import annotations

import re

import pytest

from tests.cli.commands import assert_refused, k2
from tests.slurm.test_slurm_script import GOLDEN, ROOT

CONFIGS = ROOT / "examples" / "configs"
MINI = str(CONFIGS / "k2-mini-8xh100.yaml")
DEEP = ("launch", MINI, "--dry-run", "--set=model.num_layers=60")


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
def test_examples_fit_an_h100(tmp_path, golden):
    """Nothing is said of memory, and the script is that of the examples."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    config = f"examples/configs/{golden.stem}.yaml"
    done = k2(tmp_path, "launch", config, "--dry-run", "--gpu=H100")
    assert (done.code, done.err, done.out) == (0, "", golden.read_text(encoding="utf-8"))


def test_a_plan_that_does_not_fit_is_refused_with_its_rows(tmp_path):
    """By the kind that the job names, or that is given for the check."""
    by_option = k2(tmp_path, *DEEP, "--gpu=H100")
    assert_refused(
        by_option,
        "memory: the fullest rank would need ",
        " GiB; H100 has 79.1 GiB, of which 3.00 are left to CUDA, NCCL and gaps. Nothing was "
        "submitted.",
        "Device memory, GiB by pipeline rank",
    )
    assert re.search(r"\n0 +E 0-59 L +5\.029B .* -\d", by_option.err), by_option.err
    assert k2(tmp_path, *DEEP, "--set=cluster.gpu_type=h100").err == by_option.err
    assert k2(tmp_path, *DEEP, "--gpu=H200").code == 0
    assert not (tmp_path / "runs").exists()


def test_a_phase_that_does_not_fit_is_named(tmp_path):
    config = str(CONFIGS / "kimi-k2-1t.yaml")
    done = k2(tmp_path, "launch", config, "--set=memory.preset=k2", "--gpu=H100")
    assert_refused(done, "phase warmup: memory: the fullest rank would need ")


def test_what_plan_says_does_not_fit_is_not_submitted(tmp_path):
    """The same limit: of 79.1 GiB `plan` leaves 3 to CUDA, NCCL and gaps."""
    mini = str(CONFIGS / "k2-mini-8xh100.yaml")
    for layers in (39, 40):
        changes = ("--set=schedule.micro_batch_size=2", f"--set=model.num_layers={layers}")
        plan = k2(tmp_path, "plan", mini, "--gpus=8", "--gpu=h100", *changes)
        launch = k2(tmp_path, "launch", mini, "--dry-run", "--gpu=h100", *changes)
        assert plan.code == 0, plan
        assert ("DOES NOT FIT" in plan.out) is (launch.code == 2) is (layers == 40), (plan, launch)


@pytest.mark.parametrize(("given", "told"), [((), "not given"), (("a100",), "a100")])
def test_memory_of_an_unknown_kind_is_said_to_be_unchecked(tmp_path, given, told):
    done = k2(tmp_path, *DEEP, *(f"--set=cluster.gpu_type={kind}" for kind in given))
    assert done.code == 0 and done.out.startswith("#!/usr/bin/env bash\n")
    assert done.err == (
        f"k2-megatron: memory is not checked: cluster.gpu_type is {told}; known: H100, H200, H800 "
        "(launch --gpu names one for the check alone)\n"
    )


def test_a_job_without_gpus_has_no_kind_of_them(tmp_path):
    job = [f"--set=cluster.{key}" for key in ("nodes=1", "gpus_per_node=0", "tasks_per_node=2")]
    tiny = str(CONFIGS / "k2-tiny.yaml")
    done = k2(tmp_path, "launch", tiny, "--dry-run", *job, "--gpu=H100")
    assert_refused(done, "--gpu H100: cluster.gpus_per_node is 0; allowed: leaving it out")

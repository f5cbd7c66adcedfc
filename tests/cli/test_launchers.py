# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Ranks that others start: torchrun, plain variables, SLURM."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from k2_megatron.errors import TopologyError
from k2_megatron.launch.ranks import RankInfo, check_local_ranks, launched_rank
from tests.cli.commands import assert_refused, k2, running_command
from tests.cli.test_training import metrics

ADDRESS = {"MASTER_ADDR": "host", "MASTER_PORT": "29500"}
TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", **ADDRESS}
SRUN = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", **ADDRESS}
SIXTH = RankInfo(rank=5, local_rank=1, world_size=8)


def _torchrun(*arguments: str) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, "--nproc-per-node", "2", "-m", "k2_megatron", "train", *arguments]


def test_torchrun_trains_the_same_run(place, whole_run):
    command = _torchrun("tiny.yaml", "--set=run.name=torchrun", "--set=run.stop_after_step=2")
    with running_command(place, command, OMP_NUM_THREADS="1") as run:
        done = run.done()
    assert done.code == 0, done
    assert done.out.count("step 1/2 |") == 1  # rank 0 speaks for all
    losses = [line["loss"] for line in metrics(place / "runs" / "torchrun")]
    assert losses == [line["loss"] for line in metrics(whole_run[1])][:2]


def test_under_torchrun_a_mistake_is_told_once(place):
    with running_command(place, _torchrun("tiny.yaml", "--set=schedule.seq_lenght=64")) as run:
        done = run.done()
    assert done.code != 0
    assert done.err.count("did you mean schedule.seq_length?") == 1
    assert done.err.count("k2-megatron: ") == 1


def test_plain_variables_are_enough(one_rank_run):
    done, run = one_rank_run
    assert "pp1" in done.out and "step 4 of 8 is done" in done.out
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4]
    assert list((run / "logs").iterdir()) == []


def test_nproc_has_no_place_under_a_launcher(place):
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", **ADDRESS}
    done = k2(place, "train", "tiny.yaml", "--nproc", "2", **variables)
    assert_refused(done, "--nproc 2: a launcher has started 2 processes", "leave --nproc out")


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"])
def test_incomplete_variables_end_the_command(place, name):
    variables = {key: value for key, value in TORCHRUN.items() if key != name}
    done = k2(place, "train", "tiny.yaml", **variables)
    assert_refused(done, f"environment variable {name} is not set")


def test_incomplete_slurm_variables_end_the_command(place):
    done = k2(place, "train", "tiny.yaml", SLURM_STEP_NUM_TASKS="4", SLURM_PROCID="1")
    assert_refused(done, "environment variable SLURM_LOCALID is not set")


def test_no_launcher():
    assert launched_rank({}) is None
    assert launched_rank({"MASTER_ADDR": "host"}) is None


def test_torchrun_variables():
    assert launched_rank(TORCHRUN) == SIXTH
    assert launched_rank({**SRUN, **TORCHRUN, "SLURM_PROCID": "0"}) == SIXTH


def test_slurm_variables():
    assert launched_rank(SRUN) == replace(SIXTH, sees_own_device=True)


def test_an_allocation_without_srun_is_no_launcher():
    inside = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert launched_rank(inside) is None
    assert launched_rank({**inside, "SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN])
def test_every_variable_is_needed(variables):
    for name in variables:
        if name == "SLURM_STEP_NUM_TASKS":  # without it there is no step
            continue
        rest = {key: value for key, value in variables.items() if key != name}
        with pytest.raises(TopologyError, match=f"environment variable {name} is not set"):
            launched_rank(rest)


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", " 1", "\u0661"])
def test_numbers_are_whole_numbers(text):
    for variables, name in ((TORCHRUN, "RANK"), (SRUN, "SLURM_STEP_NUM_TASKS")):
        with pytest.raises(TopologyError, match=f"environment variable {name} is "):
            launched_rank({**variables, name: text})


def test_rank_beyond_the_world():
    with pytest.raises(TopologyError, match="RANK is 8 and WORLD_SIZE is 8; allowed: ranks from 0"):
        launched_rank({**TORCHRUN, "RANK": "8"})


def test_missing_address_says_how_to_set_it():
    with pytest.raises(TopologyError, match=r"scontrol show hostnames"):
        launched_rank({**SRUN, "MASTER_ADDR": ""})


def test_more_ranks_than_gpus():
    check_local_ranks(8, 8)
    check_local_ranks(100, None)
    with pytest.raises(
        TopologyError, match="4 ranks on this machine, which has 1 GPU; allowed: at"
    ):
        check_local_ranks(4, 1)
    with pytest.raises(TopologyError, match="which has 8 GPUs; allowed: at most 8, one for each"):
        check_local_ranks(9, 8)


def test_a_slurm_task_that_sees_one_gpu_takes_it():
    """--gpus-per-task and --gpu-bind hide the other tasks' GPUs."""
    under_slurm, under_torchrun = launched_rank(SRUN), launched_rank(TORCHRUN)
    assert under_slurm.local_rank == 1
    assert under_slurm.device_index(1) == 0
    assert under_slurm.device_index(8) == 1
    assert under_slurm.device_index(None) == 1
    with pytest.raises(TopologyError, match="2 ranks on this machine, which has 1 GPU"):
        under_torchrun.device_index(1)

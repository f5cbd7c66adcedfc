# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The layout that the planner's costs give, within memory, and what is said where none fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from k2_megatron.memory.policy import PRESETS
from k2_megatron.model.shape import pipeline_layout
from k2_megatron.parallel.layout_request import Needs
from k2_megatron.planner.hardware import GPUS
from k2_megatron.planner.job import Job, job_of
from k2_megatron.planner.nearest import nearest_text
from k2_megatron.planner.place import request_of, within_memory
from k2_megatron.planner.plan import make_plan, plan_ranks
from tests.parallel.test_layout_search import OVERLAPPED, SERIAL
from tests.planner.planner_helpers import GIB, k2_cluster


def overlapped(virtual: int) -> dict[str, object]:
    return {
        "virtual_pipeline_model_parallel_size": virtual,
        "overlap_moe_expert_parallel_comm": True,
    }


@pytest.mark.parametrize(
    ("options", "times"), [({}, SERIAL), (overlapped(2), OVERLAPPED)], ids=["serial", "overlapped"]
)
def test_times_of_k2s_parts(options: dict[str, object], times: Needs) -> None:
    """The numbers that the search is tested with are the planner's, to the digits given there."""
    found = request_of(job_of(k2_cluster(**options))).times
    assert found.layers == pytest.approx([one / 1000 for one in times.layers], abs=5e-5)
    assert found.head == pytest.approx(times.head / 1000, abs=5e-5)
    assert found.embedding == pytest.approx(times.embedding / 1000, abs=1e-4)


def test_trainer_and_planner_have_one_layout() -> None:
    """Whatever the number and kind of GPUs."""
    config = k2_cluster(**overlapped(4))
    layout = pipeline_layout(config)
    for gpus in (256, 1024):
        assert job_of(config, gpus, gpu=GPUS["H800"]).layout == layout


def _small_gpu(gib: float) -> Job:
    """K2 at 512 GPUs with recomputation and FP8, on GPUs of a size."""
    gpu = replace(GPUS["H100"], memory_bytes=int(gib * GIB))
    return replace(job_of(k2_cluster(), 512, gpu=gpu), policies=PRESETS["k2"])


def test_a_layout_that_does_not_fit_is_replaced_by_one_that_does() -> None:
    roomy = make_plan(_small_gpu(200), place_matrices=False)
    assert within_memory(roomy.job) is roomy.job
    ranks = [rank.total_bytes / GIB for rank in roomy.ranks]
    tight = _small_gpu(max(ranks) + 3 - 1)  # 3 for CUDA and NCCL; one less than needed
    placed = within_memory(tight)
    assert placed.config.parallel.pipeline_model_parallel_layout == placed.layout.to_text()
    assert placed.layout != tight.layout
    usable = tight.gpu.memory_bytes - 3 * GIB
    assert max(rank.total_bytes for rank in plan_ranks(tight)) > usable
    assert max(rank.total_bytes for rank in plan_ranks(placed)) <= usable
    assert len(placed.layout.stages[1].layers) < len(tight.layout.stages[1].layers)


def test_a_written_layout_is_kept_and_what_cannot_fit_too() -> None:
    written = k2_cluster(pipeline_model_parallel_layout="Etttt|(tttt|)*14tL")
    for job in (replace(_small_gpu(60), config=written), _small_gpu(20)):
        assert within_memory(job) is job


def test_the_nearest_pipeline_that_fits_is_named() -> None:
    job = _small_gpu(70)
    assert within_memory(job) is job
    plan = make_plan(job, place_matrices=False)
    text = nearest_text(plan)
    assert text.startswith("nearest that fits with the rest as it is: PP 32 x VPP 1 (")
    hopeless = make_plan(_small_gpu(10), place_matrices=False)
    assert nearest_text(hopeless) == (
        "no other PP x VPP fits on 512 H100 with the rest of the configuration as it is"
    )

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""One configuration at any multiple of its model-parallel group, also across a resume."""

from __future__ import annotations

import pytest

from tests.cli.commands import k2
from tests.distributed.harness import run_ranks

# Twelve micro-batches a step, which 1, 2 and 3 pipelines of two ranks divide.
SAME = ("schedule.global_batch_size=12", "schedule.micro_batch_size=1")


def train(folder, name, ranks, first, last):
    """(loss, number of micro-batches) of the steps of a part of a run on so many ranks."""
    found = run_ranks(
        "tests.distributed.pipeline_jobs.train_on_text",
        ranks,
        config_path=str(folder / "tiny.yaml"),
        overrides=[
            *SAME,
            f"run.name={name}",
            f"run.folder={folder / 'runs'}",
            f"data.corpora=[{{path: '{folder / 'corpus' / 'bytes'}'}}]",
        ],
        first=first,
        last=last,
    )
    assert all(one == found[0] for one in found)
    return found[0]


def test_the_same_run_at_1_2_and_3_times_the_ranks(own_place):
    """A run of one pipeline, and one that goes from two pipelines to three in the middle.

    The same samples in the same order: another order gives losses that differ in the third digit.
    """
    one = train(own_place, "one", 2, 1, 6)
    more = train(own_place, "more", 4, 1, 3) + train(own_place, "more", 6, 4, 6)
    assert [count for _, count in one] == [12] * 6
    assert [count for _, count in more] == [6, 6, 6, 4, 4, 4]
    # fp32 sums over ranks in another order, as in tests/distributed/equality.py.
    assert [loss for loss, _ in more] == pytest.approx([loss for loss, _ in one], rel=2e-6)
    assert len({round(loss, 3) for loss, _ in one}) == 6, "no step could be taken for another"


def test_ranks_that_do_not_divide_the_batch_are_told_which_do(own_place):
    done = k2(own_place, "train", "tiny.yaml", *[f"--set={one}" for one in SAME], "--nproc=10")
    assert done.code == 2 and "Traceback" not in done.err
    assert "numbers of processes that fit: 2, 4, 6, 8, 12, 24" in done.err

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Mistakes that are found before any rank is started: exit code 2, what is wrong, nothing made."""

from __future__ import annotations

import pytest

from tests.cli.commands import assert_refused, k2


def _refused(folder, *arguments, texts, **environment):
    """`train tiny.yaml ARGUMENTS` is refused with these texts and makes no run folder."""
    done = k2(folder, "train", "tiny.yaml", *arguments, **environment)
    assert_refused(done, *texts)
    assert done.out == ""
    assert not (folder / "runs" / "tiny").exists()
    return done


def test_missing_config_file(place):
    done = k2(place, "train", "nowhere.yaml")
    assert_refused(done, "nowhere.yaml: cannot be read: No such file or directory")


def test_unknown_key_of_the_file(own_place):
    config = own_place / "tiny.yaml"
    config.write_text(config.read_text().replace("seq_length: 32", "seq_lenght: 32"))
    line = config.read_text().splitlines().index("  seq_lenght: 32") + 1
    _refused(
        own_place,
        texts=[
            f"tiny.yaml:{line}: schedule.seq_lenght: unknown key; did you mean schedule.seq_length?"
        ],
    )


def test_two_problems_are_told_together(place):
    _refused(
        place,
        "--set=schedule.lr=fast",
        "--set=parallel.pipeline_parallel_size=2",
        texts=[
            "2 problems in the configuration:",
            "--set schedule.lr=fast: schedule.lr: given 'fast' (text); allowed: a number",
            "unknown key; did you mean parallel.pipeline_model_parallel_size?",
        ],
    )


def test_wrong_type(place):
    texts = ["schedule.train_steps: given 2.5 (a number); allowed: an integer"]
    _refused(place, "--set=schedule.train_steps=2.5", texts=texts)


def test_number_of_processes_that_does_not_fit(place):
    texts = ["3 processes do not fit", "numbers of processes that fit: 2, 4"]
    _refused(place, "--nproc", "3", texts=texts)


def test_missing_corpus(place):
    texts = ["k2-megatron: nowhere/text.json: no such file", "`k2-megatron data prepare`"]
    _refused(place, "--set=data.corpora=[{path: nowhere/text}]", texts=texts)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_missing_data_file(own_place, suffix):
    (own_place / "corpus" / f"bytes{suffix}").unlink()
    _refused(own_place, texts=[f"corpus/bytes{suffix}: no such file; `k2-megatron data prepare`"])


def test_truncated_data_file(own_place):
    data = own_place / "corpus" / "bytes.bin"
    size = data.stat().st_size
    with data.open("r+b") as file:
        file.truncate(size - 2)
    texts = [f"corpus/bytes.bin: {size - 2} bytes", f"says {size}", "truncated"]
    _refused(own_place, texts=texts)


def test_vocabulary_smaller_than_the_data(place):
    texts = ["corpus/bytes.json", "vocabulary of 257 ids", "vocab_size allows 128"]
    _refused(place, "--set=model.vocab_size=128", texts=texts)


def test_too_little_to_validate(place):
    texts = ["data.valid_fraction 0.001 of 40 documents holds out none", "at least 0.0126"]
    _refused(place, "--set=data.valid_fraction=0.001", texts=texts)


def test_context_parallelism_on_a_cpu(place):
    _refused(
        place,
        "--set=parallel.context_parallel_size=2",
        "--set=precision.dtype=bf16",
        texts=[
            "parallel.context_parallel_size: given 2; allowed on a CPU: 1",
            "whole sequences",
            "Transformer Engine on a GPU",
        ],
    )


def test_delayed_weight_gradients_on_a_cpu(place):
    options = (
        "parallel.delay_wgrad_compute=true",
        "parallel.overlap_moe_expert_parallel_comm=true",
        "parallel.expert_model_parallel_size=2",
        "parallel.pipeline_model_parallel_size=1",
        "precision.dtype=bf16",
    )
    _refused(
        place,
        *(f"--set={option}" for option in options),
        texts=["parallel.delay_wgrad_compute: given true; allowed on a CPU: false"],
    )


def test_unknown_platform(place):
    texts = ["K2_MEGATRON_PLATFORM='tpu': allowed are 'cpu' and 'cuda', or unset"]
    _refused(place, texts=texts, K2_MEGATRON_PLATFORM="tpu")


def test_gpu_platform_without_a_gpu(place):
    texts = ["K2_MEGATRON_PLATFORM=cuda, but PyTorch", "sees no CUDA device"]
    _refused(place, texts=texts, K2_MEGATRON_PLATFORM="cuda", CUDA_VISIBLE_DEVICES="")


def test_run_folder_that_cannot_be_made(place):
    done = k2(place, "train", "tiny.yaml", "--set=run.folder=tiny.yaml")
    assert_refused(done, "run.folder tiny.yaml, run.name tiny: tiny.yaml/tiny cannot be made")
    assert "Not a directory" in done.err


def test_resume_never_refuses_what_lies_there(place, one_rank_run):
    _, run = one_rank_run
    before = (run / "metrics.jsonl").read_bytes()
    never = ("--set=run.name=one-rank", "--set=checkpoint.resume=never")
    done = k2(place, "train", "tiny.yaml", *never)
    assert_refused(
        done,
        "checkpoint.resume is never, and runs/one-rank/checkpoints holds checkpoints: "
        "step_00000002, step_00000004; use another run.name",
    )
    assert (run / "metrics.jsonl").read_bytes() == before

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Our model and transformers' DeepseekV3ForCausalLM compute the same with the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DeepseekV3ForCausalLM

from tests.distributed.harness import run_ranks
from tests.huggingface.releases import (
    CONFIG,
    OVERRIDES,
    SHAPES,
    answers,
    random_model,
    with_one_epsilon,
)

# fp32, sums of at most 384 terms through 3 layers in another order, logits up to 5: 2.2e-6 is the
# largest difference measured. The latent norm's other epsilon alone would move them by 5e-5.
RTOL, ATOL = 1e-5, 1e-5
NUM_NEW = 8


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_greedy_text_are_equal_both_ways(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    theirs = random_model(shape)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    tokens = torch.randint(128, (2, 24), generator=torch.Generator().manual_seed(1)).tolist()
    (ours,) = run_ranks(
        "tests.huggingface.jobs.both_ways",
        1,
        config_path=str(CONFIG),
        overrides=[*OVERRIDES, *shape.overrides],
        release=str(tmp_path / "theirs"),
        exported=str(tmp_path / "ours"),
        tokens=tokens,
        num_new=NUM_NEW,
    )
    exported, loading = DeepseekV3ForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(loading.values()), loading
    for found, model in ((ours["imported"], theirs), (ours["own"], exported)):
        expected = answers(with_one_epsilon(model), tokens, NUM_NEW)
        torch.testing.assert_close(found["logits"], expected["logits"], rtol=RTOL, atol=ATOL)
        assert found["text"].tolist() == expected["text"].tolist()

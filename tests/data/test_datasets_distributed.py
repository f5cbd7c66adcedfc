# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Several ranks build at once: equal samples, equal errors, and nobody waits for a failed rank."""

import json
import subprocess
import sys
from pathlib import Path

from k2_megatron.data.datasets import build_datasets
from tests.data.build_on_two_ranks import tokens_of
from tests.data.conftest import MakeCorpus


def test_two_ranks_build_what_one_process_builds(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    one = make_corpus("one", num_documents=20, num_characters=40).prefix
    two = make_corpus("two", num_documents=30, num_characters=50).prefix
    program = Path(__file__).with_name("build_on_two_ranks.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(program), str(rank), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    seen = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]

    for name, corpora in (
        ("single", [(one, 1.0)]),
        ("blend", [(one, 3.0), (two, 1.0)]),
        ("cached", [(one, 3.0), (two, 1.0)]),
    ):
        train, valid = build_datasets(
            corpora,
            seq_length=16,
            seed=3,
            train_samples=40,
            valid_samples=5,
            valid_fraction=0.2,
            cache_folder=tmp_path / "alone",
        )
        alone = [tokens_of(train), tokens_of(valid)]
        assert seen[0][name] == alone and seen[1][name] == alone, name
    assert seen[0]["only rank 1"] == [None, None]
    assert len(seen[1]["only rank 1"][0]) == 40
    assert "holds out none" in seen[0]["no valid"]
    assert seen[1]["no valid"] == seen[0]["no valid"]
    assert (
        seen[0]["not shared"].startswith("rank 1: host ")
        and "does not see" in seen[0]["not shared"]
    )
    assert seen[1]["not shared"] == seen[0]["not shared"]
    assert "cannot write the sample indices" in seen[0]["no cache"]
    assert seen[1]["no cache"] == seen[0]["no cache"]

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A program for test_datasets_distributed: one of two gloo ranks that build data sets together.

Arguments: rank, folder. Writes what it saw to FOLDER/rank<R>.json.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch

from k2_megatron.data.datasets import TokenSamples, build_datasets
from k2_megatron.data.index_cache import wait_until_visible
from k2_megatron.errors import DataError


def tokens_of(samples: TokenSamples | None) -> list[list[int]] | None:
    if samples is None:
        return None
    return [samples[index]["tokens"].tolist() for index in range(len(samples))]


def main(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    # One rank is to find out soon that it does not see the other's folder.
    wait_until_visible.__defaults__ = (0.5,)
    one, two = str(folder / "one"), str(folder / "two")
    seen: dict[str, object] = {}
    for name, corpora, fraction, cache, built in (
        ("single", [(one, 1.0)], 0.2, folder / "x", True),
        ("blend", [(one, 3.0), (two, 1.0)], 0.2, folder / "x", True),
        ("cached", [(one, 3.0), (two, 1.0)], 0.2, folder / "x", True),
        ("only rank 1", [(one, 1.0), (two, 1.0)], 0.2, folder / "x", rank == 1),
        ("no valid", [(one, 1.0)], 0.001, folder / "x", True),
        ("not shared", [(one, 1.0)], 0.3, folder / f"of{rank}", True),
        ("no cache", [(one, 1.0)], 0.2, folder / "one.bin", True),
    ):
        try:
            train, valid = build_datasets(
                corpora,
                seq_length=16,
                seed=3,
                train_samples=40,
                valid_samples=5,
                valid_fraction=fraction,
                cache_folder=cache,
                is_built_on_rank=built,
            )
            seen[name] = [tokens_of(train), tokens_of(valid)]
        except DataError as error:
            seen[name] = str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

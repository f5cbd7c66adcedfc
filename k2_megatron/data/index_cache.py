# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Where megatron's sample indices are kept, so that a cache is whole, right and seen by every rank.

megatron names cached files after paths and not contents, writes them in place, takes any set of
files for whole, and by default makes a folder with the name of the data file itself. Here every
plan has its own folder, named after the content of the data, which appears only when it is whole.
"""

import hashlib
import importlib.metadata
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from k2_megatron.checkpoint.durable import sync_to_disk
from k2_megatron.data.order import OrderPlan
from k2_megatron.errors import DataError

DEFAULT_FOLDER_NAME = "index_cache"
# Network file systems may deny for a while a file that another node just made.
VISIBLE_WITHIN_SECONDS = 60.0


def cache_path(plan: OrderPlan, cache_folder: str | Path | None, *, parallel: bool) -> Path:
    """Return the folder for this plan's indices.

    Args:
        plan: The plan.
        cache_folder: Folder of all caches; None: `index_cache` beside the first corpus.
        parallel: Whether torch.distributed is initialised; only then a blend is cached too.
    """
    if cache_folder is None:
        root = Path(plan.corpora[0].prefix).absolute().parent / DEFAULT_FOLDER_NAME
    else:
        root = Path(cache_folder).absolute()
    engine = importlib.metadata.version("megatron-core")
    key = hashlib.sha256(f"{plan.cache_key()} {engine} {parallel}".encode()).hexdigest()
    return root / key[:32]


@contextmanager
def filled_aside(final: Path) -> Iterator[Path]:
    """Give a folder to fill; on leaving, it becomes `final`, or is removed after an error.

    Several runs may do this at once for one `final`: the first to finish wins, the rest discard.

    Raises:
        DataError: The folder cannot be made or written.
    """
    aside = final.with_name(f".{final.name}.partial-{socket.gethostname()}-{os.getpid()}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        for path in aside.iterdir():
            sync_to_disk(path)
        try:
            os.rename(aside, final)
        except OSError:
            if not final.is_dir():
                raise
    except OSError as error:
        raise DataError(
            f"cannot write the sample indices in {final.parent}: {error.strerror or error};"
            " choose another folder with data.cache_folder"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def wait_until_visible(final: Path, seconds: float = VISIBLE_WITHIN_SECONDS) -> None:
    """Wait for a folder that rank 0 made.

    Raises:
        DataError: It does not appear: the cache folder is not shared between the nodes.
    """
    deadline = time.monotonic() + seconds
    while not final.is_dir():
        if time.monotonic() >= deadline:
            raise DataError(
                f"host {socket.gethostname()} does not see {final}, which rank 0 wrote"
                f" {seconds:.0f} s ago; data.cache_folder must be on a file system that all nodes"
                " share"
            )
        time.sleep(0.2)
        # Listing the parent makes a network file system look again.
        if final.parent.is_dir():
            os.listdir(final.parent)

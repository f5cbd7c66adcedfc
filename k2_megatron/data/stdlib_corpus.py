# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The corpus that is on every machine: the source of Python's own standard library."""

import hashlib
import platform
import sysconfig
from pathlib import Path

from k2_megatron.data.corpora import Corpus
from k2_megatron.data.prepare import prepare_files
from k2_megatron.data.progress import ProgressReport
from k2_megatron.data.readers import SourceFile
from k2_megatron.data.tokenizer import Tokenizer
from k2_megatron.errors import DataError

# Packages installed later are not the standard library, and differ from machine to machine.
_EXCLUDED_FOLDERS = frozenset({"site-packages", "dist-packages"})


def find_stdlib_files(folder: Path | None = None) -> tuple[SourceFile, ...]:
    """List the standard library's *.py files.

    Args:
        folder: Where to look; None: the running Python's.

    Returns:
        The files, ordered by a hash of their path inside the folder. The last documents of a
        corpus are held out for validation; by name these would all be of a few packages.

    Raises:
        DataError: There are none, as in a Python whose library is packed in a zip file.
    """
    root = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    found: list[tuple[bytes, Path]] = []
    for path in root.rglob("*.py"):
        inside = path.relative_to(root)
        if _EXCLUDED_FOLDERS.isdisjoint(inside.parts) and path.is_file():
            found.append((hashlib.sha256(inside.as_posix().encode()).digest(), path))
    if not found:
        raise DataError(f"{root}: no *.py file of Python's standard library here")
    return tuple(SourceFile(path, False, False) for _, path in sorted(found))


def prepare_stdlib(
    output_prefix: str | Path,
    tokenizer: Tokenizer,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: ProgressReport | None = None,
    folder: Path | None = None,
) -> Corpus:
    """Make a corpus of the standard library, one document a file.

    Files that are not UTF-8 (Python keeps some to test itself) are left out and counted. The
    corpus depends on the Python version and on how completely it is installed.

    Args:
        output_prefix: PREFIX of the output.
        tokenizer: From `build_tokenizer`.
        workers: Processes that tokenise.
        overwrite: Replace an existing output.
        progress: Called after every batch.
        folder: Where the library is; None: the running Python's.

    Raises:
        DataError: No such files, or the output cannot be written.
    """
    return prepare_files(
        find_stdlib_files(folder),
        output_prefix,
        tokenizer,
        workers=workers,
        json_key="text",
        skip_undecodable=True,
        sources=(f"Python {platform.python_version()} standard library",),
        overwrite=overwrite,
        progress=progress,
    )

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The files beside a release's weights that go along unchanged: tokenizer, chat template, code."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

from k2_megatron.checkpoint.huggingface.config_json import CONFIG_NAME

PATTERNS = (
    "tokenizer*",
    "*.model",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "generation_config.json",
    # config.json's auto_map names these.
    "tokenization_*.py",
    "configuration_*.py",
    "modeling_*.py",
    "tool_declaration*.py",
)


def companions(folder: Path) -> list[Path]:
    """The files of a release that are passed through, sorted."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in PATTERNS)
    )


def copy_companions(source: Path, target: Path, *, with_config: bool) -> list[str]:
    """Copy them, with `config.json` if asked; returns their names.

    Raises:
        OSError: a file cannot be read or written.
    """
    target.mkdir(parents=True, exist_ok=True)
    files = companions(source)
    if with_config:
        files.append(source / CONFIG_NAME)
    for path in files:
        shutil.copyfile(path, target / path.name)
    return [path.name for path in files]

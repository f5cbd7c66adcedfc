# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A small valid configuration, and what loading a changed one says."""

from pathlib import Path

import pytest

from k2_megatron.config.config import Config
from k2_megatron.config.loader import load_config
from k2_megatron.errors import ConfigError

# Four sections with one problem-free line each where tests need to know the line.
TINY = """\
run: {name: tiny}
model: {preset: k2-tiny}
schedule:
  train_steps: 20
  seq_length: 64
  global_batch_size: 8
  lr_warmup_steps: 2
  lr_wsd_decay_steps: 5
data:
  corpora:
    - path: corpus
"""


def load(folder: Path, *overrides: str, text: str = TINY) -> Config:
    """Write the text to a file and load it."""
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def problems(folder: Path, *overrides: str, text: str = TINY) -> list[str]:
    """The problems that loading tells, one a line, the folder's name taken out."""
    with pytest.raises(ConfigError) as caught:
        load(folder, *overrides, text=text)
    first, *lines = str(caught.value).replace(f"{folder}/", "").split("\n  ")
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    assert first == f"{count} in the configuration:"
    return lines

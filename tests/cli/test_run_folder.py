# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a run leaves in its folder for others to read while it runs."""

from __future__ import annotations

from dataclasses import replace

from k2_megatron.config.loader import load_config
from k2_megatron.run_folder import RunFolder
from tests.cli.commands import CONFIG


def test_resolved_config_is_never_half_written(tmp_path):
    """A new start emptied the file and filled it again; `status` could read what was there by then.

    Who has it open reads the old one to its end, in UTF-8 whatever the locale says.
    """
    config = load_config(CONFIG, [f"run.folder={tmp_path}/läufe"])
    folder = RunFolder.of(config)
    folder.start(config)
    assert load_config(folder.resolved_config) == config
    before = folder.resolved_config.read_bytes()
    with folder.resolved_config.open("rb") as reading:
        folder.start(replace(config, run=replace(config.run, seed=config.run.seed + 1)))
        assert reading.read() == before
    assert load_config(folder.resolved_config).run.seed == config.run.seed + 1
    assert [path.name for path in folder.path.iterdir()] == ["resolved_config.yaml"]

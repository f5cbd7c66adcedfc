# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: where everything it leaves behind lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from k2_megatron.config.config import Config
from k2_megatron.config.dump import dump_config


@dataclass(frozen=True)
class RunFolder:
    """runs/<run.name>/ and its parts."""

    path: Path

    @staticmethod
    def of(config: Config) -> RunFolder:
        """The folder of a configuration's run."""
        return RunFolder(Path(config.run.folder) / config.run.name)

    @property
    def checkpoints(self) -> Path:
        """Checkpoints, one folder each."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """What ranks other than 0 print."""
        return self.path / "logs"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def curves(self) -> Path:
        """The picture of the run."""
        return self.path / "curves.png"

    @property
    def resolved_config(self) -> Path:
        """The configuration with every default written out."""
        return self.path / "resolved_config.yaml"

    def start(self, config: Config) -> None:
        """Make the folder and write the resolved configuration; rank 0 alone."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.resolved_config.write_text(dump_config(config))

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: where everything it leaves behind lies."""

from __future__ import annotations

import fcntl
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from k2_megatron.config.config import Config
from k2_megatron.config.dump import dump_config
from k2_megatron.errors import UserError


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

    @property
    def lock(self) -> Path:
        """Held by the process that trains the run."""
        return self.path / ".lock"

    def claim(self) -> IO[str]:
        """Make the folder and keep every other command from training in it; rank 0 alone.

        Two at once would write the same checkpoint under the same names. The lock ends with the
        process, however that ends; where the file system has no locks nothing is kept away.

        Returns:
            What to hold on to for as long as the run writes.

        Raises:
            UserError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.lock.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"{self.path} is being trained by {holder}; wait for it, stop it, or give "
                "another run.name"
            ) from None
        except OSError:
            return file
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        return file

    def start(self, config: Config) -> None:
        """Make the folder and write the resolved configuration; rank 0 alone."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.resolved_config.write_text(dump_config(config))

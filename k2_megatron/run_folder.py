# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: where everything it leaves behind lies."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from k2_megatron.checkpoint.durable import write_text_durably
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
        """What ranks other than 0 print, start after start."""
        return self.path / "logs"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def traces(self) -> Path:
        """Profiles of the steps of `logging.trace_steps`."""
        return self.path / "traces"

    @property
    def curves(self) -> Path:
        """The picture of the run."""
        return self.path / "curves.png"

    @property
    def resolved_config(self) -> Path:
        """The configuration with every default written out."""
        return self.path / "resolved_config.yaml"

    @property
    def slurm_script(self) -> Path:
        """What `launch` has submitted."""
        return self.path / "slurm.sbatch"

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

    def holder(self) -> str | None:
        """Who holds the lock, or held it last; None where nobody ever did."""
        try:
            return self.lock.read_text(encoding="utf-8", errors="replace").strip() or None
        except OSError:
            return None

    def is_claimed(self) -> bool | None:
        """Whether a process trains in the folder; looks, and takes no lock itself.

        Returns:
            None where that cannot be known, because it would run on another machine.
        """
        holder = self.holder()
        found = re.fullmatch(r"process (\d+) on (\S+)", holder or "")
        if found is None:
            return False
        if found[2] != socket.gethostname():
            return None
        table = Path("/proc/locks")
        if not table.is_file():
            return _runs(int(found[1]))
        state = self.lock.stat()
        place = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
        held = [line.split() for line in table.read_text().splitlines()]
        # Where the file system hides its device's number the process itself must do.
        here = any("FLOCK" in words and place in words for words in held)
        return here or _runs(int(found[1]), expecting="k2_megatron")

    def start(self, config: Config) -> None:
        """Make the folder and write the resolved configuration; rank 0 alone.

        `status` may read it at any time, and finds the one before or this one.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        write_text_durably(self.resolved_config, dump_config(config))


def _runs(process: int, expecting: str = "") -> bool:
    """Whether a process of this machine runs, and is what is expected where that can be seen."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    command = Path(f"/proc/{process}/cmdline")
    try:
        return expecting in command.read_bytes().decode(errors="replace")
    except OSError:
        return True

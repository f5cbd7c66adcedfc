# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Start the real command in a folder of its own, and see what it says, leaves and ends with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from k2_megatron.launch.ports import free_port

CONFIG = Path(__file__).with_name("tiny.yaml")
COMMAND = (sys.executable, "-m", "k2_megatron")
PATIENCE_SECONDS = 120.0
# What a launcher of the tests themselves may have set.
FOREIGN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


class Running:
    """A command that runs; its output goes to files, so that no pipe can block it."""

    def __init__(
        self, folder: Path, command: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        clean = {
            name: value
            for name, value in os.environ.items()
            if name not in FOREIGN and not name.startswith(("SLURM_", "K2_MEGATRON_"))
        }
        self._files = [folder / "out.txt", folder / "err.txt"]
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**clean, "K2_MEGATRON_PLATFORM": "cpu", "COLUMNS": "100", **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def texts(self) -> tuple[str, str]:
        """What it has written so far, to stdout and to stderr."""
        out, err = (path.read_text() for path in self._files)
        return out, err

    def wait_for(self, text: str) -> None:
        """Wait until it has said `text`."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in "".join(self.texts()):
            assert self.process.poll() is None, f"ended without {text!r}: {self.texts()}"
            assert time.monotonic() < deadline, f"did not say {text!r} in time: {self.texts()}"
            time.sleep(0.05)

    def interrupt(self) -> None:
        """Send SIGINT as the Ctrl-C of a terminal does: to all of the process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes it has started and that run by now, by rank."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            # Between fork and exec a child still has its parent's environment, without a rank;
            # one that has just ended has none.
            with suppress(psutil.Error, KeyError):
                found[int(child.environ()["RANK"])] = child
        return found

    def done(self) -> Done:
        """Wait for its end."""
        code = self.process.wait(PATIENCE_SECONDS)
        return Done(code, *self.texts())


@contextmanager
def running(folder: Path, *arguments: str, **environment: str) -> Iterator[Running]:
    """Start `k2-megatron ARGUMENTS` in `folder`; at the end of the block nothing of it is left."""
    with running_command(folder, [*COMMAND, *arguments], **environment) as started:
        yield started


@contextmanager
def running_command(folder: Path, command: Sequence[str], **environment: str) -> Iterator[Running]:
    """As `running`, for any command."""
    started = Running(folder, command, environment)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            children = psutil.Process(started.process.pid).children(recursive=True)
            started.process.send_signal(signal.SIGKILL)
            started.process.wait()
            for child in children:
                if child.is_running():
                    child.kill()


def k2(folder: Path, *arguments: str, **environment: str) -> Done:
    """Run `k2-megatron ARGUMENTS` in `folder` to its end."""
    with running(folder, *arguments, **environment) as started:
        return started.done()


def one_rank(folder: Path, *arguments: str) -> Done:
    """Train as the only rank, which a launcher that sets plain variables has started."""
    single = "--set=parallel.pipeline_model_parallel_size=1"
    environment = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return k2(folder, "train", "tiny.yaml", single, *arguments, **environment)


def assert_refused(done: Done, *texts: str) -> None:
    """The command ended with 2 and said on stderr, once and without a traceback, what is wrong."""
    assert done.code == 2, done
    assert done.err.startswith("k2-megatron: "), done.err
    assert done.err.count("k2-megatron: ") == 1, done.err
    assert "Traceback" not in done.out + done.err
    for text in texts:
        assert text in done.err, done.err


def assert_gone(processes: Mapping[int, psutil.Process]) -> None:
    """No process is left, or but a moment longer."""
    assert processes
    _, alive = psutil.wait_procs(processes.values(), timeout=2)
    alive = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not alive, alive

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A rank ends with the exit code of its work, though threads of torch outlive it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

import pytest

from k2_megatron.launch.ports import free_port
from tests.cli.commands import k2, one_rank

# A thread that wants the interpreter back while an object of the module is still being deleted:
# what gloo's threads do now and then, at a time of our choosing.
PROCESS = """
import atexit, sys, threading, time
from datetime import timedelta
from k2_megatron.launch.ending import RankEnding

ending = RankEnding()
import torch.distributed as dist

class Slow:
    def __del__(self):
        time.sleep(2)

store = dist.HashStore()
store.set_timeout(timedelta(seconds=1))
threading.Thread(target=store.get, args=["never set"], daemon=True).start()
slow = Slow()
atexit.register(print, "had its turn")
ending.with_code(int(sys.argv[1]))
sys.exit(int(sys.argv[1]))
"""
RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "host"}


def _run(code: int, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROCESS, str(code)],
        env=environment,
        capture_output=True,  # into pipes, so buffered: the end has to write it
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("code", [0, 2, 3])
def test_a_rank_ends_with_its_code(code):
    """And after what others have registered for the end."""
    done = _run(code, **RANK, MASTER_PORT=str(free_port()))
    assert (done.returncode, done.stdout, done.stderr) == (code, "had its turn\n", "")


def test_without_it_the_interpreter_aborts():
    """A process that is no rank ends as always; here the thread is its end."""
    assert _run(0).returncode == -signal.SIGABRT


def test_the_command_keeps_its_codes(place):
    """A rank's mistake is 2, the parser's too, and what nobody expected 1 with its traceback."""
    single = "--set=parallel.pipeline_model_parallel_size=1"
    wrong = one_rank(place, "--set=run.name=ending", "--set=parallel.expert_model_parallel_size=2")
    assert wrong.code == 2 and wrong.err.startswith("k2-megatron: "), wrong
    assert k2(place, "train", "--unknown", **RANK, MASTER_PORT="1").code == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        here = RANK | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        done = k2(place, "train", "tiny.yaml", single, "--set=run.name=ending", **here)
    assert done.code == 1 and done.err.startswith("Traceback "), done
    assert "EADDRINUSE" in done.err

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the launcher makes of its ranks' ends, with small programs as ranks."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.cli.commands import assert_gone, running_command

PARENT = """
import sys
from pathlib import Path
from k2_megatron.launch.spawn import spawn
sys.exit(spawn([sys.executable, "-c", sys.argv[1]], 2, Path("logs")))
"""
# Of a start in the log of rank 1.
HEAD = r"--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d: rank 1 of 2, started by process \d+ on \S+"
RANK = """
import os, signal, sys, time
from k2_megatron.launch.signals import StopSignals, stop_with_parent
rank = int(os.environ["RANK"])
"""
LISTENING = """
stop_signals = StopSignals()
stop_with_parent()
print("listening", rank)
open(f"listening{rank}", "w").close()
"""
UNTIL_STOPPED = """
while not stop_signals._number:
    time.sleep(0.01)
time.sleep(0.3)
open(f"saved{rank}", "w").write(signal.Signals(stop_signals._number).name)
sys.exit(3)
"""


def _running(folder: Path, code: str):
    # The tests themselves may run under nohup, whose children would ignore SIGHUP, too.
    listening = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n" + PARENT
    return running_command(folder, [sys.executable, "-c", listening, RANK + code])


def _listening(folder: Path, run) -> dict:
    """Wait until both ranks listen; their processes."""
    for rank in range(2):
        while not (folder / f"listening{rank}").exists():
            assert run.process.poll() is None
            time.sleep(0.01)
    return run.ranks()


def test_all_done(tmp_path):
    with _running(tmp_path, "print('rank', rank)") as run:
        done = run.done()
    assert (done.code, done.out, done.err) == (0, "rank 0\n", "")
    head, *lines = (tmp_path / "logs" / "rank_00001.log").read_text().splitlines()
    assert re.fullmatch(HEAD, head), head
    assert lines == ["rank 1"]


def test_user_error_of_rank_1_alone_is_shown(tmp_path):
    code = """
if rank == 1:
    sys.exit(print("k2-megatron: only rank 1 sees it", file=sys.stderr) or 2)
time.sleep(0.5)
sys.exit("lost a peer")
"""
    with _running(tmp_path, code) as run:
        done = run.done()
    assert done.code == 2
    assert done.err.count("k2-megatron: only rank 1 sees it") == 1
    assert done.err.count("lost a peer") == 1


def test_user_error_of_all_is_told_once(tmp_path):
    code = "sys.exit(print('k2-megatron: wrong', file=sys.stderr) or 2)"
    with _running(tmp_path, code) as run:
        done = run.done()
    assert (done.code, done.out, done.err) == (2, "", "k2-megatron: wrong\n")


def test_defect_of_rank_0_is_shown_once(tmp_path):
    code = "time.sleep(0.5 * rank); raise RuntimeError(f'defect of {rank}')"
    with _running(tmp_path, code) as run:
        done = run.done()
    assert done.code == 1
    assert done.err.count("RuntimeError: defect of 0") == 1
    assert done.err.splitlines()[-1] == (
        "k2-megatron: rank 0 ended with exit code 1; the other ranks were stopped"
    )


def test_defect_of_rank_1_shows_the_end_of_its_log(tmp_path):
    code = """
if rank == 1:
    print(*range(100), sep="\\n")
    raise RuntimeError("defect of 1")
time.sleep(0.5)
"""
    with _running(tmp_path, code) as run:
        done = run.done()
    assert done.code == 1
    head, log, *shown = done.err.splitlines()
    assert head == "k2-megatron: rank 1 ended with exit code 1; the other ranks were stopped"
    assert log == "the end of logs/rank_00001.log:"
    assert shown[-1] == "RuntimeError: defect of 1" and len(shown) == 15


def test_logs_keep_the_starts_before_and_show_this_one(tmp_path):
    """Each start emptied them: the last words of the rank that had failed before were gone."""
    for code in ("print('words'); sys.exit('defect')", "sys.exit(7)"):
        with _running(tmp_path, f"if rank == 1: {code}\ntime.sleep(0.5)") as run:
            done = run.done()
        assert done.code == 1
        shown = done.err.splitlines()[1:]
        if "words" in code:
            assert shown == ["the end of logs/rank_00001.log:", "words", "defect"]
        else:
            assert shown == ["logs/rank_00001.log: nothing was written by this start"]
    lines = (tmp_path / "logs" / "rank_00001.log").read_text().splitlines()
    assert re.fullmatch(HEAD, lines[0]) and re.fullmatch(HEAD, lines[4]), lines
    assert lines[1:4] == ["words", "defect", ""] and len(lines) == 5


def test_a_second_start_leaves_the_log_of_a_running_rank_whole(tmp_path):
    """It emptied the file, and the running rank wrote on behind a hole of zero bytes."""
    code = """
print("before")
open(f"listening{rank}", "w").close()
while not os.path.exists("second"):
    time.sleep(0.01)
print("after")
"""
    with _running(tmp_path, code) as run:
        _listening(tmp_path, run)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "logs").symlink_to(tmp_path / "logs")
        with _running(tmp_path / "other", "sys.exit(print('refused') or 2)") as second:
            assert second.done().code == 2
        (tmp_path / "second").touch()
        assert run.done().code == 0
    head, before, empty, other, *lines = (tmp_path / "logs/rank_00001.log").read_text().split("\n")
    assert re.fullmatch(HEAD, head) and re.fullmatch(HEAD, other) and head != other
    assert (before, empty, lines) == ("before", "", ["refused", "after", ""])


def test_ranks_know_how_many_share_their_machine(tmp_path):
    """Under `srun -n1` they believed its one task, and counted the memory of one rank."""
    code = "if rank == 0: print(*(os.environ[f'{name}WORLD_SIZE'] for name in ('', 'LOCAL_')))"
    words = [sys.executable, "-c", PARENT, RANK + code]
    with running_command(tmp_path, words, SLURM_STEP_TASKS_PER_NODE="1") as run:
        assert run.done().out == "2 2\n"
    with running_command(tmp_path, words, LOCAL_WORLD_SIZE="1") as run:
        assert run.done().out == "2 2\n"


def test_a_killed_rank_is_blamed_before_those_that_miss_it(tmp_path):
    """Also when both have ended by the time the launcher looks."""
    code = "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else sys.exit('lost a peer')"
    with _running(tmp_path, code) as run:
        done = run.done()
    assert done.code == 1
    assert "rank 1 was killed by SIGKILL (out of memory?)" in done.err


def test_ranks_that_hang_after_a_failure_are_ended(tmp_path):
    code = """
open(f"listening{rank}", "w").close()
if rank == 0:
    signal.pause()
while not os.path.exists("fail"):
    time.sleep(0.01)
sys.exit("defect")
"""
    with _running(tmp_path, code) as run:
        ranks = _listening(tmp_path, run)
        began = time.monotonic()
        (tmp_path / "fail").touch()
        done = run.done()
    assert done.code == 1 and "rank 1 ended with exit code 1" in done.err
    assert time.monotonic() - began < 15
    assert_gone(ranks)


@pytest.mark.parametrize(
    ("sent", "received"),
    [("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGUSR1"), ("SIGINT", "SIGINT"), ("SIGHUP", "SIGTERM")],
)
def test_signals_reach_every_rank(tmp_path, sent, received):
    with _running(tmp_path, LISTENING + UNTIL_STOPPED) as run:
        ranks = _listening(tmp_path, run)
        os.killpg(run.process.pid, signal.Signals[sent])  # all of it, as a terminal does
        done = run.done()
    assert done.code == 3
    for rank in range(2):
        assert (tmp_path / f"saved{rank}").read_text() == received
    assert_gone(ranks)


# As if a signal came at the worst moment: the rank runs, and its launcher does not know it yet.
INTERRUPTED = """
import os, signal, subprocess, time
class Popen(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        while not os.path.exists("listening0"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
subprocess.Popen = Popen
"""


def test_signal_while_a_rank_is_started_reaches_it(tmp_path):
    """It was lost, and the rank trained to its end; those to be started after it are left out."""
    words = [sys.executable, "-c", INTERRUPTED + PARENT, RANK + LISTENING + UNTIL_STOPPED]
    with running_command(tmp_path, words) as run:
        done = run.done()
    assert done.code == 3
    assert (tmp_path / "saved0").read_text() == "SIGINT"
    assert not (tmp_path / "listening1").exists()


def test_second_interrupt_ends_at_once(tmp_path):
    with _running(tmp_path, LISTENING + "while True: time.sleep(1)") as run:
        ranks = _listening(tmp_path, run)
        run.interrupt()
        run.wait_for("Ctrl-C again to end at once")
        time.sleep(0.2)
        run.interrupt()
        done = run.done()
    assert done.code == 130
    assert "ended at once by SIGINT; the same command goes on" in done.err
    assert "Traceback" not in done.err + done.out
    assert_gone(ranks)


def test_signal_before_the_ranks_listen(tmp_path):
    with _running(tmp_path, "open(f'listening{rank}', 'w').close(); time.sleep(60)") as run:
        ranks = _listening(tmp_path, run)
        run.process.send_signal(signal.SIGTERM)
        done = run.done()
    assert done.code == 143
    assert done.err == (
        "k2-megatron: ended at once by SIGTERM; the same command goes on from the last checkpoint\n"
    )
    assert_gone(ranks)


def test_ranks_save_when_the_launcher_is_killed(tmp_path):
    with _running(tmp_path, LISTENING + UNTIL_STOPPED) as run:
        ranks = _listening(tmp_path, run)
        run.process.kill()
        run.process.wait()
        assert_gone(ranks)
    for rank in range(2):
        assert (tmp_path / f"saved{rank}").read_text() == "SIGTERM"


def test_under_nohup_a_closed_terminal_stops_nothing(tmp_path):
    code = LISTENING + "time.sleep(1); open(f'noted{rank}', 'w').write(str(stop_signals._number))"
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + PARENT
    with running_command(tmp_path, [sys.executable, "-c", ignoring, RANK + code]) as run:
        _listening(tmp_path, run)
        run.process.send_signal(signal.SIGHUP)
        done = run.done()
    assert done.code == 0
    assert [(tmp_path / f"noted{rank}").read_text() for rank in range(2)] == ["0", "0"]


AGAIN = """
import sys
from pathlib import Path
from k2_megatron.launch.spawn import spawn
again = lambda: print("asked", flush=True) or len(list(Path().glob("start*"))) < 3
sys.exit(spawn([sys.executable, "-c", sys.argv[1]], 1, Path("logs"), again))
"""


def test_ranks_are_started_anew_for_as_long_as_asked(tmp_path):
    """A phase that needs other processes: the ranks end with 3, and nobody has sent a signal."""
    code = """
from pathlib import Path
starts = len(list(Path().glob("start*")))
Path(f"start{starts}").touch()
print("start", starts)
sys.exit(3)
"""
    with running_command(tmp_path, [sys.executable, "-c", AGAIN, RANK + code]) as run:
        done = run.done()
    assert (done.code, done.err) == (3, "")
    assert done.out == "start 0\nasked\nstart 1\nasked\nstart 2\nasked\n"


def test_ranks_that_a_signal_stopped_are_not_started_anew(tmp_path):
    command = [sys.executable, "-c", AGAIN, RANK + LISTENING + UNTIL_STOPPED]
    with running_command(tmp_path, command) as run:
        while not (tmp_path / "listening0").exists():
            assert run.process.poll() is None
            time.sleep(0.01)
        run.process.send_signal(signal.SIGTERM)
        done = run.done()
    assert (done.code, done.out) == (3, "listening 0\n")
    assert (tmp_path / "saved0").read_text() == "SIGTERM"

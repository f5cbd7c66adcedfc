# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The text of the sbatch script: golden files, quoting that bash itself reads back, shellcheck."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from k2_megatron.config.loader import load_config
from k2_megatron.launch.slurm import Command, quote, render
from tests.cli.commands import assert_refused, k2

ROOT = Path(__file__).parents[2]
# Rendered by `k2-megatron launch examples/configs/NAME.yaml --dry-run`.
GOLDEN = sorted((ROOT / "examples" / "slurm").glob("*.sbatch"))
NASTY = ["a b", "it's", '"', "$HOME", "`x`", "\\", "$(x)", "*", "#", ";", "a,b", "\n", "é", ""]
CPU_JOB = ("cluster.nodes=2", "cluster.gpus_per_node=0", "cluster.tasks_per_node=4")
IN_A_JOB = {**os.environ, "SLURM_JOB_ID": "7"}
TINY = ROOT / "examples" / "configs" / "k2-tiny.yaml"


def _rendered(*overrides: str, python: str = "python3") -> str:
    config = load_config(TINY, overrides)
    return render(config, Command(python=python, config="k2.yaml", overrides=overrides))


def _arrays(script: str) -> dict[str, list[str]]:
    """The words of the arrays `train` and `start`, as bash reads them."""
    head = script.partition("\nsay()")[0]
    show = "\nprintf '%s\\0' \"${train[@]}\" '' \"${start[@]}\""
    done = subprocess.run(
        ["bash", "-c", head + show], capture_output=True, cwd="/", check=True, env=IN_A_JOB
    )
    words = done.stdout.decode().split("\0")[:-1]
    gap = words.index("")
    return {"train": words[:gap], "start": words[gap + 1 :]}


def test_there_is_an_example_of_every_configuration_with_a_job():
    """Longer ones than a laptop's."""
    names = {path.stem for path in GOLDEN}
    assert names == {"kimi-k2-1t", "moonlight-16b-a3b", "k2-mini-8xh100"}


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_golden(golden):
    """After a change on purpose render it again, with `launch CONFIG --dry-run`."""
    config = f"examples/configs/{golden.stem}.yaml"
    found = render(load_config(ROOT / config), Command(python="none", config=config))
    assert found == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_quote_is_read_back(text):
    done = subprocess.run(
        ["bash", "-c", f"printf %s {quote(text)}"], capture_output=True, check=True
    )
    assert done.stdout.decode() == text


def test_every_word_of_a_command_is_read_back():
    name = """a b/it's $HOME "and" `x`"""
    given = json.dumps(name)  # which is YAML too
    overrides = [
        *CPU_JOB,
        f"cluster.venv={given}",
        f"cluster.container={given}",
        f"cluster.container_mounts={given}",
        f"run.folder={given}",
    ]
    pyxis = _arrays(_rendered(*overrides))
    sets = [f"--set={override}" for override in overrides]
    assert pyxis["train"] == [
        f"{name}/bin/python", "-m", "k2_megatron", "train", "k2.yaml", *sets
    ]  # fmt: skip
    assert pyxis["start"][-3:] == [
        f"--container-image={name}", f"--container-mounts=/:/,{name}", "--container-workdir=/"
    ]  # fmt: skip
    overrides.append("cluster.container_runtime=apptainer")
    apptainer = _arrays(_rendered(*overrides))
    assert apptainer["train"][:8] == [
        "apptainer", "exec", "--pwd", "/", "--bind", "/:/", "--bind", name
    ]  # fmt: skip
    assert apptainer["train"][8:10] == [name, f"{name}/bin/python"]
    assert apptainer["start"] == [
        "srun", "--label", "--distribution=block", "--kill-on-bad-exit=0", "--wait=30"
    ]  # fmt: skip


def test_python_of_a_job():
    assert _arrays(_rendered(*CPU_JOB, python="/p y"))["train"][0] == "/p y"
    assert _arrays(_rendered(*CPU_JOB, "cluster.venv=v"))["train"][0] == "v/bin/python"
    assert "python3" in _arrays(_rendered(*CPU_JOB, "cluster.container=i"))["train"]


def test_environment_is_read_back():
    given = _rendered(*CPU_JOB, """cluster.environment=[{name: A, value: 'x "$HOME" `y` \\'}]""")
    head = given.partition("\nsay()")[0]
    done = subprocess.run(
        ["bash", "-c", head + '\nprintf %s "$A"'], capture_output=True, text=True, env=IN_A_JOB
    )
    assert done.stdout == 'x "$HOME" `y` \\'


def test_directives():
    lines = _rendered(
        "cluster.nodes=2", "cluster.gpus_per_node=2", "cluster.gpu_type=h100",
        "cluster.cpus_per_task=4", "cluster.partition=p", "cluster.account=a", "cluster.qos=q",
        "cluster.constraint='x&y'", "cluster.time_limit='01:00:00'", "cluster.exclusive=false",
        "cluster.save_before_limit_seconds=90", "cluster.requeue=false", "run.folder='a b'",
    ).splitlines()  # fmt: skip
    assert [line[8:] for line in lines if line.startswith("#SBATCH ")] == [
        "--job-name=k2-tiny", "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=h100:2",
        "--cpus-per-task=4", "--partition=p", "--account=a", "--qos=q", '--constraint="x&y"',
        "--time=01:00:00", "--signal=USR1@90", "--no-requeue", "--open-mode=append",
        '--output="a b/k2-tiny/logs/slurm_%j.log"', "--dependency=singleton",
    ]  # fmt: skip
    assert "requeue=no" in lines and 'log="a b/k2-tiny/logs/slurm_$SLURM_JOB_ID.log"' in lines
    assert "    --cpus-per-task=4" in lines  # srun does not take it from sbatch


def test_shellcheck_is_silent(tmp_path):
    program = shutil.which("shellcheck")
    if program is None:
        reason = "shellcheck is not installed: apt-get install shellcheck"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    nasty = tmp_path / "nasty.sbatch"
    nasty.write_text(
        _rendered(
            *CPU_JOB, "cluster.container='/a b/$x.sif'", "cluster.container_mounts='/d:/d,/e:/f'",
            """cluster.environment=[{name: A, value: 'x "$HOME" `y` \\'}]""", "run.folder=it's",
        )
    )  # fmt: skip
    done = subprocess.run([program, nasty, *GOLDEN], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_launch_prints_the_script_and_writes_nothing(tmp_path):
    sets = [f"--set={override}" for override in CPU_JOB]
    done = k2(tmp_path, "launch", str(TINY), "--dry-run", *sets)
    assert done.code == 0 and done.err == ""
    assert done.out.startswith("#!/usr/bin/env bash\n") and "#SBATCH --nodes=2\n" in done.out
    assert not (tmp_path / "runs").exists()


def test_launch_needs_nodes(tmp_path):
    done = k2(tmp_path, "launch", str(TINY), "--dry-run")
    assert_refused(done, "cluster.nodes: not given; allowed: an integer >= 1")


def test_launch_checks_the_data_before_a_node_stands_idle(tmp_path):
    done = k2(tmp_path, "launch", str(TINY), *[f"--set={override}" for override in CPU_JOB])
    assert_refused(done, "datasets/python-stdlib")


def test_launch_without_slurm(place):
    sets = [f"--set={override}" for override in CPU_JOB]
    done = k2(place, "launch", "tiny.yaml", "--set=cluster.tasks_per_node=1", *sets[:2], PATH="")
    assert_refused(done, "sbatch is not found", "--dry-run prints the script")

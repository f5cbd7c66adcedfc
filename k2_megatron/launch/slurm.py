# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The sbatch script of a run, as text. What differs between runs stands in its first half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from k2_megatron.config.cluster import ClusterConfig
from k2_megatron.config.config import Config
from k2_megatron.config.rules_cluster import ranks_per_node
from k2_megatron.errors import ConfigError
from k2_megatron.run_folder import RunFolder
from k2_megatron.train.events import FILE_NAME as EVENTS_NAME

# How long the other ranks get to end once one has ended: time for its peers to say what they saw,
# and for srun to have ended all of them within a minute.
WAIT_SECONDS = 30

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:=@+-")

# Nothing of a run stands below this line of the script; see docs/slurm.md for the reasons.
_REST = r"""
say() { printf 'k2-megatron: %s\n' "$*" >&2; }

# --- The ranks find each other at the first node, by the address that SLURM itself uses.
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(scontrol --oneliner show node "${hosts[0]}" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
unset RANK LOCAL_RANK WORLD_SIZE
export MASTER_ADDR="${address:-${hosts[0]}}"
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))

# --- A SIGTERM that reaches this script ends the job for good: the ranks save, nothing is requeued.
ended=
interrupted=
# shellcheck disable=SC2317  # the trap calls it
on_term() {
    ended=yes
    interrupted=yes
    scancel --signal=TERM "$SLURM_JOB_ID" 2>/dev/null || true
}
trap on_term TERM

say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): ${#hosts[@]} nodes," \
    "$SLURM_NTASKS ranks, the first at $MASTER_ADDR:$MASTER_PORT"
said_before=$(wc -c 2>/dev/null <"$log" || echo 0)
"${start[@]}" "${train[@]}" &
step=$!
while true; do
    interrupted=
    code=0
    wait "$step" || code=$?
    [[ -n $interrupted ]] || break
done

# --- What became of it: 0 done, 2 a mistake in what was given, 3 stopped with a checkpoint saved.
case $code in
    0)
        say "the run is done"
        ;;
    2)
        say "ended by a mistake in what was given, told above"
        ;;
    3)
        if [[ -n $ended ]]; then
            say "stopped with a checkpoint saved; the job was ended, so it is not requeued here"
        elif [[ $requeue == yes ]]; then
            say "stopped with a checkpoint saved; the job is requeued and goes on from there"
            trap '' TERM # requeueing ends what is left of this start
            scontrol requeue "$SLURM_JOB_ID" && exit 0
            say "scontrol requeue failed: submit the job again to go on"
        else
            say "stopped with a checkpoint saved; submit the job again to go on"
        fi
        ;;
    *)
        # srun names host and task of whatever ends; the first of them is the cause.
        cause=$(tail -c "+$((said_before + 1))" "$log" 2>/dev/null |
            grep -m 1 -E '^srun: error: .*([Tt]ask|[Nn]ode)' || true)
        say "failed with exit code $code; the first that ended (a task is a rank):" \
            "${cause:-unknown, see above}"
        say "not requeued; submit the job again to go on from the last checkpoint"
        # For `k2-megatron status`: a rank that was killed could not write it.
        reason=$(tr -d '"\\[:cntrl:]' <<<"${cause:-srun ended with exit code $code}")
        printf '{"time": %s, "event": "rank_failed", "reason": "%s"}\n' \
            "$(date +%s)" "$reason" >>"$events" || true
        ;;
esac
exit "$code"
"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """The command line of one rank, as the script has it.

    Attributes:
        python: interpreter to use where the configuration names neither venv nor container.
        config: path of the YAML file, from the folder the job is submitted in.
        overrides: `section.key=value` each.
    """

    python: str
    config: str
    overrides: Sequence[str] = ()


def render(config: Config, command: Command) -> str:
    """The whole script: for sbatch, or for people to edit.

    Raises:
        ConfigError: the configuration has no job.
    """
    cluster = config.cluster
    if cluster.nodes is None:
        raise ConfigError(
            "cluster.nodes: not given; allowed: an integer >= 1; a job needs the number of its "
            "nodes (docs/slurm.md)"
        )
    folder = RunFolder.of(config)
    logs = str(folder.logs)
    lines = [
        "#!/usr/bin/env bash",
        "# Made by `k2-megatron launch`. Submit it with sbatch in the folder from which the paths",
        "# below lead where they should; requeued, it goes on from the newest checkpoint.",
        *(f"#SBATCH {line}" for line in _directives(config, f"{logs}/slurm_%j.log")),
        "",
        "set -euo pipefail",
        "",
        "# --- What every rank runs; the same command goes on from a checkpoint.",
        _array("train", _train(cluster, command)),
        _array("start", _srun(cluster)),
        f'log="{_escape(logs)}/slurm_$SLURM_JOB_ID.log"',
        f'events="{_escape(str(folder.path))}/{EVENTS_NAME}"',
        f"requeue={'yes' if cluster.requeue else 'no'}",
        "",
        "# --- Environment of every rank.",
        "export PYTHONUNBUFFERED=1",
        'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"',
        *([] if cluster.gpus_per_node else ["export K2_MEGATRON_PLATFORM=cpu"]),
        *(f"export {given.name}={quote(given.value)}" for given in cluster.environment),
    ]
    return "\n".join(lines) + "\n" + _REST


def quote(text: str) -> str:
    """One word of bash that stands for exactly `text`, whatever is in it."""
    if text and set(text) <= _PLAIN:
        return text
    return f'"{_escape(text)}"'


def _escape(text: str) -> str:
    """What stands for `text` between double quotes."""
    for special in ("\\", '"', "$", "`"):
        text = text.replace(special, f"\\{special}")
    return text


def _quote_directive(text: str) -> str:
    """One value of an #SBATCH line: sbatch has quotes and backslashes of its own."""
    if text and set(text) <= _PLAIN:
        return text
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _directives(config: Config, log: str) -> list[str]:
    """Options for sbatch, in the order in which they are read."""
    cluster = config.cluster
    tasks = ranks_per_node(cluster)
    gpu_type = "" if cluster.gpu_type is None else f"{cluster.gpu_type}:"
    memory = "0" if cluster.exclusive else None
    given: list[tuple[str, object]] = [
        ("job-name", config.run.name),
        ("nodes", cluster.nodes),
        ("ntasks-per-node", tasks),
        ("gpus-per-node", f"{gpu_type}{cluster.gpus_per_node}" if cluster.gpus_per_node else None),
        ("cpus-per-task", cluster.cpus_per_task),
        ("exclusive", "" if cluster.exclusive else None),
        ("mem", memory),
        ("partition", cluster.partition),
        ("account", cluster.account),
        ("qos", cluster.qos),
        ("constraint", cluster.constraint),
        ("time", cluster.time_limit),
        # To the ranks, not to this script: they save and end with 3.
        ("signal", f"USR1@{cluster.save_before_limit_seconds}"),
        ("requeue" if cluster.requeue else "no-requeue", ""),
        ("open-mode", "append"),
        ("output", log),
        # Two jobs must never write into one run folder: the second waits for the first.
        ("dependency", "singleton"),
    ]
    return [
        f"--{name}" + (f"={_quote_directive(str(value))}" if value != "" else "")
        for name, value in given
        if value is not None
    ]


def _srun(cluster: ClusterConfig) -> list[str]:
    """How the ranks are started, one a task. Words are quoted here, because some are variables."""
    words = [
        "srun",
        "--label",
        # Consecutive ranks share a node, as tensor and expert parallelism want.
        "--distribution=block",
        # Ranks that end by a signal with 3, one a moment before the others, are no failure.
        "--kill-on-bad-exit=0",
        f"--wait={WAIT_SECONDS}",
    ]
    if cluster.cpus_per_task is not None:
        # Since SLURM 22.05 srun no longer takes it from sbatch.
        words.append(f"--cpus-per-task={cluster.cpus_per_task}")
    if cluster.container is not None and cluster.container_runtime == "pyxis":
        mounts = "" if cluster.container_mounts is None else f",{_escape(cluster.container_mounts)}"
        words += [
            f"--container-image={quote(cluster.container)}",
            f'--container-mounts="$PWD:$PWD{mounts}"',
            '--container-workdir="$PWD"',
        ]
    return words


def _train(cluster: ClusterConfig, command: Command) -> list[str]:
    """The command of one rank, in its container if that is a program's business."""
    words = []
    if cluster.container is not None and cluster.container_runtime == "apptainer":
        words += ["apptainer exec", *(["--nv"] if cluster.gpus_per_node else [])]
        words += ['--pwd "$PWD" --bind "$PWD:$PWD"']
        if cluster.container_mounts is not None:
            words.append(f"--bind {quote(cluster.container_mounts)}")
        words.append(quote(cluster.container))
    python = "python3" if cluster.container is not None else command.python
    if cluster.venv is not None:
        python = f"{cluster.venv}/bin/python"
    words.append(f"{quote(python)} -m k2_megatron train {quote(command.config)}")
    return words + [quote(f"--set={override}") for override in command.overrides]


def _array(name: str, words: Sequence[str]) -> str:
    """A bash array, one group of words a line; the words are quoted already."""
    return "\n".join([f"{name}=(", *(f"    {word}" for word in words), ")"])

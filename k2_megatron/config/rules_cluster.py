# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-field rules about the SLURM job. Each function is named for what it refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from k2_megatron.config.cluster import ClusterConfig
from k2_megatron.config.config import Config
from k2_megatron.config.refusal import Refusal
from k2_megatron.config.resolve import BATCH_KEYS, DEGREE_KEYS, fitting_world_sizes

_SHOWN_SUGGESTIONS = 8
_SET_BY_THE_SCRIPT = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE")


def ranks_per_node(cluster: ClusterConfig) -> int | None:
    """Ranks on one node: one a GPU, or as many as a CPU run asks for; None if it does not say."""
    return cluster.gpus_per_node or cluster.tasks_per_node


def time_limit_seconds(text: str) -> int:
    """The length of a time limit written HH:MM:SS or DAYS-HH:MM:SS."""
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def refuse_cpu_job_without_tasks(config: Config) -> Iterable[Refusal]:
    """Without GPUs nothing else says how many ranks a node has."""
    if config.cluster.nodes is not None and ranks_per_node(config.cluster) is None:
        yield Refusal(
            ("cluster.tasks_per_node", "cluster.gpus_per_node"),
            "an integer >= 1",
            "a job on CPUs needs the number of its ranks",
        )


def refuse_nodes_that_do_not_fit(config: Config) -> Iterable[Refusal]:
    """The job's ranks are a whole number of copies of the model, and divide the batch."""
    nodes, each = config.cluster.nodes, ranks_per_node(config.cluster)
    fitting = fitting_world_sizes(config)
    # Where no number of processes fits another rule says so.
    if nodes is None or each is None or not fitting or nodes * each in fitting:
        return
    per_node = "gpus_per_node" if config.cluster.gpus_per_node else "tasks_per_node"
    counts = [size // each for size in fitting if size % each == 0]
    nearest = sorted(sorted(counts, key=lambda n: (abs(n - nodes), n))[:_SHOWN_SUGGESTIONS])
    allowed = ", ".join(str(count) for count in nearest)
    smallest = ", ".join(str(size) for size in fitting[:_SHOWN_SUGGESTIONS])
    yield Refusal(
        ("cluster.nodes", f"cluster.{per_node}", *DEGREE_KEYS, *BATCH_KEYS),
        allowed or f"no number of nodes of {each} ranks",
        f"{nodes * each} processes do not fit the parallel layout and the batch; "
        f"the smallest numbers that do: {smallest}",
    )


def refuse_saving_before_the_job_begins(config: Config) -> Iterable[Refusal]:
    """A signal that comes at the start would stop and requeue the job for ever."""
    limit = config.cluster.time_limit
    seconds = config.cluster.save_before_limit_seconds
    if limit is not None and seconds >= time_limit_seconds(limit):
        yield Refusal(
            ("cluster.save_before_limit_seconds", "cluster.time_limit"),
            f"less than {time_limit_seconds(limit)}",
            "the ranks would be told to stop before they could start",
        )


def refuse_requeue_that_cannot_resume(config: Config) -> Iterable[Refusal]:
    """A requeued job finds its own checkpoints, which `never` refuses to go on with."""
    cluster = config.cluster
    if cluster.nodes is not None and cluster.requeue and config.checkpoint.resume == "never":
        yield Refusal(
            ("cluster.requeue", "checkpoint.resume", "cluster.nodes"),
            "false, or checkpoint.resume auto",
            "a requeued job goes on from its checkpoint",
        )


def refuse_environment_given_twice_or_set_by_the_script(config: Config) -> Iterable[Refusal]:
    """Of two values one would be lost without a word."""
    names = Counter(variable.name for variable in config.cluster.environment)
    for name, count in names.items():
        if count > 1:
            yield Refusal(
                ("cluster.environment",), "each name once", f"{name} is listed {count} times"
            )
        if name in _SET_BY_THE_SCRIPT or name.startswith("SLURM_"):
            yield Refusal(
                ("cluster.environment",), f"other names than {name}", "the job itself sets it"
            )


def refuse_log_path_that_slurm_rewrites(config: Config) -> Iterable[Refusal]:
    """In the name of a log SLURM replaces what follows a %, or nothing after a backslash."""
    if config.cluster.nodes is not None and {"%", "\\"} & set(config.run.folder):
        yield Refusal(
            ("run.folder", "cluster.nodes"),
            "a path without % and \\",
            "SLURM gives them a meaning of its own in the path of a log",
        )


CLUSTER_RULES: tuple[Callable[[Config], Iterable[Refusal]], ...] = (
    refuse_cpu_job_without_tasks,
    refuse_nodes_that_do_not_fit,
    refuse_saving_before_the_job_begins,
    refuse_requeue_that_cannot_resume,
    refuse_environment_given_twice_or_set_by_the_script,
    refuse_log_path_that_slurm_rewrites,
)

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The `cluster` section: the SLURM job that `launch` makes of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from k2_megatron.config.option import NO_OUTER_BLANKS, NO_OUTER_BLANKS_WORDS, option, required

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.,:@/+-]*"
_NAME_WORDS = "of letters, digits and _ . , : @ / + - that begins with a letter, digit or _"
# Quoted, so that no shell would put a home folder in the place of a tilde.
_PATH = r"[^\s~](.*\S)?"
_PATH_WORDS = "that is not empty, does not begin with ~ and has no blanks at its ends"


@dataclass(frozen=True, kw_only=True)
class EnvironmentVariable:
    """One environment variable of every rank."""

    name: str = field(
        metadata=required(
            "Name of the variable, for example NCCL_IB_HCA.",
            pattern=r"[A-Za-z_][A-Za-z0-9_]*",
            pattern_words="of letters, digits and _ that does not begin with a digit",
        )
    )
    value: str = field(
        metadata=required(
            "Its value, taken as it stands: no variable in it is replaced. Numbers need quotes."
        )
    )


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The SLURM job of `k2-megatron launch`. `train` and `validate` do without it.

    Null leaves a choice to the cluster: what its administrators set as default holds.
    """

    nodes: int | None = option(
        None,
        "Nodes of the job (--nodes). null: none is launched; the other keys need it. K2's "
        "model-parallel group takes 32 nodes, and any multiple can train. Report section 2.4.2.",
        minimum=1,
    )
    gpus_per_node: int = option(
        8,
        "GPUs of a node (--gpus-per-node); each gets one rank. 0: train on CPUs. K2's nodes have "
        "8. Report section 2.4.1.",
        minimum=0,
    )
    gpu_type: str | None = option(
        None,
        "Kind of GPU as the cluster names it (--gpus-per-node=TYPE:N), for example h100.",
        pattern=r"[A-Za-z0-9][A-Za-z0-9_.-]*",
        pattern_words="of letters, digits and _ . - that begins with a letter or digit",
    )
    tasks_per_node: int | None = option(
        None, "Ranks of a node where gpus_per_node is 0; with GPUs there is one a GPU.", minimum=1
    )
    cpus_per_task: int | None = option(
        None, "CPU cores of a rank (--cpus-per-task), its data workers included.", minimum=1
    )
    exclusive: bool = option(
        True, "Take whole nodes with all their memory (--exclusive --mem=0). false: share them."
    )
    partition: str | None = option(
        None, "Partition (--partition).", pattern=_NAME, pattern_words=_NAME_WORDS
    )
    account: str | None = option(
        None, "Account that pays (--account).", pattern=_NAME, pattern_words=_NAME_WORDS
    )
    qos: str | None = option(
        None, "Quality of service (--qos).", pattern=_NAME, pattern_words=_NAME_WORDS
    )
    constraint: str | None = option(
        None,
        "Features that nodes must have (--constraint), for example 'h100&ib'.",
        pattern=r"[A-Za-z0-9_(\[][A-Za-z0-9_.,:@/+&|*=()\[\]-]*",
        pattern_words="of letters, digits and _ . , : @ / + & | * = ( ) [ ] -",
    )
    time_limit: str | None = option(
        None,
        "Longest time of one start of the job (--time), in quotes. A requeued job gets it anew.",
        pattern=r"(?!0+(-00)?:00:00)(\d+-([01]\d|2[0-3])|\d+):[0-5]\d:[0-5]\d",
        pattern_words="of the form 'HH:MM:SS' or 'DAYS-HH:MM:SS', longer than 0",
    )
    save_before_limit_seconds: int = option(
        300,
        "How long before the time limit the ranks are told to save and stop (--signal=USR1@N); "
        "longer than a step and a save. SLURM may be up to 60 seconds early.",
        minimum=1,
        below=65536,
    )
    requeue: bool = option(
        True,
        "Queue the job again after the time limit, a preemption or the loss of a node, to go on "
        "from its checkpoint; not after a failure or scancel. false: submit again by hand.",
    )
    venv: str | None = option(
        None,
        "Virtual environment whose bin/python runs the ranks; inside the container if there is "
        "one. null: the container's python3, or the Python of `launch`.",
        pattern=_PATH,
        pattern_words=_PATH_WORDS,
    )
    container: str | None = option(
        None,
        "Container image that the ranks run in. null: none.",
        pattern=_PATH,
        pattern_words=_PATH_WORDS,
    )
    container_runtime: Literal["pyxis", "apptainer"] = option(
        "pyxis",
        "What starts the container: pyxis (srun --container-image, with enroot) or apptainer exec.",
    )
    container_mounts: str | None = option(
        None,
        "Folders of the host to see in the container beside the working directory, as "
        "SOURCE:TARGET[:OPTIONS], divided by commas.",
        pattern=NO_OUTER_BLANKS,
        pattern_words=NO_OUTER_BLANKS_WORDS,
    )
    environment: tuple[EnvironmentVariable, ...] = option(
        (), "Environment variables of every rank, such as NCCL's and RDMA's."
    )

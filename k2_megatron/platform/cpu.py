# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The CPU platform: gloo, megatron-core's own layers, and the adaptation these need."""

from __future__ import annotations

import os
import platform as host
import sys
import time
from contextlib import suppress
from typing import Any

import torch

from k2_megatron.config.config import Config
from k2_megatron.errors import ConfigError
from k2_megatron.platform import engine
from k2_megatron.platform.base import Platform
from k2_megatron.platform.cpu_torch import (
    add_unequal_collectives,
    redirect_cuda_names,
    separate_coalesced_gathers,
)
from k2_megatron.platform.host_memory import limit_bytes


class CpuPlatform(Platform):
    """Real megatron-core modules, process groups and schedules on CPU tensors."""

    name = "cpu"
    backend = "gloo"
    uses_transformer_engine = False
    pins_memory = False

    def __init__(self) -> None:
        self._prepared = False

    def check(self, config: Config) -> None:
        """Refuse what only Transformer Engine's layers can do.

        Raises:
            ConfigError: the configuration asks for it.
        """
        if config.parallel.delay_wgrad_compute:
            raise ConfigError(
                "parallel.delay_wgrad_compute: given true; allowed on a CPU: false. "
                "megatron-core's own layers cannot compute weight gradients later; Transformer "
                "Engine's can, on a GPU"
            )
        size = config.parallel.context_parallel_size
        if size > 1:
            raise ConfigError(
                f"parallel.context_parallel_size: given {size}; allowed on a CPU: 1. "
                "megatron-core's own attention works on whole sequences; context parallelism "
                "needs Transformer Engine on a GPU"
            )

    def prepare(self, device_index: int) -> None:
        """Make the names megatron-core takes from torch.cuda mean the CPU; mend the engine."""
        if self._prepared:
            return
        # megatron.core.jit.jit_fuser is torch.compile, which needs a compiler at run time here.
        os.environ["TORCH_COMPILE_DISABLE"] = "1"
        # A machine with a GPU may be asked for the CPU: its device and CUDA-only packages stay out.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        for package in ("transformer_engine", "transformer_engine_torch", "apex"):
            sys.modules[package] = None  # type: ignore[assignment]
        # Ranks that share cores would interrupt each other at every message.
        with suppress(AttributeError, OSError):  # Linux alone has it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        redirect_cuda_names()
        add_unequal_collectives()
        separate_coalesced_gathers()
        engine.check_version()
        engine.silence_known_warnings()
        engine.mend_for_cpu()
        engine.mend_without_transformer_engine()
        engine.mend_output_discarding_checkpoint()
        self._prepared = True

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def transformer_options(self) -> dict[str, Any]:
        """No fused kernels; experts one by one.

        `deallocate_pipeline_outputs` is off: schedules.py:165 swaps the storage out of a tensor
        whose isend may be in flight. CUDA's allocator keeps such memory until the stream has
        passed, malloc does not, and the receiver reads garbage.
        """
        return {
            "moe_grouped_gemm": False,
            "gradient_accumulation_fusion": False,
            "bias_activation_fusion": False,
            "bias_dropout_fusion": False,
            "masked_softmax_fusion": False,
            "deallocate_pipeline_outputs": False,
        }

    def process_group_options(self) -> dict[str, Any]:
        """Nothing: gloo takes any tensor in host memory."""
        return {}

    def random_state(self) -> torch.Tensor | None:
        """No generator beside the host's."""
        return None

    def set_random_state(self, state: torch.Tensor | None) -> None:
        """Nothing to restore."""

    def peak_memory_bytes(self) -> int | None:
        """No device memory."""
        return None

    def time_mark(self) -> Any:
        """The host's clock."""
        return time.perf_counter()

    def seconds_between(self, begin: Any, end: Any) -> float:
        """The difference."""
        return float(end - begin)

    def memory_bytes(self) -> int:
        """Of the host, or of the container, which all ranks in it share."""
        return limit_bytes()

    def memory_name(self) -> str:
        """The host's."""
        return "this machine"

    def local_device_count(self) -> int | None:
        """Any number of ranks may share a CPU."""
        return None

    def device_uuid(self) -> str | None:
        """No GPU."""
        return None

    def describe(self) -> str:
        """Host processor and package versions."""
        return (
            f"{host.machine()} CPU, {os.cpu_count()} cores, PyTorch {torch.__version__}, "
            f"megatron-core {engine.VERSION}, gloo"
        )

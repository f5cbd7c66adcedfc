# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a platform is: the only interface through which the project knows a CPU from a GPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from k2_megatron.config.config import Config


class Platform(ABC):
    """One kind of device with its communication backend.

    Attributes:
        name: "cpu" or "cuda".
        backend: torch.distributed backend, "gloo" or "nccl".
        uses_transformer_engine: layers come from Transformer Engine, not from megatron-core.
        pins_memory: batches are put in page-locked memory, so that copies need not be waited for.
    """

    name: str
    backend: str
    uses_transformer_engine: bool
    pins_memory: bool

    @abstractmethod
    def check(self, config: Config) -> None:
        """Refuse what this device cannot train; before `prepare` or after it.

        Raises:
            ConfigError: the configuration asks for something that the platform does not have.
        """

    @abstractmethod
    def prepare(self, device_index: int) -> None:
        """Select the device and mend the engine; call once, before any use of megatron-core."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of this process."""

    @abstractmethod
    def transformer_options(self) -> dict[str, Any]:
        """TransformerConfig fields that depend on the device, not on the model."""

    @abstractmethod
    def process_group_options(self) -> dict[str, Any]:
        """What init_process_group wants to know about the device."""

    @abstractmethod
    def random_state(self) -> torch.Tensor | None:
        """State of the device's random generator; None where it is the host's."""

    @abstractmethod
    def set_random_state(self, state: torch.Tensor | None) -> None:
        """Restore what `random_state` gave."""

    @abstractmethod
    def peak_memory_bytes(self) -> int | None:
        """Largest device memory in use so far, in bytes; None where the device does not tell."""

    @abstractmethod
    def time_mark(self) -> Any:
        """A moment in the work of the device, without waiting for it."""

    @abstractmethod
    def seconds_between(self, begin: Any, end: Any) -> float:
        """Time between two marks, once the device has passed both."""

    @abstractmethod
    def memory_bytes(self) -> int:
        """Memory that a rank can have at most, in bytes: of its device, or of the host."""

    @abstractmethod
    def memory_name(self) -> str:
        """Whose memory that is, in words."""

    @abstractmethod
    def local_device_count(self) -> int | None:
        """Devices of this machine, one for a rank; None where ranks need no device of their own."""

    @abstractmethod
    def device_uuid(self) -> str | None:
        """Identity of the GPU for NVML; None without one."""

    @abstractmethod
    def describe(self) -> str:
        """One line for the log: device and versions."""

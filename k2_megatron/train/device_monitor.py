# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Samples power, clocks, memory, utilisation and temperature of this process's GPU through NVML."""

from collections.abc import Callable, Mapping
from typing import Any

from k2_megatron.train import tags
from k2_megatron.train.callbacks import Callback
from k2_megatron.train.metrics import StepRecord


class DeviceMonitor(Callback):
    """Adds the `device/...` tags to each logged step; does nothing without a GPU.

    Six queries, all answered by the driver without touching the GPU's queues. A query that fails
    is said once and not made again, so that a card without, say, a power sensor still reports the
    rest; where NVML itself fails, that is said once and nothing is written.
    """

    def __init__(
        self,
        device_uuid: str | None,
        nvml: Any = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Remember the device; NVML is started when training starts.

        Args:
            device_uuid: UUID of the GPU as CUDA names it, with or without `GPU-` in front; an
                index would not do, as NVML does not know CUDA_VISIBLE_DEVICES. None without GPU.
            nvml: module with NVML's functions; nvidia-ml-py's `pynvml` by default.
            say: takes the message when something cannot be read.
        """
        self._uuid = device_uuid
        self._nvml = nvml
        self._say = say
        self._queries: dict[str, Callable[[], float]] = {}
        self._started = False

    def on_train_start(self, resumed_step: int) -> None:
        """Start NVML and find the device."""
        if self._uuid is None:
            return
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
        name = self._uuid if self._uuid.startswith(("GPU-", "MIG-")) else f"GPU-{self._uuid}"
        try:
            self._nvml.nvmlInit()
            self._started = True
            self._queries = _queries(self._nvml, self._nvml.nvmlDeviceGetHandleByUUID(name))
        except self._nvml.NVMLError as error:
            self._say(f"device monitor: NVML cannot watch {name} ({error}); no device/ values")

    def measure(self, record: StepRecord) -> Mapping[str, float]:
        """Return what could be read, by tag."""
        values: dict[str, float] = {}
        failed: dict[str, str] = {}
        for tag, query in self._queries.items():
            try:
                values[tag] = float(query())
            except self._nvml.NVMLError as error:
                failed[tag] = str(error)
        if failed:
            self._queries = {tag: q for tag, q in self._queries.items() if tag not in failed}
            reasons = ", ".join(f"{tag} ({reason})" for tag, reason in failed.items())
            self._say(f"device monitor: NVML cannot read {reasons}; no longer written")
        return values

    def close(self) -> None:
        """Stop NVML."""
        if self._started:
            self._started = False
            self._nvml.nvmlShutdown()


def _queries(nvml: Any, handle: Any) -> dict[str, Callable[[], float]]:
    """Return the query of each tag, in the tag's unit."""
    return {
        tags.DEVICE_POWER: lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,  # from mW
        tags.DEVICE_SM_CLOCK: lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        tags.DEVICE_MEMORY_CLOCK: lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        tags.DEVICE_MEMORY_USED: lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
        tags.DEVICE_UTILIZATION: lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        tags.DEVICE_TEMPERATURE: lambda: nvml.nvmlDeviceGetTemperature(
            handle, nvml.NVML_TEMPERATURE_GPU
        ),
    }

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The GPU platform: CUDA over NCCL, layers from Transformer Engine."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

import torch

from k2_megatron.config.config import Config
from k2_megatron.optional import available, require
from k2_megatron.platform import engine, weight_gradient
from k2_megatron.platform.base import Platform


class CudaPlatform(Platform):
    """One CUDA device a process."""

    name = "cuda"
    backend = "nccl"
    uses_transformer_engine = True
    pins_memory = True

    def check(self, config: Config) -> None:
        """Nothing to refuse: Transformer Engine has all that a configuration can ask for."""

    def prepare(self, device_index: int) -> None:
        """Take CUDA device `device_index`.

        Raises:
            MissingPackageError: Transformer Engine is not installed.
        """
        require("transformer_engine", "training on a GPU")
        # Experts' tensors have another size in every micro-batch; in fixed segments what stays of
        # one would lie in the holes of the others. Read at the first allocation.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        torch.cuda.set_device(device_index)
        engine.check_version()
        engine.silence_known_warnings()
        engine.mend_output_discarding_checkpoint()
        engine.mend_loss_that_waits()
        engine.mend_counts_that_queue()
        weight_gradient.lend()

    @property
    def device(self) -> torch.device:
        """The current CUDA device."""
        return torch.device("cuda", torch.cuda.current_device())

    def transformer_options(self) -> dict[str, Any]:
        """Grouped GEMMs and the fused kernels of Transformer Engine and megatron-core."""
        return {
            "moe_grouped_gemm": True,
            "gradient_accumulation_fusion": True,
            "bias_activation_fusion": True,
            "bias_dropout_fusion": False,
            "masked_softmax_fusion": False,
            "moe_permute_fusion": True,
            "cross_entropy_loss_fusion": True,
            "cross_entropy_fusion_impl": "te",
            "deallocate_pipeline_outputs": True,
        }

    def process_group_options(self) -> dict[str, Any]:
        """The device, so that NCCL connects at once and barriers need not guess it."""
        return {"device_id": self.device}

    def random_state(self) -> torch.Tensor | None:
        """State of the CUDA generator, uint8 on the host."""
        return torch.cuda.get_rng_state()

    def set_random_state(self, state: torch.Tensor | None) -> None:
        """Restore the CUDA generator."""
        assert state is not None
        torch.cuda.set_rng_state(state)

    def peak_memory_bytes(self) -> int | None:
        """Most that tensors have taken at once."""
        return torch.cuda.max_memory_allocated()

    def time_mark(self) -> Any:
        """An event in the current stream."""
        make: Any = torch.cuda.Event  # untyped
        event = make(enable_timing=True)
        event.record()
        return event

    def seconds_between(self, begin: Any, end: Any) -> float:
        """What the device measured; waits for it where it has not come so far."""
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    def memory_bytes(self) -> int:
        """Memory of the current device."""
        return int(torch.cuda.get_device_properties(self.device).total_memory)

    def memory_name(self) -> str:
        """The device's name."""
        return torch.cuda.get_device_name()

    def local_device_count(self) -> int | None:
        """CUDA devices of this machine."""
        return torch.cuda.device_count()

    def device_uuid(self) -> str | None:
        """UUID of the current device."""
        return str(torch.cuda.get_device_properties(self.device).uuid)

    def describe(self) -> str:
        """Device name, CUDA and package versions."""
        te = version("transformer-engine")
        apex = "with" if available("apex") else "without"
        return (
            f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, PyTorch "
            f"{torch.__version__}, megatron-core {engine.VERSION}, Transformer Engine {te}, "
            f"{apex} Apex"
        )

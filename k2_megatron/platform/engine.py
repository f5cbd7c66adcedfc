# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Where megatron-core 0.16.1 itself must be mended: each function names the line it answers to."""

from __future__ import annotations

import logging
import warnings
from importlib.metadata import version
from typing import Any

import torch

from k2_megatron.errors import UserError

VERSION = "0.16.1"


def check_version() -> None:
    """Refuse another megatron-core: what is mended here is known for this release alone.

    Raises:
        UserError: another version is installed.
    """
    found = version("megatron-core")
    if found != VERSION:
        raise UserError(f"megatron-core {found} is installed; this release needs {VERSION}")


def silence_known_warnings() -> None:
    """Hide what megatron-core and PyTorch say about each other on every start.

    It announces each package it can do without, and calls collectives by names that PyTorch is
    about to rename; nothing of it is for the user of a pinned version.
    """
    warnings.filterwarnings("ignore", module=r"megatron\.")
    # transformer_layer.py:366 knows feed-forwards by their exact class, not by inheritance.
    logging.getLogger("megatron.core.transformer.transformer_layer").addFilter(
        lambda record: "Unknown MLP type" not in record.getMessage()
    )
    warnings.filterwarnings(
        "ignore", r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning
    )


def mend_for_cpu() -> None:
    """moe_utils.py:1093: split sizes become lists for all_to_all_single only `if is_cuda`."""

    def to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    _send_counts_by(to_host)


def _send_counts_by(to_host: Any) -> None:
    """Replace what dispatchers take the counts of tokens to the host by."""
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import megatron.core.transformer.moe.token_dispatcher as dispatcher

    moe_utils.maybe_move_tensor_to_cpu = to_host
    dispatcher.maybe_move_tensor_to_cpu = to_host


class _OnTheDevice:
    """Page-locked memory as CUDA's array interface shows it: kernels see it at its own address."""

    def __init__(self, memory: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": tuple(memory.shape),
            "typestr": memory.numpy().dtype.str,
            "data": (memory.data_ptr(), False),
            "version": 3,
        }


def counts_to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Send numbers to the host by a kernel of the current stream.

    Args:
        tensor: of integers on the GPU, contiguous or not; anything else is given back as it is.
        as_numpy: give a NumPy array.
        record_stream: the tensor's memory is of another stream.

    Returns:
        Page-locked memory, which has the numbers when the stream has come so far. Nobody may drop
        it before: the allocator knows of no copy.
    """
    if not (torch.is_tensor(tensor) and tensor.is_cuda):
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    if tensor.numel():
        seen = torch.as_tensor(_OnTheDevice(host), device=tensor.device)
        assert seen.data_ptr() == host.data_ptr(), "PyTorch has made a copy"
        # Not copy_, which would be a copy engine's.
        torch.add(tensor, 0, out=seen)
    if record_stream:
        stream: Any = torch.cuda.current_stream()
        tensor.record_stream(stream)
    return host.numpy() if as_numpy else host


def mend_counts_that_queue() -> None:
    """moe_utils.py:1094: each MoE layer copies some counts to the host, which waits for them. As a
    copy they stand behind activations that are on their way there: with `k2-full` on an H200 they
    came after 172 us in the mean and up to 1.3 ms.
    """
    _send_counts_by(counts_to_host)


def mend_without_transformer_engine() -> None:
    """Names that exist only with Transformer Engine and are read without it.

    - multi_latent_attention.py:53-65: HAVE_TE is true though Transformer Engine is absent, since
      its extension module imports with stand-in bases; :185 then fails in isinstance.
    - moe_utils.py:25-42: te_general_gemm is left undefined and read at :1192.
    """
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import megatron.core.transformer.multi_latent_attention as mla

    mla.HAVE_TE = False
    moe_utils.te_general_gemm = None


def fix_rope_blocks(num_heads: int) -> None:
    """Give megatron-core's fused rotary kernels one block of heads that divides them.

    fused_mla_yarn_rope_apply.py tunes the block in each process anew. A block that does not divide
    the heads reads and writes beyond them (:439, :538), and the gradient of the shared rotary key
    is summed over heads block by block (:552), so that its bits would depend on the tuning.

    Args:
        num_heads: attention heads of this tensor-parallel rank.
    """
    import megatron.core.fusions.fused_mla_yarn_rope_apply as rope

    block = min(16, num_heads & -num_heads)  # the largest power of 2 that divides them
    for name in ("fwd_q", "bwd_q", "fwd_kv", "bwd_kv"):
        kernel: Any = getattr(rope, f"rotary_{name}_kernel")
        kernel.configs = [type(kernel.configs[0])({"BLOCK_H": block})]


def mend_loss_that_waits() -> None:
    """language_module.py:159: in every backward Transformer Engine's loss copies a 1 to the GPU to
    compare it with the gradient, and the host waits for all that is queued.

    What it does for CUDA graphs is the same loss without that.
    """
    import megatron.core.models.common.language_module.language_module as language_module

    loss: Any = language_module.te_parallel_cross_entropy

    def without_waiting(logits: Any, labels: Any, group: Any, capturable: bool = True) -> Any:
        return loss(logits, labels, group, True)

    language_module.te_parallel_cross_entropy = without_waiting


def mend_output_discarding_checkpoint() -> None:
    """tensor_parallel/random.py:636 and :444, see `k2_megatron.recompute.checkpoint`."""
    from megatron.core import tensor_parallel

    from k2_megatron.recompute.checkpoint import OutputDiscardingCheckpoint

    tensor_parallel.CheckpointWithoutOutput = OutputDiscardingCheckpoint

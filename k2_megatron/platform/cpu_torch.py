# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Give the torch names that megatron-core takes for granted a meaning on a CPU.

megatron-core names "cuda" as a device in some six hundred lines. No file of it is edited: in a
process without a GPU the names below are redirected once, before megatron-core is imported.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

CPU = torch.device("cpu")

# Factories that megatron-core calls with device="cuda", device=torch.cuda.current_device() or
# pin_memory=True (schedules.py:596, optimizer.py:481, clip_grads.py:103, utils.py:1207, ...).
FACTORIES = ("tensor", "empty", "zeros", "ones", "full", "arange", "empty_like", "zeros_like")


class _Stream:
    """The one CPU stream: everything put on it is done by the time anybody asks."""

    def record_event(self, event: _Event | None = None) -> _Event:
        return event or _Event()

    def wait_stream(self, stream: object) -> None:
        pass

    def wait_event(self, event: object) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stream)

    def __hash__(self) -> int:
        return 0


class _Event:
    """An event on the CPU stream: always past."""

    def record(self, stream: object = None) -> None:
        pass

    def wait(self, stream: object = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


class _OneGenerator:
    """torch.cuda.default_generators with the CPU's generator for every device."""

    def __getitem__(self, index: object) -> torch.Generator:
        return torch.default_generator


def _always(value: object) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)  # there is no pinned memory without an accelerator
        return factory(*args, **kwargs)

    return make


def redirect_cuda_names() -> None:
    """Redirect devices, streams, random state, `.cuda()` and tensor type names to the CPU."""
    assert not torch.cuda.is_available(), "a CUDA device is present: the CPU platform is not for it"
    cuda: Any = torch.cuda
    cuda.current_device = _always(CPU)
    for name in ("synchronize", "empty_cache", "_lazy_init"):
        setattr(cuda, name, _always(None))
    cuda.Stream, cuda.Event = (lambda *a, **k: _Stream()), (lambda *a, **k: _Event())
    cuda.current_stream = cuda.default_stream = _always(_Stream())
    cuda.stream = cuda.device = lambda *a: contextlib.nullcontext()
    cuda.nvtx.range_push = cuda.nvtx.range_pop = _always(None)

    # tensor_parallel/random.py keeps dropout states of the GPU's generator; here the CPU's is it.
    cuda._lazy_call = lambda call, **k: call()
    cuda.default_generators = _OneGenerator()
    cuda.get_rng_state = cuda.random.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, device=None: torch.set_rng_state(
        state
    )
    cuda.manual_seed = torch.default_generator.manual_seed
    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )

    for name in FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    tensor: Any = torch.Tensor
    tensor.cuda = lambda self, *a, **k: self
    tensor.record_stream = lambda self, stream: None
    # clip_grads.py:167 and distrib_optimizer.py:361, 420, 582 compare type names.
    real_type = tensor.type

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out = real_type(self, *args, **kwargs)
        return out.replace("torch.", "torch.cuda.", 1) if isinstance(out, str) else out

    tensor.type = type_


def add_unequal_collectives() -> None:
    """Give gloo all_gather and reduce_scatter over lists of unequal pieces.

    mappings.py:150 and :193 use them in the alltoall dispatcher when ETP > 1 and EP > 1; gloo has
    only equal pieces, and all_to_all_single of unequal ones, through which both go here.
    """
    gather, scatter = dist.all_gather, dist.reduce_scatter

    def exchange(
        pieces: Sequence[torch.Tensor], sizes: list[int], group: dist.ProcessGroup | None
    ) -> tuple[torch.Tensor, ...]:
        send = torch.cat([piece.reshape(-1) for piece in pieces])
        received = send.new_empty(sum(sizes))
        dist.all_to_all_single(
            received, send, sizes, [piece.numel() for piece in pieces], group=group
        )
        return torch.split(received, sizes)

    def all_gather(
        outputs: list[torch.Tensor],
        tensor: torch.Tensor,
        group: dist.ProcessGroup | None = None,
        async_op: bool = False,
    ) -> Any:
        sizes = [output.numel() for output in outputs]
        if len(set(sizes)) == 1:
            return gather(outputs, tensor, group=group, async_op=async_op)
        assert not async_op
        for output, got in zip(
            outputs, exchange([tensor] * len(outputs), sizes, group), strict=True
        ):
            output.copy_(got.view_as(output))
        return None

    def reduce_scatter(
        output: torch.Tensor,
        inputs: list[torch.Tensor],
        op: Any = dist.ReduceOp.SUM,
        group: dist.ProcessGroup | None = None,
        async_op: bool = False,
    ) -> Any:
        if len({piece.numel() for piece in inputs}) == 1:
            return scatter(output, inputs, op=op, group=group, async_op=async_op)
        assert not async_op and op == dist.ReduceOp.SUM
        parts = exchange(inputs, [output.numel()] * len(inputs), group)
        output.copy_(torch.stack(parts).sum(0).view_as(output))
        return None

    namespace: Any = dist
    namespace.all_gather, namespace.reduce_scatter = all_gather, reduce_scatter


class _Works:
    """Collectives under way, waited for together."""

    def __init__(self, works: Sequence[dist.Work]) -> None:
        self._works = works

    def wait(self) -> None:
        for work in self._works:
            work.wait()


def separate_coalesced_gathers() -> None:
    """Let gloo gather the tensors of a coalesced call one by one.

    Its own coalesced gather corrupts memory while another one is under way (PyTorch 2.13), as with
    overlap_param_gather, where param_and_grad_buffer.py:274 asks for it: a rank dies by SIGSEGV or
    in malloc, once in thousands of steps. Those that follow each other are sound.
    """

    def gather(
        group: Any, outputs: list[torch.Tensor], inputs: list[torch.Tensor], options: Any = None
    ) -> _Works:
        given = [] if options is None else [options]
        pairs = zip(outputs, inputs, strict=True)
        return _Works([group._allgather_base(*pair, *given) for pair in pairs])

    # The second is what PyTorch before 2.13 calls it, and gives no options.
    for name in ("all_gather_single_coalesced", "allgather_into_tensor_coalesced"):
        if hasattr(dist.ProcessGroup, name):
            setattr(dist.ProcessGroup, name, gather)

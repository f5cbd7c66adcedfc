# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the trainer measures in one step, and the numbers that follow from it.

The trainer fills a StepRecord for each logged step and gives it to the callbacks. No torch here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from k2_megatron.train import moe_metrics, tags


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The measurements of one step of the whole job, after every reduction over ranks."""

    step: int
    """Number of the step just done, from 1."""
    loss: float
    """Mean cross-entropy of the global batch, nats per token."""
    lr: float
    """Learning rate this step used."""
    grad_norm: float
    """L2 norm of the whole gradient before clipping."""
    tokens: int
    """Tokens in this step's global batch."""
    step_seconds: float
    """Wall time of the step without validation and checkpoint; more than 0."""
    skipped: bool
    """Whether the optimizer left the weights alone because the gradient was not finite."""
    model_flops: float
    """Forward and backward FLOPs of the model in this step, whole job, without recomputation."""
    world_size: int
    """Number of ranks."""
    consumed_tokens: int
    """Tokens trained on since step 0, with this step."""
    phase: str | None = None
    """Name of the schedule's phase; None in a run without phases."""
    phase_number: int = 1
    """Number of the phase, from 1."""
    memory_bytes: int | None = None
    """Peak allocated device memory, the largest over the ranks; None on the CPU."""
    valid_loss: float | None = None
    """Loss on held-out documents with the weights after this step; None if not measured."""
    expert_load: Mapping[int, Sequence[int]] | None = None
    """Tokens of each expert in this step, `[num_experts]` by layer index (from 0, whole model)."""
    expert_bias: Mapping[int, Sequence[float]] | None = None
    """Router bias of each expert, `[num_experts]` by layer index; None without biases."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Further values by TensorBoard tag; each tag has a row in tags.TABLE."""

    def __post_init__(self) -> None:
        assert self.step_seconds > 0, f"step {self.step} took {self.step_seconds} s"
        assert self.world_size > 0, f"step {self.step} has {self.world_size} ranks"
        unknown = sorted(tag for tag in self.extra if not tags.is_documented(tag))
        assert not unknown, f"tags without a row in k2_megatron/train/tags.py: {unknown}"

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the whole job in one second."""
        return self.tokens / self.step_seconds

    @property
    def tflops_per_device(self) -> float:
        """Model TFLOP/s of one rank: `model_flops / (step_seconds * world_size * 1e12)`."""
        return self.model_flops / (self.step_seconds * self.world_size * 1e12)

    @property
    def expert_imbalance(self) -> dict[int, float]:
        """Busiest expert over mean expert by layer index; empty without MoE layers."""
        return moe_metrics.imbalance_by_layer(self.expert_load or {})

    @property
    def expert_bias_range(self) -> dict[int, float]:
        """Largest minus smallest router bias by layer index; empty without biases."""
        return moe_metrics.bias_range_by_layer(self.expert_bias or {})


def scalars(record: StepRecord) -> dict[str, float]:
    """Return every TensorBoard tag this record has a value for, with the value."""
    values: dict[str, float] = {
        tags.LOSS_TRAIN: record.loss,
        tags.LR: record.lr,
        tags.GRAD_NORM: record.grad_norm,
        tags.SKIPPED_STEP: float(record.skipped),
        tags.TOKENS_PER_SECOND: record.tokens_per_second,
        tags.TOKENS_PER_SECOND_PER_DEVICE: record.tokens_per_second / record.world_size,
        tags.STEP_SECONDS: record.step_seconds,
        tags.TFLOPS_PER_DEVICE: record.tflops_per_device,
        tags.CONSUMED_TOKENS: float(record.consumed_tokens),
    }
    if record.phase is not None:
        values[tags.PHASE] = float(record.phase_number)
    if record.valid_loss is not None:
        values[tags.LOSS_VALID] = record.valid_loss
    if record.memory_bytes is not None:
        values[tags.MEMORY_BYTES] = float(record.memory_bytes)
    for by_layer, pattern, summary in (
        (record.expert_imbalance, tags.EXPERT_IMBALANCE, tags.EXPERT_IMBALANCE_MAX),
        (record.expert_bias_range, tags.EXPERT_BIAS_RANGE, tags.EXPERT_BIAS_RANGE_MAX),
    ):
        if by_layer:
            values |= {pattern.format(layer=layer): value for layer, value in by_layer.items()}
            values[summary] = moe_metrics.worst(by_layer.values())
    return values | dict(record.extra)

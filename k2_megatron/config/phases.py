# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The table of a run's phases: which steps each one has, and the configuration it runs by.

A run without `schedule.phases` is one phase. Everything here is arithmetic on the configuration,
so that a step number alone says where a run stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from k2_megatron.config.config import Config
from k2_megatron.config.option import Changes
from k2_megatron.config.resolve import fitting_world_sizes, resolve, resolve_world
from k2_megatron.config.schedule import PhaseConfig
from k2_megatron.errors import TopologyError

# Sections of which a phase may change keys, and keys of `schedule` that it may change.
CHANGED_SECTIONS = ("model", "parallel", "memory", "data")
CHANGED_SCHEDULE_KEYS = ("seq_length", "global_batch_size", "micro_batch_size")
# Numbers that the parts of a running process are told anew; any other key of `model` builds them.
_MODEL_NUMBERS = ("moe_router_bias_update_rate",)
# Automatic values, and the sizes they follow from.
_AUTOMATIC = {
    "sequence_parallel": ("tensor_model_parallel_size",),
    "expert_tensor_parallel_size": ("tensor_model_parallel_size", "expert_model_parallel_size"),
}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Consecutive steps of one kind.

    Attributes:
        name: empty where the run has no phases.
        index: from 0.
        first_step, last_step: 1-based, both included.
        consumed_samples, consumed_tokens: by the phases before.
        text: counts the phases up to this one that begin with corpora of their own.
        config: its own configuration, without phases; `train_steps` is the whole run's.
    """

    name: str
    index: int
    first_step: int
    last_step: int
    consumed_samples: int
    consumed_tokens: int
    text: int
    config: Config

    @property
    def num_steps(self) -> int:
        """Its length."""
        return self.last_step - self.first_step + 1

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.config.schedule.micro_batch_size * self.config.schedule.seq_length

    @property
    def step_tokens(self) -> int:
        """Tokens of one of its steps."""
        return self.config.schedule.global_batch_size * self.config.schedule.seq_length

    def consumed_after(self, step: int) -> tuple[int, int]:
        """Samples and tokens of the run up to the end of a step; step before the first: before."""
        done = step - self.first_step + 1
        batch = self.config.schedule.global_batch_size
        return self.consumed_samples + done * batch, self.consumed_tokens + done * self.step_tokens


def phases_of(config: Config) -> tuple[Phase, ...]:
    """The table of a resolved configuration.

    Phases that the rules refuse get a length of one step, so that the table can always be made.
    """
    given = config.schedule.phases
    if not given:
        return (
            Phase(
                name="",
                index=0,
                first_step=1,
                last_step=config.schedule.train_steps,
                consumed_samples=0,
                consumed_tokens=0,
                text=0,
                config=config,
            ),
        )
    # The phases say the lengths and rates that these keys would.
    single = replace(
        config.schedule,
        phases=(),
        lr_decay_style="constant",
        lr_warmup_steps=0,
        lr_wsd_decay_steps=None,
    )
    current, found = replace(config, schedule=single), list[Phase]()
    step, samples, tokens, text = 1, 0, 0, 0
    for index, phase in enumerate(given):
        current = _changed(current, phase)
        batch = current.schedule.global_batch_size
        each = batch * current.schedule.seq_length
        length = _num_steps(phase, tokens, each)
        text += bool(phase.data.given)
        found.append(
            Phase(
                name=phase.name,
                index=index,
                first_step=step,
                last_step=step + length - 1,
                consumed_samples=samples,
                consumed_tokens=tokens,
                text=text,
                config=current,
            )
        )
        step, samples, tokens = step + length, samples + length * batch, tokens + length * each
    return tuple(replace(phase, config=_of_length(phase.config, step - 1)) for phase in found)


def with_total_steps(config: Config) -> Config:
    """The configuration with `train_steps` as its phases add up to."""
    if not config.schedule.phases:
        return config
    return _of_length(config, phases_of(config)[-1].last_step)


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase that a step belongs to; step 0 to the first, one beyond the end to the last."""
    return next((phase for phase in phases if step <= phase.last_step), phases[-1])


def groups_of(phases: Sequence[Phase]) -> list[list[Phase]]:
    """Phases that follow each other and are trained by the same processes, together."""
    found: list[list[Phase]] = []
    for phase in phases:
        if found and runs_on(found[-1][0].config, phase.config):
            found[-1].append(phase)
        else:
            found.append([phase])
    return found


def last_step_here(phases: Sequence[Phase], step: int) -> int:
    """The last step that processes made for `step` can train: after it others must be built."""
    return _group_at(phases, step)[-1].last_step


def first_step_here(phases: Sequence[Phase], step: int) -> int:
    """The first step that processes made for `step` can train: those before it need others."""
    return _group_at(phases, step)[0].first_step


def most_tokens_here(phases: Sequence[Phase], step: int) -> int:
    """The most tokens of a micro-batch that processes made for `step` train."""
    return max(phase.micro_batch_tokens for phase in _group_at(phases, step))


def _group_at(phases: Sequence[Phase], step: int) -> list[Phase]:
    here = phase_at(phases, step)
    return next(group for group in groups_of(phases) if here.last_step <= group[-1].last_step)


def reads_on(phase: Phase, other: Phase) -> bool:
    """Whether two phases read the same corpora in the same length."""
    return (phase.text, phase.config.schedule.seq_length) == (
        other.text,
        other.config.schedule.seq_length,
    )


def runs_on(built: Config, other: Config) -> bool:
    """Whether processes built for one phase can train the other: only numbers change."""

    def structure(config: Config) -> tuple[object, ...]:
        numbers = {name: getattr(built.model, name) for name in _MODEL_NUMBERS}
        return config.parallel, config.memory, replace(config.model, **numbers)

    return structure(built) == structure(other)


def run_world_sizes(config: Config) -> list[int]:
    """Every number of processes that can run all phases, ascending."""
    first, *others = (fitting_world_sizes(phase.config) for phase in phases_of(config))
    return [size for size in first if all(size in sizes for sizes in others)]


def check_world_size(config: Config, world_size: int) -> None:
    """Refuse a number of processes that does not fit every phase.

    Raises:
        TopologyError: names the phase, what is wrong and which numbers fit it.
    """
    for phase in phases_of(config):
        try:
            resolve_world(phase.config, world_size)
        except TopologyError as error:
            if not phase.name:
                raise
            raise TopologyError(f"phase {phase.name}: {error}") from error


def _of_length(config: Config, train_steps: int) -> Config:
    return replace(config, schedule=replace(config.schedule, train_steps=train_steps))


def _num_steps(phase: PhaseConfig, consumed_tokens: int, step_tokens: int) -> int:
    if phase.steps is not None:
        return phase.steps
    tokens = phase.tokens
    if phase.until_tokens is not None:
        tokens = phase.until_tokens - consumed_tokens
    # The nearest whole number; a half goes up.
    return max(1, (2 * (tokens or 0) + step_tokens) // (2 * step_tokens))


def _changed(config: Config, phase: PhaseConfig) -> Config:
    """The configuration with the changes of a phase."""
    keys = {name: getattr(phase, name) for name in CHANGED_SCHEDULE_KEYS}
    given = {name: value for name, value in keys.items() if value is not None}
    sections: dict[str, object] = {"schedule": replace(config.schedule, **given)}
    for section in CHANGED_SECTIONS:
        changes: Changes = getattr(phase, section)
        values = dict(changes.given)
        if section == "parallel":
            for name, sources in _AUTOMATIC.items():
                if name not in values and any(source in values for source in sources):
                    values[name] = None
        sections[section] = replace(getattr(config, section), **values)
    return resolve(replace(config, **sections))  # type: ignore[arg-type]

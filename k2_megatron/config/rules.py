# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-field rules: the list of them all, and how a refusal is told with values and places."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from k2_megatron.config.config import Config, sections, value_of
from k2_megatron.config.no_effect import REPLACED_BY_PHASES, keys_without_effect
from k2_megatron.config.option import keys_of
from k2_megatron.config.phases import CHANGED_SCHEDULE_KEYS, CHANGED_SECTIONS, Phase, phases_of
from k2_megatron.config.presets import MODEL_PRESETS
from k2_megatron.config.problems import Place, Problem
from k2_megatron.config.refusal import Refusal
from k2_megatron.config.rules_cluster import CLUSTER_RULES
from k2_megatron.config.rules_faults import FAULT_RULES
from k2_megatron.config.rules_logging import LOGGING_RULES
from k2_megatron.config.rules_memory import MEMORY_RULES
from k2_megatron.config.rules_model import MODEL_RULES
from k2_megatron.config.rules_optimizer import OPTIMIZER_RULES
from k2_megatron.config.rules_parallel import PARALLEL_RULES
from k2_megatron.config.rules_phases import PHASE_RULES
from k2_megatron.config.rules_schedule import SCHEDULE_RULES

_RULES_OF_ONE_PHASE: tuple[Callable[[Config], Iterable[Refusal]], ...] = (
    *MODEL_RULES,
    *PARALLEL_RULES,
    *OPTIMIZER_RULES,
    *SCHEDULE_RULES,
    *CLUSTER_RULES,
    *LOGGING_RULES,
    *FAULT_RULES,
    *MEMORY_RULES,
)
RULES = (*_RULES_OF_ONE_PHASE, *PHASE_RULES)

# Automatic values are unknown while a value they follow from is unknown.
_FOLLOWS_FROM = {
    "parallel.sequence_parallel": ("parallel.tensor_model_parallel_size",),
    "parallel.expert_tensor_parallel_size": (
        "parallel.tensor_model_parallel_size",
        "parallel.expert_model_parallel_size",
    ),
    "schedule.train_steps": ("schedule.phases",),
}


@dataclass(frozen=True, kw_only=True)
class Origins:
    """Where the values of a configuration come from.

    Attributes:
        fallback: gives the place of a problem none of whose keys was given, from its first key.
        places: place of every key that was given and could be read; those of phases, and the
            phases themselves, as `schedule.phases[1].parallel.context_parallel_size`.
        unknown: keys whose value is not known, because what was given could not be read.
        preset: the model preset, None if that is unknown.
    """

    fallback: Callable[[str], Place]
    places: Mapping[str, Place]
    unknown: Collection[str]
    preset: str | None

    @staticmethod
    def of(
        *,
        fallback: Callable[[str], Place],
        places: Mapping[str, Place],
        broken: Collection[str],
        preset: object,
    ) -> Origins:
        """Add to the broken keys the automatic values that follow from them."""
        follow = {
            key
            for key, sources in _FOLLOWS_FROM.items()
            if any(source in broken for source in sources)
        }
        if "schedule.phases" in broken:
            follow |= {f"schedule.{name}" for name in REPLACED_BY_PHASES}
        known = preset if isinstance(preset, str) else None
        unknown = {*broken, *follow}
        return Origins(fallback=fallback, places=places, unknown=unknown, preset=known)

    def knows(self, key: str) -> bool:
        """Whether the value of a key is the one that the run would have."""
        if key in self.places:
            return True
        if _phase_of(key) is not None:
            return "schedule.phases" in self.places
        section, name = key.split(".")
        follows = any(source in self.places for source in _FOLLOWS_FROM.get(key, ()))
        required = keys_of(sections()[section])[name].required and not follows
        if key in self.unknown or required:
            return False
        return self.preset is not None or section != "model"

    def describe(self, key: str) -> str:
        """Where the value of a key comes from, in words."""
        if key in self.places:
            return self.places[key].text
        if _phase_of(key) is not None:
            return "default"
        section, name = key.split(".")
        if section == "model" and name in MODEL_PRESETS.get(self.preset or "", {}):
            return f"preset {self.preset}"
        return "automatic" if key in _FOLLOWS_FROM else "default"


def check(config: Config, origins: Origins) -> list[Problem]:
    """Run every rule.

    Args:
        config: a resolved configuration; values that could not be read may be stand-ins.
        origins: where its values come from; refusals that touch an unknown value are left out.
    """
    first, *others = phases_of(config)
    refusals = [refusal for rule in _RULES_OF_ONE_PHASE for refusal in rule(first.config)]
    refusals += [refusal for rule in PHASE_RULES for refusal in rule(config)]
    refusals += refuse_settings_without_effect(config, origins.places)
    problems = [
        _tell(refusal, config, origins)
        for refusal in refusals
        if all(origins.knows(key) for key in refusal.keys)
    ]
    if "schedule.phases" not in origins.places:  # none, or not all could be read
        return problems
    places = dict(origins.places)
    for phase in others:
        changed = _changed_in(phase, origins)
        places |= {key: origins.places[where] for key, where in changed.items()}
        problems += _check_phase(phase, changed, replace(origins, places=places))
    return problems


def _check_phase(phase: Phase, changed: Mapping[str, str], origins: Origins) -> list[Problem]:
    """The configuration of one phase by the rules of any; what it changed is to blame.

    Args:
        phase: not the first.
        changed: the keys it changes, and where in the phases it does.
        origins: where the values of this phase come from.
    """
    refusals = [refusal for rule in _RULES_OF_ONE_PHASE for refusal in rule(phase.config)]
    refusals += refuse_settings_without_effect(phase.config, changed)
    problems = []
    for refusal in refusals:
        if any(key in changed for key in refusal.keys) and all(map(origins.knows, refusal.keys)):
            told = _tell(refusal, phase.config, origins)
            key = changed.get(told.key, told.key)
            problems.append(Problem(told.place, key, f"phase {phase.name}: {told.message}"))
    return problems


def _changed_in(phase: Phase, origins: Origins) -> dict[str, str]:
    """The keys that a phase gives, and their places in the list: what it changes of which section.

    `parallel.context_parallel_size` is `schedule.phases[1].parallel.context_parallel_size`.
    """
    prefix = f"schedule.phases[{phase.index}]."
    found = {}
    for key in origins.places:
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            section = name.partition(".")[0]
            if section in CHANGED_SECTIONS and section != name:
                found[name] = key
            elif name in CHANGED_SCHEDULE_KEYS:
                found[f"schedule.{name}"] = key
    return found


def _phase_of(key: str) -> str | None:
    """`schedule.phases[1]` of a key in it, None for a key of a section."""
    head, bracket, _ = key.partition("]")
    return f"{head}{bracket}" if key.startswith("schedule.phases[") else None


def refuse_settings_without_effect(config: Config, given: Collection[str]) -> list[Refusal]:
    """A given key that changes nothing misleads whoever reads the file."""
    return [
        Refusal((key, cause), "leaving it out", reason)
        for key, (cause, reason) in keys_without_effect(config).items()
        if key in given and value_of(config, key) is not None
    ]


def _tell(refusal: Refusal, config: Config, origins: Origins) -> Problem:
    """Put a refusal into words, at the first of its keys that was given."""
    first, *others = refusal.keys
    given = [origins.places[key] for key in refusal.keys if key in origins.places]
    phase = origins.places.get(_phase_of(first) or "")
    place = given[0] if given else phase or origins.fallback(first)
    here = "" if first in origins.places else f" ({origins.describe(first)})"
    text = f"given {_word(value_of(config, first))}{here}"
    if others:
        text += " with " + ", ".join(
            f"{key} {_word(value_of(config, key))} ({origins.describe(key)})" for key in others
        )
    return Problem(place, first, f"{text}; allowed: {refusal.allowed}; {refusal.reason}")


def _word(value: object) -> str:
    """A value as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return "a list of 1 item" if len(value) == 1 else f"a list of {len(value)} items"
    return str(value).lower() if isinstance(value, bool) else str(value)

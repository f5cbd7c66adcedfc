# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-field rules: the list of them all, and how a refusal is told with values and places."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from k2_megatron.config.config import Config, sections, value_of
from k2_megatron.config.no_effect import keys_without_effect
from k2_megatron.config.option import keys_of
from k2_megatron.config.presets import MODEL_PRESETS
from k2_megatron.config.problems import Place, Problem
from k2_megatron.config.refusal import Refusal
from k2_megatron.config.rules_cluster import CLUSTER_RULES
from k2_megatron.config.rules_model import MODEL_RULES
from k2_megatron.config.rules_optimizer import OPTIMIZER_RULES
from k2_megatron.config.rules_parallel import PARALLEL_RULES
from k2_megatron.config.rules_schedule import SCHEDULE_RULES

RULES: tuple[Callable[[Config], Iterable[Refusal]], ...] = (
    *MODEL_RULES,
    *PARALLEL_RULES,
    *OPTIMIZER_RULES,
    *SCHEDULE_RULES,
    *CLUSTER_RULES,
)

# Automatic values are unknown while a value they follow from is unknown.
_FOLLOWS_FROM = {
    "parallel.sequence_parallel": ("parallel.tensor_model_parallel_size",),
    "parallel.expert_tensor_parallel_size": (
        "parallel.tensor_model_parallel_size",
        "parallel.expert_model_parallel_size",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Origins:
    """Where the values of a configuration come from.

    Attributes:
        fallback: gives the place of a problem none of whose keys was given, from its first key.
        places: place of every key that was given and could be read.
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
        known = preset if isinstance(preset, str) else None
        unknown = {*broken, *follow}
        return Origins(fallback=fallback, places=places, unknown=unknown, preset=known)

    def knows(self, key: str) -> bool:
        """Whether the value of a key is the one that the run would have."""
        if key in self.places:
            return True
        section, name = key.split(".")
        if key in self.unknown or keys_of(sections()[section])[name].required:
            return False
        return self.preset is not None or section != "model"

    def describe(self, key: str) -> str:
        """Where the value of a key comes from, in words."""
        if key in self.places:
            return self.places[key].text
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
    refusals = [refusal for rule in RULES for refusal in rule(config)]
    refusals += refuse_settings_without_effect(config, origins.places)
    return [
        _tell(refusal, config, origins)
        for refusal in refusals
        if all(origins.knows(key) for key in refusal.keys)
    ]


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
    place = given[0] if given else origins.fallback(first)
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

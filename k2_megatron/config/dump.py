# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""From a `Config` back to YAML that loads to an equal one: a run's resolved_config.yaml."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import yaml

from k2_megatron.config.config import Config, sections, value_of
from k2_megatron.config.no_effect import keys_without_effect
from k2_megatron.config.option import Changes, keys_of
from k2_megatron.config.presets import MODEL_PRESETS


def dump_config(config: Config) -> str:
    """Write every key that has an effect, defaults included, as YAML.

    Loading the text gives an equal configuration, if `config` came from `load_config`.
    """
    ineffective = keys_without_effect(config)
    document: dict[str, dict[str, object]] = {}
    for section, kind in sections().items():
        values: dict[str, object] = {}
        for name, key in keys_of(kind).items():
            dotted = f"{section}.{name}"
            value = value_of(config, dotted)
            preset = MODEL_PRESETS[config.model.preset] if section == "model" else {}
            # Loading refuses a key without effect, so it is left out, unless that loses a value.
            replaced = key.required or value == preset.get(name, key.default)
            if dotted in ineffective and replaced:
                continue
            values[name] = _plain(value)
        document[section] = values
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _plain(value: object) -> object:
    """A value as YAML has it; of a list's items what is not null and changes something."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Changes):
        return {name: _plain(item) for name, item in value.given}
    if is_dataclass(value):
        items = {declared.name: getattr(value, declared.name) for declared in fields(value)}
        return {name: _plain(item) for name, item in items.items() if item not in (None, Changes())}
    return value

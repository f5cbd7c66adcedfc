# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""From a `Config` back to YAML that loads to an equal one: a run's resolved_config.yaml."""

from __future__ import annotations

from dataclasses import asdict

import yaml

from k2_megatron.config.config import Config, sections, value_of
from k2_megatron.config.no_effect import keys_without_effect
from k2_megatron.config.option import keys_of
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
            if dotted in ineffective and value == preset.get(name, key.default):
                continue
            if isinstance(value, tuple):
                value = list(value) if key.item is None else [asdict(item) for item in value]
            values[name] = value
        document[section] = values
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""`config.json` of a DeepSeek-V3 or Kimi K2 release, read as keys of our `model` section.

Every field is known (`config_fields.py`) or refused by its name, and so is a value that our model
cannot have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from k2_megatron.checkpoint.huggingface.config_fields import (
    ARCHITECTURE,
    FIXED,
    FLOATS,
    KNOWN,
    MODEL_TYPES,
    QUANTIZATION_FIXED,
    QUANTIZATION_KNOWN,
    ROPE_NAMES,
    TO_MODEL,
    YARN_FIXED,
    YARN_TO_MODEL,
    groups_problem,
    mscale_problem,
)
from k2_megatron.config.problems import nearest
from k2_megatron.errors import CheckpointError

CONFIG_NAME = "config.json"


@dataclass(frozen=True, kw_only=True)
class HfConfig:
    """What a config.json says.

    Attributes:
        model: the function that the weights compute, as keys of our `model` section; the keys
            that only training uses are not among them.
        fp8_block: rows and columns of a block of the weights stored in FP8; None: there are none.
    """

    model: Mapping[str, object]
    fp8_block: tuple[int, int] | None


def read_config_json(folder: Path) -> tuple[HfConfig, dict[str, Any]]:
    """Read the configuration of a release; also the fields as they stand in the file.

    Raises:
        CheckpointError: it is missing or describes something our model cannot be; every field
            concerned is named.
    """
    path = folder / CONFIG_NAME
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: holds {type(raw).__name__}, an object is needed")
    reading = _Reading(raw)
    found = reading.run()
    if reading.problems:
        lines = "\n  ".join(reading.problems)
        raise CheckpointError(f"{path}: {len(reading.problems)} problem(s):\n  {lines}")
    return found, raw


@dataclass
class _Reading:
    """One config.json being read: what it means, and what is wrong with it."""

    raw: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    model: dict[str, object] = field(default_factory=dict)

    def run(self) -> HfConfig:
        """Read every field; the result counts only where there is no problem."""
        raw = self.raw
        for name in sorted(raw.keys() - KNOWN):
            like = nearest(name, KNOWN)
            hint = f"; did you mean {like}?" if like else ""
            self.problems.append(f"{name}: unknown field, {raw[name]!r} given{hint}")
        architectures = raw.get("architectures") or [ARCHITECTURE]
        self._one_of("architectures", architectures, ([ARCHITECTURE],))
        self._one_of("model_type", raw.get("model_type"), MODEL_TYPES)
        self._fixed("", raw, FIXED)
        for name, key in TO_MODEL.items():
            nullable = name in ("q_lora_rank", "n_group", "topk_group")
            value = self._number("", raw, name, whole=name not in FLOATS, nullable=nullable)
            if value is None and name != "q_lora_rank":
                value = 1  # no groups
            self.model[key] = value
        if not self.problems:
            self._dependent()
            self._rope()
        return HfConfig(model=self.model, fp8_block=self._quantization())

    def _dependent(self) -> None:
        """Fields that must fit the others."""
        raw, model = self.raw, self.model
        shared = self._number("", raw, "n_shared_experts", whole=True, nullable=True) or 0
        model["moe_shared_expert_intermediate_size"] = shared * raw["moe_intermediate_size"]
        names = ("num_nextn_predict_layers", "num_mtp_layers")
        mtp = next((name for name in names if name in raw), None)
        layers = mtp and self._number("", raw, mtp, whole=True, nullable=True)
        model["mtp_num_layers"] = layers or 0
        topk, nope, rope = (
            raw["num_experts_per_tok"],
            raw["qk_nope_head_dim"],
            raw["qk_rope_head_dim"],
        )
        # megatron-core leaves the one chosen expert's weight as it is (moe_utils.py:724).
        self._fixed("", raw, {"norm_topk_prob": topk > 1}, default=True)
        self._fixed("", raw, {"num_key_value_heads": raw["num_attention_heads"]})
        self._fixed("", raw, {"head_dim": rope, "qk_head_dim": nope + rope})
        groups = model["moe_router_num_groups"]
        if wrong := groups_problem(groups, model["moe_router_group_topk"], topk):
            self.problems.append(f"topk_group: {wrong}")

    def _rope(self) -> None:
        raw = self.raw
        table = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        where = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
        if not isinstance(table, dict):
            self.problems.append(f"{where}: {table!r} given, an object or null is allowed")
            return
        theta = self._number("", {"rope_theta": raw.get("rope_theta")} | table, "rope_theta")
        self.model["rotary_base"] = theta
        kind = table.get("rope_type", table.get("type", "default"))
        if kind == "default":
            self.model["rope_type"] = "rope"
            allowed = ROPE_NAMES | {"partial_rotary_factor"}
            self._unknown(where, table, allowed)
            self._fixed(where, table, {"partial_rotary_factor": 1.0})
            return
        self._one_of(f"{where}.rope_type", kind, ("default", "yarn"))
        if kind != "yarn":
            return
        self.model["rope_type"] = "yarn"
        self._unknown(where, table, ROPE_NAMES | YARN_TO_MODEL.keys() | YARN_FIXED.keys())
        self._fixed(where, table, YARN_FIXED)
        for name, (key, default) in YARN_TO_MODEL.items():
            given = table if default is None else {name: default} | table
            whole = name == "original_max_position_embeddings"
            self.model[key] = self._number(where, given, name, whole=whole)
        if not self.problems:
            wrong = mscale_problem(self.model["mscale"], self.model["mscale_all_dim"])
            if wrong:
                self.problems.append(f"{where}.mscale: {wrong}")

    def _quantization(self) -> tuple[int, int] | None:
        table = self.raw.get("quantization_config")
        if table is None:
            return None
        where = "quantization_config"
        if not isinstance(table, dict):
            self.problems.append(f"{where}: {table!r} given, an object or null is allowed")
            return None
        self._unknown(where, table, QUANTIZATION_KNOWN)
        for name, value in QUANTIZATION_FIXED.items():
            self._one_of(f"{where}.{name}", table.get(name), (value,))
        self._one_of(f"{where}.weight_block_size", table.get("weight_block_size"), ([128, 128],))
        return (128, 128)

    def _number(
        self,
        where: str,
        table: Mapping[str, Any],
        name: str,
        *,
        whole: bool = False,
        nullable: bool = False,
    ) -> int | float | None:
        value = table.get(name)
        dotted = f"{where}.{name}" if where else name
        if name not in table or (value is None and not nullable):
            self.problems.append(f"{dotted}: missing")
        elif value is not None and (
            isinstance(value, bool) or not isinstance(value, int if whole else int | float)
        ):
            kind = "a whole number" if whole else "a number"
            self.problems.append(f"{dotted}: {value!r} given, {kind} is allowed")
        elif value is not None:
            return value if whole else float(value)
        return None

    def _fixed(
        self,
        where: str,
        table: Mapping[str, Any],
        values: Mapping[str, object],
        default: object = None,
    ) -> None:
        """Fields with one value that fits; absent fields have `default`, or the one that fits."""
        for name, value in values.items():
            given = table.get(name, value if default is None else default)
            self._one_of(f"{where}.{name}" if where else name, given, (value,))

    def _one_of(self, name: str, given: object, allowed: tuple[object, ...]) -> None:
        if not any(given == value and type(given) is type(value) for value in allowed) and not any(
            _is_number(given) and _is_number(value) and given == value for value in allowed
        ):
            shown = " or ".join(json.dumps(value) for value in allowed)
            self.problems.append(f"{name}: {json.dumps(given)} given, our model has {shown}")

    def _unknown(self, where: str, table: Mapping[str, Any], known: Set[str]) -> None:
        self.problems += [
            f"{where}.{name}: unknown field, {table[name]!r} given"
            for name in sorted(table.keys() - known)
        ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

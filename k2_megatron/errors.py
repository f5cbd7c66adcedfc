# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The errors whose text the command line prints without a traceback.

A UserError ends the command with 2, a TrainingStoppedError with 1.
"""


class TrainingStoppedError(Exception):
    """Training cannot go on as it goes; the text says what was seen and what can be done.

    Attributes:
        recorded: events.jsonl has it already, under a name of its own.
    """

    def __init__(self, text: str, *, recorded: bool = False) -> None:
        super().__init__(text)
        self.recorded = recorded


class UserError(Exception):
    """Base of what a user can cause and mend; its text says what was given and what is allowed."""


class AgreedError(UserError):
    """A mistake that every rank raises at the same place, whoever of them found it."""


class ConfigError(UserError):
    """The configuration is wrong; the text lists every problem with file, line and key."""


class DataError(UserError):
    """A data file is missing, truncated, or does not fit the model."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or does not belong to this run."""


class DiskError(CheckpointError):
    """The disk refused a save: full, over quota, or failing. A later save may go well."""


class AgreedDataError(AgreedError, DataError):
    """A DataError of every rank."""


class AgreedCheckpointError(AgreedError, CheckpointError):
    """A CheckpointError of every rank."""


class AgreedDiskError(AgreedError, DiskError):
    """A DiskError of every rank."""


class TopologyError(UserError):
    """The number of processes does not fit the parallel layout."""


class MissingPackageError(UserError):
    """An optional package is needed and absent; the text names the extra that installs it."""

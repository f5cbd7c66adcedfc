# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The errors a user can cause. The command line prints their text, no traceback, exit code 2."""


class UserError(Exception):
    """Base of what a user can cause and mend; its text says what was given and what is allowed."""


class ConfigError(UserError):
    """The configuration is wrong; the text lists every problem with file, line and key."""


class DataError(UserError):
    """A data file is missing, truncated, or does not fit the model."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or does not belong to this run."""


class TopologyError(UserError):
    """The number of processes does not fit the parallel layout."""


class MissingPackageError(UserError):
    """An optional package is needed and absent; the text names the extra that installs it."""

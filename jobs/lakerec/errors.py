"""Every error of the system: one root, one leaf for each thing a person can do about it, an exit code for each leaf.

Exit codes 10 to 19 are faults of input: the same input fails again, so nothing retries them. Exit codes 20 to 29 are
faults of circumstance: a retry may succeed. 30 and above belong to commands that a person
gives. `dags/common` reads the same table.
"""

from __future__ import annotations


class LakerecError(Exception):
    """The root: carries an exit code and whether a retry can help."""

    exit_code: int = 1
    retry: bool = False

    @property
    def told(self) -> str:
        """The message as a person reads it: the class by its name, and where the docs say what to do."""
        name = type(self).__name__
        return f"{name}: {self}\n(what to do: docs/operations.md#{name.lower()})"


class ConfigError(LakerecError):
    """The YAML is wrong: the message names file, key, line and what was expected."""

    exit_code = 10


class SourceError(LakerecError):
    """A source file is missing, damaged, wrongly encoded or lacks a required column."""

    exit_code = 11


class DataQualityError(LakerecError):
    """An ingest day failed its gate; the table stays at its version."""

    exit_code = 12


class ModelError(LakerecError):
    """A model is missing, damaged or cannot be built from what the configuration names."""

    exit_code = 13


class NotEnoughDataError(LakerecError):
    """There is too little data for the step (no examples, no events before the cut)."""

    exit_code = 14


class ServingError(LakerecError):
    """Serving refuses what it was given: another number of rows than gold has, no list for everyone."""

    exit_code = 15


class UsageError(LakerecError):
    """A command line that makes no sense: an end before its start, an unknown step."""

    exit_code = 16


class ContractError(LakerecError):
    """A DataFrame or a file of the project breaks a table's DDL: a fault of the code, not of the data."""

    exit_code = 17


class AlreadyServedError(LakerecError):
    """The site has lists of a later day than the one to be published: nothing is to be done, nothing changed."""

    exit_code = 18


class StaleListsError(LakerecError):
    """The lists are old, empty or not those that are served."""

    exit_code = 19


class LakeBusyError(LakerecError):
    """Another run holds the lake's lease, or trains the same version of a model; the message names it."""

    exit_code = 20
    retry = True


class StaleRunError(LakerecError):
    """A newer run committed what this one computed from older inputs; nothing was overwritten."""

    exit_code = 21
    retry = True


class ConnectionFailedError(LakerecError):
    """A server did not answer: PostgreSQL, or the storage of a source."""

    exit_code = 22
    retry = True


class DiskFullError(LakerecError):
    """A disk has no space left; the message names the folders and what each has free."""

    exit_code = 23
    retry = True


class ProcessLostError(LakerecError):
    """A process that a job needed died or had no memory: of Spark's (JVM, executor, Python worker), of a training."""

    exit_code = 24
    retry = True


class ConflictError(LakerecError):
    """A program that does not take the lease wrote a table while a run was writing it."""

    exit_code = 25
    retry = True


class BackupError(LakerecError):
    """A backup is missing or damaged, or the lake to be restored is not empty; nothing was changed."""

    exit_code = 30


def leaves() -> list[type[LakerecError]]:
    """Every leaf class, in the order of its exit code."""
    return sorted(LakerecError.__subclasses__(), key=lambda leaf: leaf.exit_code)

"""The errors of this package that a user can mend.

``compactor`` imports ``runtime`` and never the other way round, so these stand on their own and carry the same
three lines (what, where, todo) as ``compactor.errors``, and the command line gives them the exit codes of those.
"""

from __future__ import annotations


class RuntimeSetupError(Exception):
    """Something that a user can mend keeps a model from running.

    Args:
        what: What went wrong, one line.
        where: The file, environment or package it concerns, one line.
        todo: What to do next, one line.
    """

    def __init__(self, what: str, *, where: str | None = None, todo: str | None = None) -> None:
        self.what, self.where, self.todo = what, where, todo
        super().__init__("\n".join(line for line in (what, where, todo) if line))


class ProviderUnavailableError(RuntimeSetupError):
    """The execution provider that was asked for cannot run in this environment."""


class ArtefactError(RuntimeSetupError):
    """The folder is no artefact of ``compactor export``, is damaged, or cannot answer texts."""

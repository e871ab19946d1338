"""The prompts of a sentence-transformers folder, and which of them stands before a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ..errors import ArtefactError
from ..folder import read_object

CONFIG = "config_sentence_transformers.json"

_ROLES: Mapping[str, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


@dataclasses.dataclass(frozen=True)
class Prompts:
    """By name, and the name of the one that is used where nobody chooses; None where there is none.

    Raises:
        ArtefactError: The default is none of them.
    """

    by_name: Mapping[str, str]
    default: str | None

    @classmethod
    def read(cls, folder: Path) -> Prompts:
        """Those of a folder; of other folders than sentence-transformers' there are none."""
        config = read_object(folder / CONFIG) if (folder / "modules.json").is_file() else {}
        stated = config.get("prompts")
        by_name = {str(name): str(text or "") for name, text in stated.items()} if isinstance(stated, Mapping) else {}
        by_name = {"query": "", "document": ""} | by_name
        default = config.get("default_prompt_name")
        if default is not None and default not in by_name:
            raise ArtefactError(
                f"'default_prompt_name' is {default!r}, and there is no such prompt",
                where=str(folder / CONFIG),
                todo=f"choose one of {', '.join(by_name)}",
            )
        return cls(by_name, default)

    def choose(self, role: str | None, name: str | None, text: str | None) -> str:
        """The prompt: ``text`` itself, else by ``name``, else by what the texts are for, else the default.

        The last but one as ``encode_query`` and ``encode_document`` of sentence-transformers choose.

        Raises:
            ValueError: There is no such prompt or role.
        """
        if text is not None:
            return text
        if name is None and role is not None:
            if role not in _ROLES:
                raise ValueError(f"there is no role '{role}'; choose from {', '.join(_ROLES)}")
            name = next((each for each in _ROLES[role] if each in self.by_name), None)
        name = self.default if name is None else name
        if name is None:
            return ""
        if name not in self.by_name:
            raise ValueError(f"there is no prompt '{name}'; choose from {', '.join(self.by_name)}")
        return self.by_name[name]

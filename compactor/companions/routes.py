"""One route of a sentence-transformers Router (or Asym), as a folder of its own.

A Router holds chains of modules, one each for queries and documents. A graph is one of them; so a route is taken out,
and the rest of the export sees a plain folder.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from compactor.companions.files import MEND, inside, read_object, write_json
from compactor.errors import ModelDirectoryError, UsageError
from compactor.manifest import is_inside_name
from compactor.runtime.errors import ArtefactError
from compactor.runtime.folder import MODULES
from compactor.runtime.sentences.chain import TRANSFORMERS, read_modules
from compactor.runtime.sentences.settings import CONFIG

_KINDS = ("Router", "Asym")
_CONFIGS = ("router_config.json", "config.json")  # the second before version 5


def take_route(folder: Path, route: str | None, scratch: Path) -> Path:
    """``folder`` itself where it has no routes, else a folder inside ``scratch`` that holds one of them.

    Args:
        folder: The model directory.
        route: The name of the route; None where none is asked for.
        scratch: Where the new folder goes.

    Raises:
        UsageError: There is a choice of routes and none is asked for, or there is no such route.
        ModelDirectoryError: The folder is damaged.
    """
    modules = _modules(folder)
    if not modules or str(modules[0].get("type")).rpartition(".")[2] not in _KINDS:
        if route is not None:
            raise UsageError("this folder has no routes", where=str(folder), todo="leave --route")
        return folder
    home = str(modules[0].get("path", ""))
    name = next((name for name in _CONFIGS if (folder / home / name).is_file()), _CONFIGS[0])
    content = read_object(folder, f"{home}/{name}" if home else name) if (folder / home / name).is_file() else {}
    types: Any = content.get("types")
    structure: Any = content.get("structure")
    where = str(folder / home / name)
    if not _is_complete(types, structure):
        raise ModelDirectoryError("the routes are damaged: no 'types' and 'structure'", where=where, todo=MEND)
    if route not in structure:
        asked = "it is to be said which" if route is None else f"and there is no '{route}'"
        raise UsageError(
            f"this folder has the routes {', '.join(structure)}, {asked}",
            where=where,
            todo=f"pass --route with one of them: {', '.join(structure)}; one artefact holds one",
        )
    parameters = content.get("parameters")
    if isinstance(parameters, dict) and parameters.get("route_mappings"):
        raise ModelDirectoryError(
            "'route_mappings' is stated, which says by task and modality what goes where: not built",
            where=where,
            todo="remove it: --route names the chain that is exported",
        )
    first = str(types[structure[route][0]]).rpartition(".")[2]
    if first not in TRANSFORMERS:
        raise ModelDirectoryError(
            f"the route '{route}' begins with a '{first}', which is not built: it has no transformer",
            where=where,
            todo=f"choose another route: {', '.join(structure)}",
        )
    taken = scratch / folder.resolve().name
    taken.mkdir()
    chain = [{"path": f"{home}/{each}" if home else each, "type": types[each]} for each in structure[route]]
    for module in (*chain, *modules[1:]):
        _link(folder, taken, str(module["path"]))
    if (folder / CONFIG).is_file():
        shutil.copyfile(inside(folder, CONFIG), taken / CONFIG)
    write_json(taken / MODULES, [*chain, *modules[1:]])
    return taken


def _modules(folder: Path) -> list[dict[str, Any]]:
    if not (folder / MODULES).is_file():
        return []
    try:
        return read_modules(folder)
    except ArtefactError as error:
        raise ModelDirectoryError(error.what, where=error.where, todo=error.todo) from error


def _is_complete(types: Any, structure: Any) -> bool:
    return (
        isinstance(types, dict)
        and isinstance(structure, dict)
        and bool(structure)
        and all(isinstance(chain, list) and chain for chain in structure.values())
        and all(isinstance(each, str) and each in types for chain in structure.values() for each in chain)
        and all(is_inside_name(each) for each in types)
    )


def _link(folder: Path, taken: Path, name: str) -> None:
    """The files of a module, by links where the disk has them: weights are large."""
    if not (folder / name).is_dir() or (taken / name).exists():
        return
    for path in sorted(path for path in (folder / name).rglob("*") if path.is_file()):
        file = path.relative_to(folder)
        (taken / file).parent.mkdir(parents=True, exist_ok=True)
        source = inside(folder, file.as_posix())
        try:
            os.link(source, taken / file)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, taken / file)

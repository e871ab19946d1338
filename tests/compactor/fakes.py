"""Stand-ins that let the command line be tested without an export."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compactor.cli import main
from compactor.exporting.artefact import ArtefactWriter
from compactor.manifest import write_manifest
from tests.compactor.manifests import example_manifest

Export = Callable[..., types.SimpleNamespace]


def exported(model_dir: Path, out_dir: Path, **options: Any) -> types.SimpleNamespace:
    """Stands in for ``compactor.exporting.export``: the example manifest, after some noise on stdout."""
    print("a library talks")
    options["progress"]("tracing")
    with ArtefactWriter(out_dir, overwrite=options["overwrite"]) as writer:
        write_manifest(writer.directory, example_manifest())
        return types.SimpleNamespace(path=writer.publish(), manifest=example_manifest())


def replace_module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    module = types.ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])

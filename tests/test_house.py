"""The rules of the house that no linter knows: what may import what, and what must be documented and tested."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from compactor.errors import ExitCode
from compactor.passes.pipeline import PASSES

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = ("compactor", "passes", "runtime", "benchmarks", "examples", "tests")
PYTHON_FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# The folders of passes, in the order in which a model goes through them.
STAGES = ("canonical", "structure", "equalisation", "caching", "lowering", "precision", "finishing")

# What a file in the folder may import beside the standard library; everything else waits for someone to need it.
ALLOWED = {
    "passes": {"onnx_ir", "numpy", "compactor.passes"},
    "passes/graph": {
        *("onnx_ir", "numpy", "compactor.passes.base", "compactor.passes.graph"),
        "onnx",  # its reference implementation, for what reads no input
    },
    **{f"passes/{stage}": {"onnx_ir", "numpy", "compactor.passes.base", "compactor.passes.graph"} for stage in STAGES},
    "runtime": {
        *("onnxruntime", "numpy", "onnx", "onnx_ir", "tokenizers", "torch", "transformers", "compactor.runtime"),
        "PIL",  # of images alone
    },
    "runtime/reading": {"numpy", "compactor.runtime"},
    "runtime/sentences": {"numpy", "safetensors", "compactor.runtime"},
    "runtime/serving": {"fastapi", "ray", "starlette", "compactor.runtime"},
}

# Which other wings of compactor/ a wing may import: the road from a checkpoint to an artefact runs one way, and who
# measures, trains or answers joins it where it must. The modules at the root know no wing; all but those of the API.
WINGS: dict[str, set[str]] = {
    "checkpoint": set(),
    "companions": {"checkpoint"},
    "importing": {"checkpoint", "companions"},
    "exporting": {"checkpoint", "companions", "evaluation", "importing"},
    "evaluation": {"companions"},
    "reporting": set(),
    "predicting": {"evaluation"},
    "benching": {"checkpoint", "companions", "evaluation", "importing", "reporting"},
    "trainer": {"benching", "checkpoint", "evaluation", "reporting"},
    "speedup": {"benching", "checkpoint", "companions", "evaluation", "exporting", "importing", "reporting", "trainer"},
    "commands": {"benching", "exporting", "predicting", "reporting", "speedup", "trainer"},
}
API = {"__init__.py", "__main__.py", "cli.py"}


def imported_modules(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Every module that ``source`` imports, also inside functions, relative imports spelled out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> list[str]:
    folder = path.parent.relative_to(ROOT).parts
    package = ("compactor", *folder) if folder[0] in ("passes", "runtime") else folder
    return list(imported_modules(path.read_text(encoding="utf-8"), package))


def is_within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_passes_and_runtime_are_imported_by_their_full_names(path):
    assert not [module for module in imports_of(path) if is_within(module, {"passes", "runtime"})]


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_flow_one_way(folder):
    for path in (ROOT / folder).glob("*.py"):
        foreign = {
            module
            for module in imports_of(path)
            if module.partition(".")[0] not in sys.stdlib_module_names and not is_within(module, ALLOWED[folder])
        }
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


def test_every_wing_has_its_place():
    assert {path.parent.name for path in (ROOT / "compactor").glob("*/__init__.py")} == set(WINGS)
    stages = {path.parent.name for path in (ROOT / "passes").glob("*/__init__.py")} - {"graph"}
    assert stages == set(STAGES)


@pytest.mark.parametrize("wing", [*WINGS, ""])
def test_wings_import_one_way(wing):
    files = (ROOT / "compactor" / wing).rglob("*.py") if wing else (ROOT / "compactor").glob("*.py")
    allowed = WINGS[wing] | {wing} if wing else set()
    for path in files:
        if not wing and path.name in API:
            continue
        places = [module.split(".")[1] for module in imports_of(path) if module.startswith("compactor.")]
        foreign = {place for place in places if place in WINGS} - allowed
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


@pytest.mark.parametrize("folder", ["compactor", "passes", "runtime"])
def test_private_modules_stay_in_their_folder(folder):
    for path in (ROOT / folder).rglob("*.py"):
        top = ("compactor",) if folder == "compactor" else ("compactor", folder)
        home = ".".join((*top, *path.parent.relative_to(ROOT / folder).parts))
        for module in imports_of(path):
            private = module.startswith("compactor.") and any(
                part.startswith("_") and not part.startswith("__") for part in module.split(".")
            )
            assert not private or module.rpartition("._")[0] == home, f"{path.relative_to(ROOT)} imports {module}"


def test_imported_modules_sees_every_form():
    source = "import os.path, torch\nfrom runtime import a\ndef f():\n    from . import b\n    from .c import d\n"
    assert set(imported_modules(source, ("compactor", "passes"))) == {
        *("os.path", "torch", "runtime", "runtime.a"),
        *("compactor.passes", "compactor.passes.b", "compactor.passes.c", "compactor.passes.c.d"),
    }


def test_pass_names_are_unique():
    names = [pass_class.name for pass_class in PASSES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("pass_class", PASSES, ids=lambda pass_class: pass_class.name)
def test_every_pass_is_named_documented_and_tested(pass_class):
    stem = pass_class.__module__.rpartition(".")[2]
    assert pass_class.name == stem.replace("_", "-"), "the file and the pass share a name"
    assert pass_class.__name__.lower() == f"{stem.replace('_', '')}pass", "the class and the file share a name"
    assert pass_class.__doc__ and pass_class.__doc__.strip()
    stage = pass_class.__module__.split(".")[-2]
    assert (ROOT / "tests" / "passes" / stage / f"test_{stem}.py").is_file()
    rows = (ROOT / "docs" / "passes.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("|") and f"`{pass_class.name}`" in line for line in rows), "a row in docs/passes.md"


def stage_files(stage: str) -> list[Path]:
    return sorted((ROOT / "passes" / stage).glob("[!_]*.py"))


def test_every_pass_file_is_registered():
    registered = {pass_class.__module__ for pass_class in PASSES}
    files = {f"compactor.passes.{stage}.{path.stem}" for stage in STAGES for path in stage_files(stage)}
    assert files == registered


@pytest.mark.parametrize("code", ExitCode)
def test_every_exit_code_is_documented(code):
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert re.search(rf"^\|\s*`?{code.value}`?\s*\|", text, re.MULTILINE), f"no row for exit code {code.value}"


def test_the_wheel_holds_every_package():
    mapping = PROJECT["tool"]["setuptools"]["package-dir"]
    folders = {folder: package for package, folder in mapping.items()}
    packages = set()
    for top in folders:
        for init in (ROOT / top).rglob("__init__.py"):
            below = init.parent.relative_to(ROOT / top).parts
            packages.add(".".join((folders[top], *below)))
    assert packages == set(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("constraints.txt", ["test", "dev", "bench", "peers", "train"]),
        ("constraints-transformers4.txt", ["test", "optimum"]),
    ],
)
def test_constraints_pin_every_requirement_within_its_range(file, extras):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    wanted = [*PROJECT["project"]["dependencies"]]
    for extra in extras:
        wanted += PROJECT["project"]["optional-dependencies"][extra]
    for requirement in map(Requirement, wanted):
        if requirement.name != "compactor":
            assert requirement.specifier.contains(pinned[requirement.name]), f"{requirement} in {file}"


def test_torch_is_pinned_without_a_build_suffix():
    for file in ("constraints.txt", "constraints-transformers4.txt"):
        assert "torch==2.13.0\n" in (ROOT / file).read_text(encoding="utf-8")


def test_changelog_has_an_unreleased_head():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## Unreleased$", text, re.MULTILINE)


def test_the_index_of_the_docs_links_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


def test_the_map_of_the_code_names_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = ("compactor", "compactor/companions", "compactor/exporting", "compactor/importing", "passes")
    modules = [path for folder in (*folders, "passes/graph", "runtime") for path in (ROOT / folder).glob("[!_]*.py")]
    assert {path.name for path in modules if f"`{path.name}`" not in text} == set()

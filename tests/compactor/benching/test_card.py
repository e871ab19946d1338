from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

import pytest

from compactor.benching import card
from compactor.benching.card import describe_commit, machine_card, versions
from compactor.benching.report import report_schema
from compactor.runtime.machine import GpuInfo
from compactor.schema import schema_problems


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository that holds the package, committed."""
    for folder in ("compactor", "passes", "runtime", "docs"):
        (tmp_path / "checkout" / folder).mkdir(parents=True)
        (tmp_path / "checkout" / folder / "__init__.py").write_text("")
    git(tmp_path / "checkout", "init", "-q")
    git(tmp_path / "checkout", "add", ".")
    git(tmp_path / "checkout", "commit", "-qm", "all")
    return tmp_path / "checkout"


def test_the_card_is_the_machine_block_of_a_report(monkeypatch):
    monkeypatch.setattr(card, "describe_gpus", lambda: (GpuInfo("NVIDIA H200", 2**37, "570.86.15"),))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.25, 9.0, 9.0), raising=False)
    found = machine_card()
    schema = report_schema()
    machine = schema["$defs"]["machine"]
    assert schema_problems(found, machine | {"$defs": schema["$defs"]}, "machine") == []
    assert set(found) == set(machine["properties"])
    assert found["gpus"] == [{"name": "NVIDIA H200", "memory_bytes": 2**37, "driver": "570.86.15"}]
    assert found["load_before"] == 0.25
    assert json.loads(json.dumps(found)) == found


def test_unknown_gpus_and_load_are_null(monkeypatch):
    def no_load():
        raise OSError

    monkeypatch.setattr(card, "describe_gpus", lambda: None)
    monkeypatch.setattr(os, "getloadavg", no_load, raising=False)
    found = machine_card()
    assert (found["gpus"], found["load_before"]) == (None, None)


def test_the_card_says_nothing_of_where_it_was_made():
    text = json.dumps(machine_card())
    assert str(Path.home()) not in text
    assert str(Path(card.__file__).resolve().parents[2]) not in text


def test_versions_are_those_of_the_distributions(monkeypatch):
    installed = {"compactor": "9.1", "onnx-ir": "1.2", "onnxruntime-gpu": "1.31.1", "unrelated": "3"}

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert versions() == {
        "python": platform.python_version(),
        "compactor": "9.1",
        "onnx-ir": "1.2",
        "onnxruntime-gpu": "1.31.1",
    }


def test_the_commit_is_that_of_the_checkout(checkout):
    head = git(checkout, "rev-parse", "--short", "HEAD")
    assert describe_commit(checkout / "compactor") == {"commit": head, "dirty": False}


@pytest.mark.parametrize(
    ("path", "dirty"),
    [
        ("compactor/__init__.py", True),
        ("passes/__init__.py", True),
        ("runtime/new.py", True),
        ("docs/__init__.py", False),
        ("notes.txt", False),
    ],
)
def test_changed_sources_make_a_checkout_dirty_and_other_files_do_not(checkout, path, dirty):
    (checkout / path).write_text("changed")
    assert describe_commit(checkout / "compactor")["dirty"] is dirty


def test_an_installed_package_has_no_commit(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))  # which may lie in a repository itself
    unknown = {"commit": None, "dirty": None}
    alone = tmp_path / "alone" / "compactor"
    inside = checkout / ".venv" / "site-packages" / "compactor"  # of somebody's own repository
    other = tmp_path / "other" / "compactor"  # at the top of a repository that does not track it
    copied = checkout / "third_party" / "compactor"  # tracked, but the commits are not ours
    for folder in (alone, inside, other, copied):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
    git(other.parent, "init", "-q")
    git(checkout, "add", "third_party")
    for folder in (alone, inside, other, copied):
        assert describe_commit(folder) == unknown


def test_without_git_nothing_is_known(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert describe_commit(checkout / "compactor") == {"commit": None, "dirty": None}

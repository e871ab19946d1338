"""``import compactor`` is light, and finds its names where they live."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import compactor

ROOT = Path(__file__).resolve().parents[2]


def test_importing_loads_nothing_heavy() -> None:
    script = "import sys, compactor; sys.exit(sorted({'torch', 'numpy', 'onnx', 'click'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_are_found_and_listed() -> None:
    assert compactor.__version__
    assert issubclass(compactor.OutputError, compactor.CompactorError)
    assert callable(compactor.load_manifest)
    assert set(compactor.__all__) <= set(dir(compactor))


@pytest.mark.parametrize("name", compactor.__all__)
def test_every_name_has_a_home(name: str) -> None:
    assert getattr(compactor, name) is not None


def test_settings_of_a_run_are_made_without_torch() -> None:
    script = """
        import sys, compactor
        compactor.PruneConfig(method="struct", target_density=0.3)
        sys.exit(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)) or 0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'exprt'"):
        compactor.exprt  # noqa: B018


def test_a_clone_is_a_whole_package_too(tmp_path: Path) -> None:
    """``python`` in a clone finds its folder ``compactor`` before the installed package."""
    for folder in ("compactor", "passes", "runtime"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import compactor.runtime, compactor.passes.pipeline, compactor.runtime.serving.settings as settings\n"
        "print(compactor.__file__, compactor.runtime.__file__, compactor.passes.pipeline.__file__, settings.__file__)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [Path(path).relative_to(tmp_path).parts[0] for path in found.stdout.split()] == [
        *("compactor", "runtime", "passes", "runtime")
    ]

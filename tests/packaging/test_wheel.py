"""The wheel in an empty environment, without extras: it answers, measures, explains, and names what else it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import compactor.runtime

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["a moving and funny film", "dull", "the plot is thin , but the acting saves it"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """The interpreter of an environment that holds the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("bare")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("compactor-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    constraints = str(ROOT / "constraints.txt")
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-c", constraints, str(wheel)], check=True)
    return python


def ask(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), *arguments], cwd=cwd, capture_output=True, text=True, timeout=600)


def test_it_has_no_torch(bare, tmp_path):
    found = ask(
        bare,
        "-c",
        "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'transformers')])",
        cwd=tmp_path,
    )
    assert found.stdout.strip() == "[None, None]"


def test_it_answers_as_here(bare, token_artefact, tmp_path):
    script = (
        "import json, sys, compactor.runtime\n"
        "answers = compactor.runtime.load(sys.argv[1])(json.loads(sys.argv[2]))\n"
        "print(json.dumps([[each.label, float(each.score)] for each in answers]))\n"
    )
    found = ask(bare, "-c", script, str(token_artefact), json.dumps(TEXTS), cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    here = compactor.runtime.load(token_artefact)(TEXTS)
    for (label, score), right in zip(json.loads(found.stdout), here, strict=True):
        assert label == right.label and score == pytest.approx(right.score, abs=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("env",), id="env"),
        pytest.param(("explain", "ARTEFACT"), id="explain"),
        pytest.param(("export", "--layout", "triton", "ARTEFACT", "OUT"), id="triton"),
        pytest.param(
            *[
                (
                    "bench",
                    "ARTEFACT",
                    "--batch",
                    "1",
                    "--seq",
                    "8",
                    "--rounds",
                    "6",
                    "--duration",
                    "0.1",
                    "--allow-noisy",
                )
            ],
            id="bench",
        ),
    ],
)
def test_what_works_without_extras(bare, token_artefact, tmp_path, arguments):
    places = {"ARTEFACT": str(token_artefact), "OUT": str(tmp_path / "out")}
    found = ask(bare, "-m", "compactor", *(places.get(each, each) for each in arguments), cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("export", "MODEL", "OUT"), "export"),
        (("inspect", "MODEL"), "export"),
        (("verify", "ARTEFACT", "MODEL"), "export"),
        (("bench", "MODEL"), "export"),
        (("bench", "ARTEFACT", "--quick"), "bench"),
        (("bench", "ARTEFACT", "-o", "OUT"), "bench"),
        (("prune", "MODEL", "--data", "t.tsv", "--eval", "d.tsv", "-o", "OUT"), "train"),
        (("predict", "ARTEFACT", "t.tsv", "-o", "OUT"), "predict"),
        (("serve", "ARTEFACT"), "ray"),
    ],
)
def test_a_missing_extra_is_named_in_a_line(bare, token_artefact, example_checkpoint, tmp_path, arguments, extra):
    places = {"ARTEFACT": str(token_artefact), "MODEL": str(example_checkpoint), "OUT": str(tmp_path / "out")}
    found = ask(bare, "-m", "compactor", *(places.get(each, each) for each in arguments), cwd=tmp_path)
    assert found.returncode == 2, found.stderr
    assert f"pip install 'compactor[{extra}]'" in found.stderr
    assert not (tmp_path / "out").exists()


def test_the_python_api_names_it_too(bare, example_checkpoint, tmp_path):
    script = (
        "import sys, compactor\n"
        "try:\n    compactor.inspect\nexcept ImportError as error:\n    print(error)\n"
        "try:\n    compactor.export(sys.argv[1], 'out')\nexcept compactor.UsageError as error:\n    print(error)\n"
    )
    found = ask(bare, "-c", script, str(example_checkpoint), cwd=tmp_path)
    assert "compactor.inspect needs 'torch': pip install 'compactor[export]'" in found.stdout
    assert "'torch' is not installed, which an export needs" in found.stdout

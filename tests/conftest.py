from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path

# Before any library starts its thread pool: the test processes already fill the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

# The consumers' tests need optimum, which holds transformers below 4.58: `make test-transformers4` runs them.
collect_ignore = [] if importlib.util.find_spec("optimum") else ["consumers"]

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_runtest_setup() -> None:
    """Keep pytest's log handler off torch's trace log, which does costly work for whoever listens to it."""
    if "torch" in sys.modules:
        logging.getLogger("torch.__trace").propagate = True  # the handler goes to loggers that do not propagate


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def example_checkpoint() -> Path:
    """The raw nn_pruning folder that comes with the project."""
    return ROOT / "examples" / "sst2-small-hybrid"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder beside the checkout with larger checkpoints and data; its tests are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED.name}/ beside the checkout")
    return SHARED

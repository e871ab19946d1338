from __future__ import annotations

import dataclasses
import gc
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def pytest_collection_finish() -> None:
    """Keep the garbage collector off all that is imported by now: each export collects twice."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # tracing allocates by the million


@pytest.fixture(scope="session", autouse=True)
def _traced_once() -> Iterator[None]:
    """See ``tests/traces.py``."""
    if "torch" not in sys.modules:  # then no test of this run exports
        yield
        return
    from tests.traces import trace_once

    with pytest.MonkeyPatch.context() as patch:
        trace_once(patch)
        yield


def pytest_runtest_setup() -> None:
    """Keep pytest's log handler off torch's trace log, which does costly work for whoever listens to it."""
    if "torch" in sys.modules:
        trace = logging.getLogger("torch.__trace")
        trace.propagate = True  # the handler goes to loggers that do not propagate
        trace.handlers.clear()  # torch's own leaves at the first record only, and that one would be printed


@dataclasses.dataclass(frozen=True)
class PrunedBart:
    """A small pruned BART, and what an export makes of it.

    Attributes:
        module: The masked model, in PyTorch.
        folder: Where it is saved.
        path: The artefact, in fp32 and int8.
        manifest: Its manifest.
    """

    module: Any
    folder: Path
    path: Path
    manifest: dict[str, Any]


@pytest.fixture(scope="session")
def pruned_bart(tmp_path_factory: pytest.TempPathFactory) -> PrunedBart:
    """Exported once for all tests: tracing takes seconds. Change neither folder."""
    from compactor.exporting.export import export
    from tests.compactor import families
    from tests.compactor.exporting import traces

    folder = tmp_path_factory.mktemp("bart")
    module = families.build_encoder_decoder("bart", seed=2)  # one that has much to say
    module.save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        traces.treat_small_as_large(patch)
        result = export(folder / "model", folder / "out", precision=["fp32", "int8"])
    return PrunedBart(module, folder / "model", result.path, result.manifest)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def example_checkpoint() -> Path:
    """The pruned checkpoint that comes with the project."""
    return ROOT / "examples" / "sst2-small"


@pytest.fixture(scope="session")
def token_artefact(tmp_path_factory: pytest.TempPathFactory, example_checkpoint: Path) -> Path:
    """The example's, with int8 scales by token; exported once for all tests. Do not change it."""
    from compactor.exporting.export import export

    return export(example_checkpoint, tmp_path_factory.mktemp("by-token") / "compact", int8="token").path


@pytest.fixture(scope="session")
def film_texts(root: Path) -> list[str]:
    """The first 64 sentences beside the example, of 4 to 35 words."""
    lines = (root / "examples" / "sst2.tsv").read_text("utf-8").splitlines()[1:65]
    return [line.split("\t")[0] for line in lines]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder beside the checkout with larger checkpoints and data; its tests are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED.name}/ beside the checkout")
    return SHARED

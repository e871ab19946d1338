"""A Triton repository by Triton's own proto, and served by another V2 server: its answers are ours.

Triton is no Python package. What it reads, ``model_config.proto``, is published in tritonclient; what it speaks, the V2
protocol, MLServer speaks too. Both live in an environment of their own: ``make test-v2``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compactor
from compactor.runtime.model import load
from compactor.runtime.remote_graph import LENGTHS, MAX_BATCH

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE.parents[1] / ".venv-v2" / "bin"
SECONDS_TO_START = 60

pytestmark = pytest.mark.skipif(not (ENVIRONMENT / "mlserver").is_file(), reason="needs .venv-v2: make test-v2")


@dataclasses.dataclass(frozen=True)
class Served:
    """A repository, its configuration as the proto reads it, and the address of the server."""

    repository: Path
    config: dict[str, Any]
    url: str

    @property
    def name(self) -> str:
        return str(self.config["name"])


@pytest.fixture(scope="module")
def artefact(example_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compactor.export(example_checkpoint, tmp_path_factory.mktemp("artefact") / "out").path


@pytest.fixture(scope="module", params=["fp32", "int8"])
def served(
    request: pytest.FixtureRequest, artefact: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served")
    repository = compactor.export(artefact, home / "models", layout="triton", precision=[request.param], threads=1).path
    (folder,) = (path for path in repository.iterdir() if path.is_dir())
    read = [ENVIRONMENT / "python", HERE / "read_config.py", folder]
    config = json.loads(subprocess.run(read, capture_output=True, text=True, check=True).stdout)
    port, unused = free_ports(2)
    model = {"uri": str(folder), "extra": {"config": config}}
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": unused}
    settings |= {"metrics_endpoint": None, "parallel_workers": 0, "debug": False}
    (home / "settings.json").write_text(json.dumps(settings))
    (home / "model-settings.json").write_text(
        json.dumps({"name": folder.name, "implementation": "triton_folder.TritonFolder", "parameters": model})
    )
    with (
        (home / "log").open("w+") as log,
        subprocess.Popen(
            [ENVIRONMENT / "mlserver", "start", home], cwd=home, stdout=log, stderr=log,
            env={**os.environ, "PYTHONPATH": str(HERE)},
        ) as server,
    ):  # fmt: skip
        try:
            wait(server, f"http://127.0.0.1:{port}", folder.name, home / "log")
            yield Served(repository, config, f"http://127.0.0.1:{port}")
        finally:
            server.terminate()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait(server: subprocess.Popen[bytes], url: str, name: str, log: Path) -> None:
    for _ in range(SECONDS_TO_START * 5):
        try:
            urllib.request.urlopen(f"{url}/v2/models/{name}/ready", timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])


@pytest.fixture(scope="module")
def texts(root: Path) -> list[str]:
    """50 sentences, the shortest and the longest among them, in mixed order."""
    lines = (root / "examples" / "sst2.tsv").read_text(encoding="utf-8").splitlines()[1:]
    sentences = sorted((line.split("\t")[0] for line in lines), key=len)
    spread = [sentences[round(place)] for place in np.linspace(0, len(sentences) - 1, 50)]
    return [spread[place] for place in np.random.default_rng(0).permutation(50)]


def test_the_proto_reads_what_was_meant(served: Served) -> None:
    config = served.config
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("sst2-small", "onnxruntime", MAX_BATCH)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    assert config["input"] == [{"name": name, "data_type": "TYPE_INT64", "dims": ["-1"]} for name in names]
    assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": ["2"]}]
    assert config["instance_group"] == [{"kind": "KIND_CPU", "count": 1}]
    assert config["dynamic_batching"] == {
        "max_queue_delay_microseconds": "1000",
        "default_queue_policy": {  # REJECT is the default, which protobuf leaves out
            "default_timeout_microseconds": "5000000",
            "allow_timeout_override": True,
            "max_queue_size": 1024,
        },
    }
    assert config["parameters"] == {
        "intra_op_thread_count": {"string_value": "1"},
        "inter_op_thread_count": {"string_value": "1"},
    }
    assert config["version_policy"] == {"latest": {"num_versions": 1}}


def test_the_answers_are_those_of_the_graph_run_here(served: Served, artefact: Path, texts: list[str]) -> None:
    """One text a request, as in a service: int8 scales by what is in a batch. Three lengths of padding at least."""
    precision = "fp32" if "compact" in kept(served.repository) else "int8"
    here = load(artefact, precision=precision, threads=1, max_batch=1)
    there = load(served.repository, url=served.url, max_batch=1)
    lengths = {next(each for each in LENGTHS if item.tokens <= each) for item in there.encode(texts)}
    assert len(lengths) >= 3
    for have, want in zip(there(texts), here(texts), strict=True):
        assert have.label == want.label
        np.testing.assert_allclose(have.scores, want.scores, atol=1e-4)


def test_batches_answer_too(served: Served, texts: list[str]) -> None:
    alone = load(served.repository, url=served.url, max_batch=1)(texts)
    together = load(served.repository, url=served.url)(texts)
    same = sum(one.label == other.label for one, other in zip(alone, together, strict=True))
    assert same >= 48  # of 50: int8 scales by what is in a batch


def kept(repository: Path) -> set[str]:
    return {stage["name"] for stage in compactor.load_manifest(repository)["stages"] if stage["file"]}

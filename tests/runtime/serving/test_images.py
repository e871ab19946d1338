"""Images over HTTP: both routes answer what a client sends, and no client names a file of the server."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

pytest.importorskip("ray")

import compactor.runtime
from tests.runtime.pictures import encoded, image_artefact, picture
from tests.runtime.serving.conftest import Server


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_artefact(tmp_path_factory.mktemp("vit"))


def test_images_over_http(artefact: Path, tmp_path: Path) -> None:
    images = [encoded(picture(33, 50, seed=seed), "PNG") for seed in range(3)]
    texts = [base64.b64encode(image).decode() for image in images]
    (tmp_path / "private.png").write_bytes(images[0])
    answers = compactor.runtime.load(artefact, threads=1)(images)
    scores = pytest.approx([answer.score for answer in answers], abs=1e-5)
    with Server(artefact) as server:
        status, reply = server.post("/predict", {"inputs": texts})
        assert (status, [found["score"] for found in reply["outputs"]]) == (200, scores)
        status, reply = server.post("/predict", {"inputs": f"data:image/png;base64,{texts[0]}"})
        assert status == 200 and reply["outputs"][0]["label"] == answers[0].label
        status, reply = server.post("/predict", {"inputs": [texts[0], str(tmp_path / "private.png")]})
        assert status == 200 and "base64" in reply["outputs"][1]["error"]

        tensor = {"name": "image", "shape": [3], "datatype": "BYTES", "data": texts}
        status, reply = server.post("/v2/models/films/infer", {"inputs": [tensor]})
        outputs = {output["name"]: output for output in reply["outputs"]}
        assert status == 200 and outputs["score"]["data"] == scores and outputs["scores"]["shape"] == [3, 3]
        tensor["data"] = [*texts[:2], str(tmp_path / "private.png")]
        status, reply = server.post("/v2/models/films/infer", {"inputs": [tensor]})
        assert status == 400 and reply["error"].startswith("item 2: expected an image as base64")

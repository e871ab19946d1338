"""Images in, answers out: as transformers' pipeline, and what cannot be one refused with its reason."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import PIL.Image
import pytest
import transformers
from transformers.image_utils import load_image

import compactor.runtime
from compactor.exporting.export import export
from compactor.runtime.answers import Classified, Refused
from compactor.runtime.artefacts import Artefact
from compactor.runtime.errors import ArtefactError
from compactor.runtime.image_files import from_base64, is_image, read_image
from compactor.runtime.images import IMAGES, ImageCollator, ImageEncoder
from compactor.runtime.model import Model
from compactor.runtime.remote_graph import RemoteGraph
from compactor.runtime.serving import protocol
from compactor.runtime.serving.protocol import BadRequest
from tests.compactor import families
from tests.runtime.pictures import MODES, encoded, noise, picture

SIZE = families.IMAGE
SETTINGS = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIZE, "width": SIZE}, "resample": 3}
SHAPES = ((33, 50), (97, 5), (2, 61), (SIZE, SIZE), (200, 131))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of three labels, as many as an image has channels, and its processor."""
    folder = tmp_path_factory.mktemp("vit") / "model"
    families.build("vit", "ForImageClassification").save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def artefact(checkpoint: Path) -> Path:
    return export(checkpoint, checkpoint.with_name("out")).path


@pytest.fixture(scope="module")
def model(artefact: Path) -> Model:
    return compactor.runtime.load(artefact, precision="fp32", threads=1)


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> Callable[[Any], dict[str, float]]:
    """The scores of transformers' pipeline."""
    return pipeline(checkpoint)


def pipeline(folder: Path, **options: Any) -> Callable[[Any], dict[str, float]]:
    run = transformers.pipeline("image-classification", str(folder), device="cpu", use_fast=False)
    return lambda image: {entry["label"]: entry["score"] for entry in run(image, top_k=100, **options)}


def same(answer: Any, scores: dict[str, float]) -> bool:
    assert isinstance(answer, Classified), answer
    found = dict(zip(answer.labels, answer.scores.tolist(), strict=True))
    return found == pytest.approx(scores, abs=2e-6) and answer.label == max(scores, key=lambda label: scores[label])


# Answers


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_image_has_the_pipelines_answer_in_every_form(
    model: Model, expected: Callable[[Any], dict[str, float]], tmp_path: Path, shape: tuple[int, int]
) -> None:
    image = picture(*shape)
    path = tmp_path / "image.png"
    image.save(path)
    scores = expected(image)
    assert len(scores) == 3
    for item in (image, np.array(image), path.read_bytes(), bytearray(path.read_bytes()), path, str(path)):
        assert same(model(item), scores)


def test_many_images_are_answered_in_their_order(model: Model, expected: Callable[[Any], dict[str, float]]) -> None:
    images = [picture(*shape, seed=seed) for seed in range(8) for shape in SHAPES]
    answers = model(images)
    assert len({round(answer.score, 4) for answer in answers}) > 30  # they tell one image from another
    assert all(same(answer, expected(image)) for answer, image in zip(answers, images, strict=True))
    pixels = np.stack([noise(20, 30, seed=seed) for seed in range(3)])
    assert [answer.score for answer in model(pixels)] == pytest.approx([model(each).score for each in pixels])


def test_batches_are_measured_by_patches(artefact: Path, model: Model) -> None:
    small = compactor.runtime.load(artefact, precision="fp32", threads=1, batch_tokens=8)
    images = [picture(20, 30, seed=seed) for seed in range(7)]
    assert [len(item.windows[0]) for item in small.encode(images)] == [4] * 7  # 8 x 8 pixels in patches of 4 x 4
    assert [each.score for each in small(images)] == pytest.approx([each.score for each in model(images)])


def test_labels_are_no_positions(artefact: Path, model: Model, tmp_path: Path) -> None:
    shutil.copytree(artefact, tmp_path / "out")
    config = json.loads((artefact / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"patch_size": 8}))  # fewer patches than labels
    found = compactor.runtime.load(tmp_path / "out", precision="fp32", threads=1)(picture(33, 50))
    assert found.scores == pytest.approx(model(picture(33, 50)).scores)


@pytest.mark.parametrize(
    "changes",
    [
        {"problem_type": "multi_label_classification"},
        {"problem_type": "regression"},
        {"problem_type": "single_label_classification"},
    ],
    ids=lambda changes: str(changes["problem_type"]),
)
def test_scores_are_by_the_problem_type(
    checkpoint: Path, artefact: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    for folder, name in ((checkpoint, "model"), (artefact, "out")):
        shutil.copytree(folder, tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | changes))
    image = picture(33, 50)
    answer = compactor.runtime.load(tmp_path / "out", precision="fp32", threads=1)(image)
    # transformers 4 forgets that a regression has no probabilities, for images alone.
    options = {"function_to_apply": "none"} if changes["problem_type"] == "regression" else {}
    assert same(answer, pipeline(tmp_path / "model", **options)(image))


def test_int8_answers_too(artefact: Path, model: Model) -> None:
    found = compactor.runtime.load(artefact, precision="int8", threads=1)(picture(33, 50))
    assert isinstance(found, Classified) and found.scores == pytest.approx(model(picture(33, 50)).scores, abs=0.1)


def test_prompts_and_roles_are_for_texts(model: Model) -> None:
    with pytest.raises(ValueError, match="takes images"):
        model([picture(4, 4)], role="query")
    with pytest.raises(ValueError, match="takes images"):
        model([picture(4, 4)], prompt="see: ")


# What an image is


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_read_as_the_reference_reads_it(mode: str) -> None:
    image = picture(21, 34, mode)
    reference = np.array(load_image(image))
    assert reference.shape == (21, 34, 3) and reference.std() > 0
    assert np.array_equal(read_image(image), reference)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("L", "JPEG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {"transparency": 7}),
        ("I;16", "PNG", {}),
        ("1", "PNG", {}),
        ("P", "GIF", {}),
        ("RGB", "GIF", {"save_all": True, "append_images": [picture(21, 34, seed=9)]}),
        ("RGB", "BMP", {}),
        ("I;16", "TIFF", {}),
        ("RGBA", "WEBP", {"lossless": True}),
    ],
)
def test_every_kind_of_file_is_read_as_the_reference_reads_it(
    tmp_path: Path, mode: str, kind: str, options: dict[str, Any]
) -> None:
    content = encoded(picture(21, 34, mode), kind, **options)
    path = tmp_path / "image"
    path.write_bytes(content)
    with PIL.Image.open(path) as image:  # the reference leaves files open that it opens itself
        reference = np.array(load_image(image))
    assert reference.shape == (21, 34, 3) and reference.std() > 0
    assert (read_image(content) == reference).all() and (read_image(path) == reference).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_camera_was(tmp_path: Path, orientation: int) -> None:
    image = picture(21, 34)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image.png"
    image.save(path, exif=exif)
    reference = np.array(load_image(str(path)))
    assert reference.shape == ((21, 34, 3) if orientation < 5 else (34, 21, 3))
    assert (read_image(path) == reference).all()
    assert (orientation == 1) == np.array_equal(reference, np.array(image))


def test_grey_arrays_are_grey_images(model: Model) -> None:
    grey = noise(20, 30, 1)
    found = model([grey, grey[..., 0], PIL.Image.fromarray(grey[..., 0])])
    assert len({answer.score for answer in found}) == 1


@pytest.mark.parametrize("height", [1, 2])
def test_a_single_pixel_is_an_image(model: Model, height: int) -> None:
    assert isinstance(model(picture(height, 1)), Classified)


# What is none


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (None, "expected an image, got nothing"),
        (7, "expected an image, got int"),
        ({"image": "a.png"}, "got dict"),
        (b"", "no bytes"),
        (b"no image at all", "no image"),
        (encoded(picture(30, 30), "PNG")[:200], "cannot be read"),
        (encoded(picture(30, 30), "JPEG")[:300], "cannot be read"),
        (encoded(picture(30, 30), "EPS"), "PostScript"),
        ("", "path is empty"),
        ("no/such/file.png", "no file 'no/such/file.png'"),
        ("x" * 5000, "..."),
        ("a\0b", "no file"),
        ("https://example.org/cat.png", "not fetched"),
        ("data:image/png;base64,aGk=", "data: URL"),
        (Path(), "is a folder"),
        (noise(4, 4).astype(np.float32), "uint8"),
        (np.full((4, 4, 3), np.nan), "uint8"),
        (noise(4, 4).astype(np.int64), "uint8"),
        (np.array([["a", "b"]]), "uint8"),
        (noise(5, 6, 4), "1 or 3 channels"),
        (noise(5, 6, 2), "1 or 3 channels"),
        (np.zeros((3, 6, 7), np.uint8), "may be the channels"),
        (np.zeros((1, 6, 3), np.uint8), "may be the channels"),
        (np.zeros((0, 6, 3), np.uint8), "(H, W, 3)"),
        (np.zeros((), np.uint8), "(H, W, 3)"),
        (np.zeros((2, 2, 2, 2, 3), np.uint8), "(H, W, 3)"),
    ],
    ids=repr,
)
def test_what_is_no_image_is_refused_and_the_rest_is_answered(model: Model, item: Any, words: str) -> None:
    first, refused, last = model([picture(9, 9), item, picture(9, 9)])
    assert isinstance(first, Classified) and isinstance(last, Classified)
    assert isinstance(refused, Refused) and words in refused.reason, refused


def test_an_image_of_more_pixels_than_pillow_allows_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(picture(30, 30), "PNG")
    opened = picture(30, 30)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 899)  # Pillow itself warns above it, and refuses twice as many
    for item in (opened, content, encoded(picture(60, 60), "PNG")):
        found = model(item)
        assert isinstance(found, Refused) and "limit" in found.reason, found
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 900)
    assert isinstance(model(content), Classified)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert isinstance(model(content), Classified)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pillows_warning_is_a_refusal_here(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(picture(30, 30), "PNG")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 899)
    found = model(content)
    assert isinstance(found, Refused) and "30 x 30" in found.reason


@pytest.mark.parametrize("bounded", [False, True])
def test_an_image_too_narrow_to_be_resized_is_refused(
    artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounded: bool
) -> None:
    settings = json.loads((artefact / "preprocessor_config.json").read_text())
    size = {"shortest_edge": 30} | ({"longest_edge": 40} if bounded else {})
    crop = {"height": SIZE, "width": SIZE}
    settings |= {"size": size, "do_center_crop": True, "crop_size": crop}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    encoder = ImageEncoder(tmp_path, {})
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 2000)
    narrow, wide = encoder.encode([picture(2, 200), picture(20, 31)])
    assert isinstance(narrow, Refused) and "too narrow" in narrow.reason
    assert ("0 x 40" if bounded else "30 x 3000") in narrow.reason
    assert not isinstance(wide, Refused)


def test_what_one_image_is() -> None:
    for item in (picture(2, 2), noise(2, 2), noise(2, 2)[..., 0], b"a", bytearray(b"a"), "a", Path("a"), np.zeros(())):
        assert is_image(item)
    for item in ([], ["a"], np.array(["a"]), noise(2, 2)[None], ("a",), 7, None):
        assert not is_image(item)


# Loading


def test_an_artefact_without_a_processor_says_so(artefact: Path, tmp_path: Path) -> None:
    shutil.copytree(artefact, tmp_path / "out")
    (tmp_path / "out" / "preprocessor_config.json").unlink()
    with pytest.raises(ArtefactError, match=r"no preprocessor_config\.json[\s\S]*export it again"):
        compactor.runtime.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_processor_type": "DonutImageProcessor"}, "'DonutImageProcessor' is not built"),
        ({"image_processor_type": None}, "None is not built"),
        ({"do_resize": None}, "keep their shapes"),
        ({"do_rescale": "yes"}, "'do_rescale' is 'yes'"),
        ({"do_pad": True}, "'do_pad' is true"),
        ({"size": 8}, "names no edge"),
        ({"size": {"height": 16, "width": 16}}, "3 x 16 x 16, and the graph takes 3 x 8 x 8"),
        ({"resample": 6}, "'resample' is 6"),
        ({"image_mean": [0.5, 0.5]}, "'image_mean' has 2 numbers"),
        ({"image_std": [0.5, 0, 0.5]}, "'image_std' holds 0"),
        ({"rescale_factor": None}, "'rescale_factor' is None"),
        ({"rescale_factor": float("nan")}, "'rescale_factor' is nan"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_are_not_built_are_refused_by_name(
    artefact: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    shutil.copytree(artefact, tmp_path / "out")
    path = tmp_path / "out" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ArtefactError) as raised:
        compactor.runtime.load(tmp_path / "out")
    assert words in raised.value.what


def test_settings_that_are_not_written_out_are_refused(artefact: Path, tmp_path: Path) -> None:
    shutil.copytree(artefact, tmp_path / "out")
    (tmp_path / "out" / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(ArtefactError, match="'do_center_crop' is missing"):
        compactor.runtime.load(tmp_path / "out")


def test_without_pillow_it_says_what_is_missing(artefact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIL", "PIL.Image", "PIL.ImageOps"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ArtefactError, match="pip install pillow"):
        compactor.runtime.load(artefact)


def test_a_graph_of_something_else_is_refused(artefact: Path) -> None:
    steps = ImageEncoder(artefact, Artefact.open(artefact).config).steps

    class Entry:
        def __init__(self, name: str, shape: list[Any]) -> None:
            self.name, self.shape, self.type = name, shape, "tensor(float16)"

    free = Entry("pixel_values", ["batch", 3, "height", "width"])
    (item,) = ImageEncoder(artefact, {}).encode([picture(9, 9)])
    assert not isinstance(item, Refused)
    batch = ImageCollator([free], steps)([*item.windows, *item.windows])["pixel_values"]
    assert (batch.dtype, batch.shape) == (np.float16, (2, 3, SIZE, SIZE))
    with pytest.raises(ArtefactError, match="'pixel_mask', which no image gives"):
        ImageCollator([free, Entry("pixel_mask", ["batch", "height", "width"])], steps)
    with pytest.raises(ArtefactError, match="1 x 8 x 8"):
        ImageCollator([Entry("pixel_values", ["batch", 1, SIZE, SIZE])], steps)


# Behind HTTP


def test_a_server_may_run_the_graph(
    artefact: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = export(artefact, tmp_path / "vit", layout="triton", precision=["fp32"]).path
    assert (repository / "preprocessor_config.json").read_bytes() == (
        artefact / "preprocessor_config.json"
    ).read_bytes()
    session = onnxruntime.InferenceSession(next(repository.glob("*/1/model.onnx")))
    asked = []

    def ask(graph: RemoteGraph, body: dict[str, Any] | None) -> dict[str, Any]:
        if body is None:
            taken = {"name": "pixel_values", "datatype": "FP32", "shape": [-1, 3, SIZE, SIZE]}
            return {"inputs": [taken], "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]}
        (tensor,) = body["inputs"]
        asked.append(tensor["shape"])
        pixels = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        (logits,) = session.run(None, {"pixel_values": pixels})
        output = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape), "data": logits.ravel().tolist()}
        return {"outputs": [output]}

    monkeypatch.setattr(RemoteGraph, "_ask", ask)
    images = [picture(*shape) for shape in SHAPES]
    found = compactor.runtime.load(repository, url="http://127.0.0.1:1")(images)
    assert [answer.score for answer in found] == pytest.approx([answer.score for answer in model(images)], abs=1e-5)
    assert asked == [[5, 3, SIZE, SIZE]]


def test_a_client_sends_base64_and_never_a_path(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    picture(33, 50).save(path)
    text = base64.b64encode(path.read_bytes()).decode()
    tensor = {"name": "image", "shape": [3], "datatype": "BYTES", "data": [text, f"data:image/png;base64,{text}"]}
    tensor["data"].append(str(path))
    items, _, _ = protocol.read_inference({"inputs": [tensor]}, IMAGES, Classified, 8)
    plain = protocol.read_plain({"inputs": tensor["data"]}, 8, IMAGES)
    for found in (model(items), model(plain)):
        assert [answer.score for answer in found[:2]] == pytest.approx([model(path).score] * 2)
        assert isinstance(found[2], Refused) and "base64" in found[2].reason
    with pytest.raises(BadRequest, match="expected image"):
        protocol.read_inference({"inputs": [{**tensor, "name": "text"}]}, IMAGES, Classified, 8)


@pytest.mark.parametrize("name", ["image", "aGk", "/etc", "aGk=aGk=", "data:image/png,aGk=", "a,b"])
def test_what_is_no_base64_is_refused(name: str) -> None:
    found = from_base64(name)  # "/etc" is base64, of three bytes: it is never looked up
    assert found == base64.b64decode("/etc") if name == "/etc" else isinstance(found, Refused)


@pytest.mark.parametrize("item", [None, 7, {"path": "a.png"}, ["aGk="]])
def test_only_text_is_base64(item: Any) -> None:
    found = from_base64(item)
    assert isinstance(found, Refused) and "base64" in found.reason


def test_the_protocol_describes_the_model(model: Model) -> None:
    described = protocol.describe_model("cats", IMAGES, model.answer_type, model.labels)
    assert [entry["name"] for entry in described["inputs"]] == ["image"]
    assert [(entry["name"], entry["shape"]) for entry in described["outputs"]] == [
        *(("label", [-1]), ("score", [-1]), ("scores", [-1, 3])),
    ]
    reply = protocol.write_inference("cats", Classified, [model(picture(9, 9))], None, None)
    assert [output["shape"] for output in reply["outputs"]] == [[1], [1], [1, 3]]


def test_an_opened_file_is_an_image(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    picture(33, 50).save(path)
    with PIL.Image.open(path) as image:  # not decoded yet
        assert model(image).score == model(path).score
    with PIL.Image.open(io.BytesIO(path.read_bytes()[:200])) as image:
        assert isinstance(model(image), Refused)

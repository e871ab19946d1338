"""What an artefact does to an image is what the checkpoint's processor does; or the export says what it cannot do."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from transformers.image_utils import load_image

from compactor.companions import image_processor
from compactor.companions.image_processor import read_image_processor
from compactor.errors import ModelDirectoryError
from compactor.exporting.export import export
from compactor.runtime.answers import Classified, Refused
from compactor.runtime.images import ImageCollator, ImageEncoder
from compactor.runtime.model import load
from tests.compactor import families
from tests.runtime.pictures import picture
from tests.slow import slow_after_first

SIZE = 24
SQUARE = {"height": SIZE, "width": SIZE}
SHAPES = ((33, 50), (97, 5), (9, 61), (SIZE, SIZE), (200, 131), (17, 16), (2, 5))
NEWER = importlib.util.find_spec("transformers.image_processing_backends") is not None  # every class has every step


def vit(**changes: Any) -> dict[str, Any]:
    return {"image_processor_type": "ViTImageProcessor", "size": SQUARE, **changes}


def clip(**changes: Any) -> dict[str, Any]:
    return {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 30}, "crop_size": SQUARE, **changes}


def of(name: str, **settings: Any) -> dict[str, Any]:
    return {"image_processor_type": f"{name}ImageProcessor", **settings}


def checkpoint(folder: Path, settings: Any, *, name: str = "preprocessor_config.json") -> Path:
    """A folder with a processor's settings."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    (folder / name).write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return folder


def artefact(folder: Path, *shape: Any, name: str = "pixel_values") -> Path:
    """A folder with a graph that takes images of ``shape``."""
    kind = onnx.TensorProto.FLOAT
    taken, given = (onnx.helper.make_tensor_value_info(each, kind, ["batch_size", *shape]) for each in (name, "logits"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", [name], ["logits"])], "g", [taken], [given])
    (folder / "onnx").mkdir(parents=True)
    onnx.save(onnx.helper.make_model(graph), folder / "onnx" / "model.onnx")
    return folder


def write_image_processor(home: Path, out: Path) -> list[str]:
    processor = read_image_processor(home)
    return [] if processor is None else processor.write(out)


def carried(home: Path, size: int | tuple[int, int] = SIZE) -> ImageEncoder:
    height, width = (size, size) if isinstance(size, int) else size
    out = artefact(home.with_name("out"), 3, height, width)
    assert write_image_processor(home, out) == ["preprocessor_config.json"]
    return ImageEncoder(out, {})


def refusal(home: Path) -> ModelDirectoryError:
    out = artefact(home.with_name("refused"), 3, SIZE, SIZE)
    with pytest.raises(ModelDirectoryError) as raised:
        write_image_processor(home, out)
    assert not (out / "preprocessor_config.json").exists()
    return raised.value


def check(home: Path, encoder: ImageEncoder) -> None:
    """The pixels of images in many shapes, against the reference."""
    reference = transformers.AutoImageProcessor.from_pretrained(str(home), use_fast=False)

    class Graph:
        name, type, shape = "pixel_values", "tensor(float)", ("batch", 3, "height", "width")

    collate = ImageCollator([Graph()], encoder.steps)
    for mode in ("RGB", "L", "RGBA"):
        for height, width in SHAPES:
            image = picture(height, width, mode)
            (item,) = encoder.encode([image])
            assert not isinstance(item, Refused), item
            found = collate(list(item.windows))["pixel_values"]
            expected = reference(images=load_image(image), return_tensors="np")["pixel_values"]
            assert expected.std() > 0
            np.testing.assert_array_equal(found, expected.astype(np.float32))


HONOURED = [
    *(vit(resample=number) for number in range(6)),
    vit(),
    vit(size=SIZE),
    vit(size={"height": 24, "width": 36}),
    {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": SIZE},
    {"feature_extractor_type": "ViTFeatureExtractor", "size": SIZE, "resample": 3},
    {"feature_extractor_type": "DeiTFeatureExtractor", "size": 30, "do_center_crop": True, "crop_size": SIZE},
    {"feature_extractor_type": "BeitFeatureExtractor", "size": SIZE, "do_center_crop": False, "crop_size": SIZE},
    vit(image_processor_type="ViTImageProcessorFast", do_convert_rgb=None, default_to_square=True),
    vit(do_rescale=False),
    vit(do_normalize=False),
    vit(do_rescale=False, do_normalize=False),
    vit(rescale_factor=1 / 127.5, image_mean=[1.0, 0.9, 0.8], image_std=[0.3, 0.5, 0.7]),
    vit(image_mean=0.4, image_std=0.3),
    of("DeiT", size={"height": 30, "width": 28}, crop_size=SQUARE),
    of("DeiT", size={"height": 9, "width": 40}, crop_size=SIZE),
    of("DeiT", size={"height": 9, "width": 10}, crop_size={"height": 24, "width": 23}),
    of("DeiT", do_resize=False, crop_size=SQUARE),
    of("DeiT", size=SQUARE, do_center_crop=False),
    clip(),
    clip(size=27, crop_size=SIZE),
    clip(do_convert_rgb=False, size=SQUARE, do_center_crop=False),
    of("Bit", size={"shortest_edge": 20}, crop_size=SQUARE),
    of("Beit", size=SQUARE, do_center_crop=True, crop_size=SQUARE, do_reduce_labels=True),
    of("Siglip", size=SQUARE),
    of("Pvt", size=SQUARE),
    of("MobileNetV1", size={"shortest_edge": 30}, crop_size=SQUARE),
    of("MobileNetV2", size={"shortest_edge": 30}, crop_size=SQUARE),
    of("Segformer", size=SQUARE, do_reduce_labels=True),
    of("Levit", size={"shortest_edge": 24}, crop_size=SQUARE),
    of("Levit", size={"height": 29, "width": 27}, crop_size=SQUARE),
    of("ConvNext", size={"shortest_edge": 24}),
    of("ConvNext", size={"shortest_edge": 24}, crop_pct=0.6),
    of("PoolFormer", size={"shortest_edge": 24}, crop_size=SQUARE),
    of("PoolFormer", size=SQUARE, crop_size=SQUARE, crop_pct=0.7),
    of("PoolFormer", size={"height": 24, "width": 30}, crop_size=SQUARE, crop_pct=0.8),
    of("EfficientNet", size=SQUARE, rescale_offset=True, rescale_factor=1 / 127.5),
    of("EfficientNet", size=SQUARE, include_top=False, image_std=[0.3, 0.5, 0.7]),
    of("EfficientNet", size={"height": 40, "width": 30}, do_center_crop=True, crop_size=SQUARE, do_normalize=False),
    of("MobileViT", size={"shortest_edge": 30}, crop_size=SQUARE),
    of("MobileViT", size={"shortest_edge": 20}, crop_size=SQUARE, do_flip_channel_order=False, do_rescale=False),
]


@pytest.mark.parametrize("settings", HONOURED, ids=lambda settings: json.dumps(settings)[:90])
def test_pixels_are_the_references(tmp_path: Path, settings: dict[str, Any]) -> None:
    home = checkpoint(tmp_path / "model", settings)
    size = settings.get("size")
    height, width = (24, 36) if size == {"height": 24, "width": 36} else (24, 24)
    if settings.get("crop_size") == {"height": 24, "width": 23}:
        width = 23
    check(home, carried(home, (height, width)))


def test_a_large_convnext_is_warped_and_not_cropped(tmp_path: Path) -> None:
    home = checkpoint(tmp_path / "model", of("ConvNext"))  # its class says 384
    check(home, carried(home, 384))


@pytest.mark.parametrize(
    "settings",
    [
        vit(do_center_crop=True, size={"height": 30, "width": 30}, crop_size=SQUARE),
        clip(size={"shortest_edge": 30, "longest_edge": 40}),
        clip(size={"shortest_edge": 30, "longest_edge": 60}),
        clip(size={"shortest_edge": 30, "longest_edge": 400}),
        clip(size={"max_height": 40, "max_width": 30}),
    ],
    ids=lambda settings: json.dumps(settings)[:90],
)
def test_what_only_some_versions_follow_is_followed_or_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    home = checkpoint(tmp_path / "model", settings)
    if NEWER:
        check(home, carried(home))
    else:
        what = refusal(home).what
        assert "becomes other pixels" in what or "of transformers fails on" in what


def test_what_a_class_leaves_to_its_defaults_is_written_out(tmp_path: Path) -> None:
    home = checkpoint(
        tmp_path / "model", {"image_processor_type": "ViTImageProcessor", "auto_map": {"AutoConfig": "x.y"}}
    )
    carried(home, 224)
    written = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert written["size"] == {"height": 224, "width": 224} and written["resample"] == 2
    assert written["image_mean"] == [0.5] * 3 and written["rescale_factor"] == 1 / 255
    assert [written[name] for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize")] == [
        *(True, False, True, True),
    ]
    assert "auto_map" not in written
    again = transformers.AutoImageProcessor.from_pretrained(str(tmp_path / "out"), use_fast=False)
    first = transformers.AutoImageProcessor.from_pretrained(str(home), use_fast=False)
    image = picture(33, 50)
    pixels = [each(images=image, return_tensors="np")["pixel_values"] for each in (first, again)]
    np.testing.assert_array_equal(*pixels)


def test_the_settings_may_stand_inside_of_a_processors_file(tmp_path: Path) -> None:
    home = checkpoint(tmp_path / "model", {"image_processor": vit(resample=0)}, name="processor_config.json")
    encoder = carried(home)
    assert encoder.steps.resample == 0
    check(home, encoder)


def test_two_files_that_differ_are_refused(tmp_path: Path) -> None:
    home = checkpoint(tmp_path / "model", {"image_processor": vit(resample=0)}, name="processor_config.json")
    checkpoint(home, vit(resample=3, processor_class="X"))
    first, second = (json.loads((home / f"{name}_config.json").read_text()) for name in ("processor", "preprocessor"))
    used = transformers.AutoImageProcessor.from_pretrained(str(home), use_fast=False).resample
    assert used == (first["image_processor"] if NEWER else second)["resample"]  # it depends on who reads them
    assert "differ in the image processor" in refusal(home).what
    checkpoint(home, vit(resample=0, processor_class="X"))
    check(home, carried(home))


def test_a_folder_without_a_processor_has_none(tmp_path: Path) -> None:
    home = checkpoint(tmp_path / "model", {"processor_class": "X"}, name="processor_config.json")
    out = artefact(tmp_path / "out", 3, SIZE, SIZE)
    assert write_image_processor(home, out) == []
    assert not (out / "preprocessor_config.json").exists()


def test_a_model_of_texts_needs_none(tmp_path: Path) -> None:
    home = families.save(tmp_path / "model", "bert")
    (home / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "DonutImageProcessor"}))
    assert export(home, tmp_path / "out", precision=["fp32"]).path.is_dir()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (of("Donut", size=SQUARE), "'DonutImageProcessor' is not built"),
        (of("Perceiver", size=SQUARE), "'PerceiverImageProcessor' is not built"),
        (of("Nobody"), "transformers cannot open the image processor"),
        (vit(do_pad=True, pad_size=SQUARE), "'do_pad' is true, which is not built for ViTImageProcessor"),
        (vit(do_sharpen=True), "'do_sharpen' is true"),
        (of("MobileViT", size={"shortest_edge": 30}, crop_size=SQUARE, do_normalize=True), "'do_normalize' is true"),
        (of("Segformer", size=SQUARE, do_center_crop=True, crop_size=SQUARE), "'do_center_crop' is true"),
        (of("ConvNext", size=SQUARE), "takes 'shortest_edge' alone"),
        (clip(do_center_crop=False), "keep their shapes"),
        (vit(do_resize=False), "keep their shapes"),
        (clip(size={"longest_edge": 30}), "which is not built for CLIPImageProcessor"),
        (vit(size={"height": 32, "width": 32}), "3 x 32 x 32, and the graph takes 3 x 24 x 24"),
        (vit(size={"height": 10**6, "width": 10**6}), "no number of pixels"),
        (clip(size={"shortest_edge": 4097}), "no number of pixels from 1 to 4096"),
        (vit(resample=9), "'resample' is 9"),
        (vit(image_mean=[0.5]), "'image_mean' has 1 numbers"),
        (vit(image_std=[0.5, 0.0, 0.5]), "'image_std' holds 0"),
        (vit(rescale_factor="1/255"), None),
        (vit(size="large"), None),
        (of("PoolFormer", size=SQUARE, crop_size=SQUARE, crop_pct=0.0), "no share of an image"),
        ("{", None),
        ("[]", "expected a JSON object"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path: Path, settings: Any, words: str | None) -> None:
    home = checkpoint(tmp_path / "model", settings)
    error = refusal(home)
    assert words is None or words in error.what
    assert "preprocessor_config.json" in str(error.where) and error.todo


def test_a_graph_of_one_channel_is_refused(tmp_path: Path) -> None:
    home = checkpoint(tmp_path / "model", vit())
    with pytest.raises(ModelDirectoryError, match="3 x 24 x 24, and the graph takes 1 x 24 x 24"):
        write_image_processor(home, artefact(tmp_path / "out", 1, SIZE, SIZE))


def test_without_pillow_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = checkpoint(tmp_path / "model", vit())
    for name in ("PIL", "PIL.Image", "PIL.ImageOps"):
        monkeypatch.setitem(sys.modules, name, None)
    assert refusal(home).todo == "pip install pillow"


def test_a_file_that_leads_elsewhere_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "private.json").write_text(json.dumps(vit()))
    home = checkpoint(tmp_path / "model", vit())
    (home / "preprocessor_config.json").unlink()
    (home / "preprocessor_config.json").symlink_to(tmp_path / "private.json")
    assert "leads out" in refusal(home).what


def test_what_is_built_here_is_tried_against_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = checkpoint(tmp_path / "model", vit())
    resolve = image_processor._resolved
    monkeypatch.setattr(image_processor, "_resolved", lambda *both: resolve(*both) | {"resample": 3})
    what = refusal(home).what
    assert what.startswith("ViTImageProcessor")
    assert "an image of 97 x 23 pixels in mode RGB becomes other" in what


@pytest.mark.parametrize(
    ("family", "settings"),
    slow_after_first(
        [
            ("DeiT", of("DeiT", size={"height": 40, "width": 36}, crop_size={"height": 32, "width": 32})),
            ("Beit", of("Beit", size={"height": 32, "width": 32}, do_center_crop=False)),
            ("Dinov2", of("Bit", size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})),
            ("Swin", vit(size={"height": 32, "width": 32})),
        ]
    ),
)
def test_other_families_have_the_pipelines_answers(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "image_size": 32, "num_labels": 3}
    sizes |= {"patch_size": 8} if family != "Swin" else {"patch_size": 4, "embed_dim": 16, "window_size": 4}
    if family == "Swin":
        sizes = {name: size for name, size in sizes.items() if "hidden" not in name and "attention" not in name}
        sizes |= {"depths": [1, 1], "num_heads": [2, 4]}
    config = getattr(transformers, f"{family}Config")(**sizes)
    model = getattr(transformers, f"{family}ForImageClassification")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower() or name.endswith("bias"):
                parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    path = export(tmp_path / "model", tmp_path / "out", precision=["fp32"]).path
    images = [picture(height, width) for height, width in SHAPES]
    pipeline = transformers.pipeline(
        "image-classification", str(tmp_path / "model"), device="cpu", use_fast=False, top_k=3
    )
    for image, answer in zip(images, load(path, threads=1)(images), strict=True):
        assert isinstance(answer, Classified)
        scores = {entry["label"]: entry["score"] for entry in pipeline(image)}
        assert dict(zip(answer.labels, answer.scores.tolist(), strict=True)) == pytest.approx(scores, abs=1e-5)


def test_an_export_carries_the_processor(tmp_path: Path) -> None:
    model = families.build("vit", "ForImageClassification")
    model.save_pretrained(tmp_path / "model")
    plain = export(tmp_path / "model", tmp_path / "plain", precision=["fp32"]).path
    assert not (plain / "preprocessor_config.json").exists()

    wrong = vit(size={"height": 16, "width": 16})
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(wrong))
    with pytest.raises(ModelDirectoryError, match="3 x 16 x 16, and the graph takes 3 x 8 x 8"):
        export(tmp_path / "model", tmp_path / "wrong", precision=["fp32"])
    assert not (tmp_path / "wrong").exists()

    right = vit(size={"height": families.IMAGE, "width": families.IMAGE})
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(right))
    for layout in ("hf", "flat"):
        path = export(tmp_path / "model", tmp_path / layout, precision=["fp32"], layout=layout).path
        assert isinstance(load(path, threads=1)(picture(33, 50)), Classified)

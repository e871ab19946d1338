"""Targets become rows: every graph of an artefact on every provider, and bad ones are refused before anything runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compactor.benching.plan import Case
from compactor.benching.targets import Targets, resolve_targets
from compactor.errors import ModelDirectoryError, UsageError
from compactor.manifest import dump_manifest
from compactor.runtime.errors import ProviderUnavailableError
from tests.compactor import checkpoints
from tests.compactor.manifests import example_manifest
from tests.compactor.reports import make_ledger

INT64, FLOAT, FLOAT16 = TensorProto.INT64, TensorProto.FLOAT, TensorProto.FLOAT16
Axis = int | str


def graph(
    path: Path,
    *,
    shape: Sequence[Axis] = ("batch", "seq"),
    inputs: Sequence[str] = ("input_ids", "attention_mask"),
    kind: int = INT64,
    outputs: Sequence[str] = ("logits",),
    output_axes: int = 2,
    table: Any = np.float32,
    int8: bool = False,
    external: bool = False,
) -> Path:
    """A graph that looks ids up in a table of 30 rows; it is read here and never run."""
    nodes = [
        helper.make_node("Cast", [inputs[0]], ["ids"], to=INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        *(helper.make_node("Identity", ["rows"], [name]) for name in outputs),
    ]
    if int8:
        nodes.append(helper.make_node("DynamicQuantizeLinear", ["rows"], ["q", "s", "z"]))
    tensor = numpy_helper.from_array(np.ones((30, 4), table), "table")
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name in inputs],
        [helper.make_tensor_value_info(name, FLOAT, ["batch", 2, 2][:output_axes]) for name in outputs],
        [tensor],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        helper.make_model(made), path, save_as_external_data=external, location=f"{path.name}_data", size_threshold=0
    )
    return path


def artefact(folder: Path, *, task: str = "text-classification", fp16: bool = False) -> Path:
    manifest = example_manifest()
    manifest["task"] = task
    if fp16:
        manifest["stages"][2].update(name="fp16", file="onnx/model_fp16.onnx")
    for stage, table in zip(manifest["stages"][1:], (np.float32, np.float16 if fp16 else np.float32), strict=True):
        stage["bytes"] = graph(folder / stage["file"], table=table).stat().st_size
    (folder / "compactor.json").write_text(dump_manifest(manifest))
    (folder / "config.json").write_text(json.dumps(checkpoints.config(architectures=["BertForSequenceClassification"])))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def model_directory(folder: Path, architecture: str = "BertForSequenceClassification", **changes: Any) -> Path:
    return checkpoints.write(folder, model_config=checkpoints.config(architectures=[architecture], **changes))


def rows(targets: Targets) -> list[tuple[str, str, str, str]]:
    return [(each.name, each.engine, each.provider, each.precision) for each in targets.variants]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compactor.runtime.providers.count_cuda_devices", lambda: 0)


@pytest.fixture
def full_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("compactor.runtime.providers.count_cuda_devices", lambda: 1)
    monkeypatch.setattr("compactor.runtime.providers.available_providers", lambda: names)


def test_an_artefact_is_all_its_graphs_and_a_model_directory_runs_in_pytorch(tmp_path: Path) -> None:
    compact, model = artefact(tmp_path / "compact"), model_directory(tmp_path / "model")
    found = resolve_targets([compact], baseline=model)
    assert rows(found) == [
        ("model, PyTorch", "torch", "torch", "fp32"),
        ("compact fp32", "onnxruntime", "cpu", "fp32"),
        ("compact int8", "onnxruntime", "cpu", "int8"),
    ]
    assert [each.id for each in found.variants] == ["model-PyTorch", "compact-fp32", "compact-int8"]
    assert [each.path for each in found.variants] == [
        model,
        compact / "onnx" / "model.onnx",
        compact / "onnx" / "model_quantized.onnx",
    ]
    assert [each.target for each in found.variants] == [str(model), str(compact), str(compact)]
    assert found.baseline == "model-PyTorch"
    assert (found.title, found.task, found.image) == ("pruned-model", "text-classification", False)
    assert (found.config["vocab_size"], found.max_length) == (checkpoints.VOCABULARY, checkpoints.POSITIONS)
    assert found.tokenizer == compact
    assert found.notes == []


def test_ledgers_come_from_the_manifests_that_hold_one(tmp_path: Path) -> None:
    """One of an artefact that is a target and the baseline."""
    chosen, other = artefact(tmp_path / "chosen"), artefact(tmp_path / "other")
    manifest = json.loads((chosen / "compactor.json").read_text())
    manifest["ledger"] = make_ledger()
    (chosen / "compactor.json").write_text(dump_manifest(manifest))
    assert resolve_targets([other]).ledgers == []
    found = resolve_targets([other, chosen], baseline=chosen).ledgers
    assert found == [{"target": str(chosen), "ledger": make_ledger()}]


def test_layers_come_from_the_manifest(tmp_path: Path) -> None:
    sizes = {"heads_before": 12, "neurons_before": 3072}
    assert resolve_targets([artefact(tmp_path / "compact")]).layers == [
        {"name": "layers.0", **sizes, "heads_after": 3, "neurons_after": 187},
        {"name": "layers.1", **sizes, "heads_after": 0, "neurons_after": 3072},
    ]
    assert resolve_targets([graph(tmp_path / "a.onnx")]).layers is None


def test_cross_attention_is_a_row_of_its_own(tmp_path: Path) -> None:
    compact = artefact(tmp_path / "compact")
    manifest = json.loads((compact / "compactor.json").read_text())
    cross = manifest["layers"][0] | {"path": "layers.0.cross_attention", "heads": [8, 2]}
    manifest["layers"].insert(1, cross)
    (compact / "compactor.json").write_text(dump_manifest(manifest))
    layers = resolve_targets([compact]).layers
    assert layers is not None
    assert [(layer["name"], layer["heads_before"], layer["heads_after"]) for layer in layers] == [
        ("layers.0", 12, 3),
        ("layers.0, cross-attention", 8, 2),
        ("layers.1", 12, 0),
    ]
    assert layers[1]["neurons_before"] is None


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        pytest.param({}, "fp32", id="fp32"),
        pytest.param({"table": np.float16}, "fp16", id="fp16"),
        pytest.param({"int8": True}, "int8", id="int8"),
    ],
)
def test_a_lone_graph_tells_its_own_precision_and_vocabulary(
    options: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    found = resolve_targets([graph(tmp_path / "model.onnx", **options)])
    assert rows(found) == [("model.onnx", "onnxruntime", "cpu", precision)]
    assert found.config == {"vocab_size": 30}
    assert (found.baseline, found.tokenizer, found.max_length) == (None, None, None)


def test_a_lone_graph_may_list_its_weights_among_its_inputs(tmp_path: Path) -> None:
    file = graph(tmp_path / "model.onnx")
    model = onnx.load(file)
    model.graph.input.append(helper.make_tensor_value_info("table", FLOAT, [30, 4]))  # as files before IR version 4
    onnx.save(model, file)
    assert resolve_targets([file]).config == {"vocab_size": 30}


@pytest.mark.parametrize(
    ("options", "task"),
    [
        ({}, "text-classification"),
        ({"outputs": ("start_logits", "end_logits")}, "question-answering"),
        ({"outputs": ("last_hidden_state",)}, "feature-extraction"),
        ({"output_axes": 3}, None),
        ({"outputs": ("scores",)}, None),
    ],
)
def test_a_lone_graph_tells_its_task_by_its_outputs(options: dict[str, Any], task: str | None, tmp_path: Path) -> None:
    assert resolve_targets([graph(tmp_path / "model.onnx", **options)]).task == task


def test_a_graph_finds_config_and_tokenizer_above_its_folder(tmp_path: Path) -> None:
    graph(tmp_path / "onnx" / "model.onnx", output_axes=3)
    config = checkpoints.config(architectures=["BertForTokenClassification"], vocab_size=29)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "vocab.txt").write_text("")
    found = resolve_targets([tmp_path / "onnx" / "model.onnx"])
    assert (found.task, found.tokenizer, found.max_length) == ("token-classification", tmp_path, checkpoints.POSITIONS)
    assert found.config["vocab_size"] == 29, "the smaller of the config's and the table's"


def test_images_are_known_by_their_input(tmp_path: Path) -> None:
    file = graph(tmp_path / "vit.onnx", inputs=("pixel_values",), kind=FLOAT, shape=("batch", 3, 32, 48))
    found = resolve_targets([file])
    assert (found.image, found.task) == (True, "image-classification")
    assert found.config == {"num_channels": 3, "image_size": [32, 48]}


# Baselines


def test_a_baseline_that_is_a_target_is_not_measured_twice(tmp_path: Path) -> None:
    compact, model = artefact(tmp_path / "compact"), model_directory(tmp_path / "model")
    found = resolve_targets([compact, model], baseline=model)
    assert [each.name for each in found.variants] == ["model, PyTorch", "compact fp32", "compact int8"]
    quantized = resolve_targets([compact], baseline=compact / "onnx" / "model_quantized.onnx")
    assert [each.name for each in quantized.variants] == ["compact int8", "compact fp32"]
    assert quantized.baseline == "compact-int8"


def test_a_baseline_artefact_brings_its_first_graph_only(tmp_path: Path) -> None:
    found = resolve_targets([artefact(tmp_path / "compact")], baseline=artefact(tmp_path / "dense"))
    assert [each.name for each in found.variants] == ["dense fp32", "compact fp32", "compact int8"]
    assert found.baseline == "dense-fp32"


def test_without_a_baseline_the_first_that_can_run_is_it(tmp_path: Path, no_gpu: None) -> None:
    found = resolve_targets([artefact(tmp_path / "compact")], providers=("cuda", "cpu"))
    assert found.variants[0].name == "compact fp32"
    assert found.baseline == "compact-fp32"


def test_says_so_when_the_baseline_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "not run: torch is not installed"
    monkeypatch.setattr("compactor.benching.engines.not_run_reason", lambda e, p: reason if e == "torch" else None)
    found = resolve_targets([artefact(tmp_path / "compact")], baseline=model_directory(tmp_path / "model"))
    assert found.baseline == "model-PyTorch"
    assert found.variants[0].reason == reason
    assert found.notes == [f"Nothing is compared: the baseline, model, PyTorch, was {reason}."]


# Names


def test_the_same_graph_twice_makes_two_rows(tmp_path: Path) -> None:
    file = graph(tmp_path / "model.onnx")
    found = resolve_targets([file, file, file])
    assert [(each.id, each.name) for each in found.variants] == [
        ("model.onnx", "model.onnx"),
        ("model.onnx-2", "model.onnx (2)"),
        ("model.onnx-3", "model.onnx (3)"),
    ]


def test_names_hold_as_many_folders_as_tell_them_apart(tmp_path: Path) -> None:
    files = [graph(tmp_path / name / "onnx" / "model.onnx") for name in ("a", "b")]
    other = graph(tmp_path / "a" / "Größe 1.onnx")
    found = resolve_targets([*files, other])
    assert [each.name for each in found.variants] == ["a/onnx/model.onnx", "b/onnx/model.onnx", "Größe 1.onnx"]
    assert [each.id for each in found.variants] == ["a-onnx-model.onnx", "b-onnx-model.onnx", "Gr-e-1.onnx"]


def test_ids_are_unique_even_where_names_differ_in_odd_characters_only(tmp_path: Path) -> None:
    found = resolve_targets([graph(tmp_path / name) for name in ("a_b.onnx", "a b.onnx", "a-b.onnx")])
    assert [each.id for each in found.variants] == ["a-b.onnx", "a-b.onnx-2", "a-b.onnx-3"]


# Providers


def test_every_graph_runs_on_every_provider_and_rows_without_a_gpu_say_so(tmp_path: Path, no_gpu: None) -> None:
    compact, model = artefact(tmp_path / "compact"), model_directory(tmp_path / "model")
    found = resolve_targets([compact], baseline=model, providers=("cpu", "cuda", "openvino"))
    assert [(name, provider) for name, _, provider, _ in rows(found)] == [
        ("model, PyTorch", "torch"),
        ("model, PyTorch on CUDA", "cuda"),
        ("compact fp32", "cpu"),
        ("compact fp32, CUDA", "cuda"),
        ("compact fp32, OpenVINO", "openvino"),
        ("compact int8", "cpu"),
        ("compact int8, CUDA", "cuda"),
        ("compact int8, OpenVINO", "openvino"),
    ]
    assert {each.engine for each in found.variants if each.provider == "openvino"} == {"openvino"}
    assert {each.reason for each in found.variants if each.provider == "cuda"} == {"not run: no CUDA device"}
    assert {each.reason for each in found.variants if each.provider == "cpu"} == {None}


def test_cuda_brings_tensorrt_where_it_is_there(tmp_path: Path, full_gpu: None) -> None:
    found = resolve_targets([artefact(tmp_path / "compact", fp16=True)], providers=("cuda",))
    assert [each.name for each in found.variants] == [
        "compact fp32, CUDA",
        "compact fp32, TensorRT",
        "compact fp16, CUDA",
        "compact fp16, TensorRT",
    ]
    assert all(each.reason is None for each in found.variants)


def test_tensorrt_is_left_out_for_quantized_graphs(tmp_path: Path, full_gpu: None) -> None:
    found = resolve_targets([graph(tmp_path / "model.onnx", int8=True)], providers=("cuda",))
    assert rows(found) == [("model.onnx, CUDA", "onnxruntime", "cuda", "int8")]


def test_a_baseline_is_its_first_variant_that_can_run(tmp_path: Path, no_gpu: None) -> None:
    model = model_directory(tmp_path / "model")
    found = resolve_targets([artefact(tmp_path / "compact")], baseline=tmp_path / "compact", providers=("cuda", "cpu"))
    assert found.baseline == "compact-fp32"
    assert resolve_targets([model], baseline=model, providers=("cuda", "cpu")).baseline == "model-PyTorch"


def test_on_cuda_alone_pytorch_runs_there_alone(tmp_path: Path, full_gpu: None) -> None:
    found = resolve_targets([model_directory(tmp_path / "model")], providers=("cuda",))
    assert rows(found) == [("model, PyTorch on CUDA", "torch", "cuda", "fp32")]


@pytest.mark.parametrize(
    ("providers", "message", "remedy"),
    [
        pytest.param(("cuda",), "the 'cuda' provider is", "", id="cuda"),
        pytest.param(("tensorrt",), "the 'tensorrt' provider cannot run here: no CUDA device", "TensorRT", id="trt"),
        pytest.param(("openvino",), "cannot run here: openvino is not installed", "pip install openvino", id="ov"),
        pytest.param(("torch",), "PyTorch runs model directories, not ONNX graphs", "--provider cpu", id="torch"),
        pytest.param(("tpu",), "there is no provider 'tpu'", "cpu, cuda", id="unknown"),
        pytest.param(("cuda", "tensorrt"), "nothing can be measured here", "another --provider", id="none-of-two"),
    ],
)
def test_a_sole_provider_that_is_missing_is_a_usage_error(
    providers: tuple[str, ...], message: str, remedy: str, tmp_path: Path, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compactor.benching.engines.importlib.util.find_spec", lambda name: None)
    with pytest.raises((UsageError, ProviderUnavailableError)) as caught:
        resolve_targets([artefact(tmp_path / "compact")], providers=providers)
    assert message in caught.value.what
    assert remedy in (caught.value.todo or "")


# Bad input


def _text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def _empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def _folder_of_graphs(folder: Path, *, config: bool) -> Path:
    graph(folder / "hub" / "onnx" / "model.onnx")
    if config:
        (folder / "hub" / "config.json").write_text(json.dumps(checkpoints.config()))
    return folder / "hub"


def _changed_artefact(folder: Path) -> Path:
    compact = artefact(folder / "compact")
    graph(compact / "onnx" / "model.onnx", table=np.float64)
    return compact


def _pickled(folder: Path) -> Path:
    model = model_directory(folder / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    return model


def _without_weights(folder: Path) -> Path:
    file = graph(folder / "model.onnx", external=True)
    (folder / "model.onnx_data").unlink()
    return file


BAD = [
    pytest.param(lambda tmp: tmp / "nope", "no such file or folder", "nothing is downloaded", id="missing"),
    pytest.param(_empty_folder, "the folder is empty", "an artefact or a model directory", id="empty-folder"),
    pytest.param(lambda tmp: _text(tmp / "a.tsv", "x"), "not an .onnx file", "give an artefact", id="other-file"),
    pytest.param(lambda tmp: _text(tmp / "a.onnx", "no graph"), "not an ONNX graph", "", id="text"),
    pytest.param(lambda tmp: _text(tmp / "a.onnx", ""), "it has no inputs", "", id="empty-file"),
    pytest.param(lambda tmp: _folder_of_graphs(tmp, config=False), "no artefact and no model", "model.onnx", id="hub"),
    pytest.param(lambda tmp: _folder_of_graphs(tmp, config=True), "no weights for PyTorch", "model.onnx", id="optimum"),
    pytest.param(_changed_artefact, "the artefact was changed", "the .onnx file itself", id="changed-artefact"),
    pytest.param(_pickled, "the weights are pickled", "safetensors", id="pickled"),
    pytest.param(_without_weights, "weights are missing: 'model.onnx_data'", "copy that file", id="no-weights"),
    pytest.param(
        lambda tmp: graph(tmp / "a.onnx", inputs=("input_ids", "past_key_values")),
        "wants an input 'past_key_values', which cannot be filled",
        "input_ids, attention_mask, token_type_ids, pixel_values",
        id="unknown-input",
    ),
    pytest.param(
        lambda tmp: graph(tmp / "a.onnx", kind=TensorProto.STRING), "'input_ids' as STRING", "INT64", id="type"
    ),
    pytest.param(lambda tmp: graph(tmp / "a.onnx", shape=(1, 2, 3)), "with 3 axes instead of 2", "", id="axes"),
    pytest.param(
        lambda tmp: graph(tmp / "a.onnx", inputs=("attention_mask",)), "takes neither input_ids nor", "", id="no-ids"
    ),
    pytest.param(
        lambda tmp: model_directory(tmp / "model", "BertForNothing"),
        "'BertForNothing' stands for no task",
        "'architectures'",
        id="no-task",
    ),
    pytest.param(
        lambda tmp: checkpoints.write(tmp / "model", model_config=checkpoints.config(architectures=None)),
        "names no class in 'architectures'",
        "'architectures'",
        id="no-class",
    ),
]


@pytest.mark.parametrize(("make", "message", "remedy"), BAD)
def test_a_bad_target_is_named_in_one_line(
    make: Callable[[Path], Path], message: str, remedy: str, tmp_path: Path
) -> None:
    target = make(tmp_path)
    with pytest.raises(ModelDirectoryError) as caught:
        resolve_targets([target])
    assert message in caught.value.what
    assert "\n" not in str(caught.value.what)
    assert remedy in (caught.value.todo or "")
    assert "--task" not in (caught.value.todo or ""), "which bench does not have"
    assert str(target) in (caught.value.where or "")


def test_a_graph_whose_vocabulary_nobody_knows(tmp_path: Path) -> None:
    file = graph(tmp_path / "a.onnx")
    model = onnx.load(file)
    model.graph.node[1].op_type = "GatherElements"
    onnx.save(model, file)
    with pytest.raises(ModelDirectoryError, match="the size of the vocabulary is unknown") as caught:
        resolve_targets([file])
    assert "config.json beside" in (caught.value.todo or "")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"outputs": ("start_logits", "end_logits")}, id="another-task"),
        pytest.param({"inputs": ("pixel_values",), "kind": FLOAT, "shape": ("b", 3, 8, 8)}, id="images"),
        pytest.param(
            {"inputs": ("pixel_values",), "kind": FLOAT, "shape": ("b", 3, 8, 8), "outputs": ("x",)}, id="unknown"
        ),
    ],
)
def test_targets_for_different_tasks_are_not_compared(other: dict[str, Any], tmp_path: Path) -> None:
    files = [graph(tmp_path / "a.onnx"), graph(tmp_path / "b.onnx", **other)]
    for order in (files, files[::-1]):
        with pytest.raises(UsageError, match="different tasks"):
            resolve_targets(order)
        with pytest.raises(UsageError, match="different tasks"):
            resolve_targets(order[:1], baseline=order[1])


def test_no_target_at_all() -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        resolve_targets([])


# Shapes


def case(batch: int, seq: int | None) -> Case:
    return Case(f"{batch}x{seq}" if seq else f"batch {batch}", batch, seq, [], batch, 1, 1)


@pytest.mark.parametrize(
    ("shape", "cases", "message", "remedy"),
    [
        pytest.param((1, 128), [case(1, 128)], None, None, id="fits"),
        pytest.param((1, 128), [case(1, 128), case(1, 32)], "fixed to 1x128, and cannot take 1x32",
                     "give --batch 1 --seq 128", id="length"),
        pytest.param((8, "s"), [case(1, 128)], "fixed to 8xN, and cannot take 1x128", "give --batch 8", id="batch"),
        pytest.param(("b", 64), [case(2, 64)], None, None, id="free-batch"),
        pytest.param(("b", 64), [case(1, None)], "fixed to Nx64, and cannot take batch 1", "--seq 64", id="real-text"),
    ],
)  # fmt: skip
def test_a_graph_of_fixed_size_takes_that_size_only(
    shape: Sequence[Axis], cases: list[Case], message: str | None, remedy: str | None, tmp_path: Path
) -> None:
    targets = resolve_targets([graph(tmp_path / "a.onnx", shape=shape)])
    if message is None:
        targets.refuse_other_shapes(cases)
        return
    with pytest.raises(UsageError, match=message) as caught:
        targets.refuse_other_shapes(cases)
    assert remedy is not None and remedy in (caught.value.todo or "")
    assert caught.value.where == str(tmp_path / "a.onnx")


def test_a_fixed_graph_that_does_not_run_forbids_nothing(tmp_path: Path) -> None:
    targets = resolve_targets([graph(tmp_path / "a.onnx", shape=(1, 128))])
    skipped = [dataclasses.replace(each, reason="not run: no CUDA device") for each in targets.variants]
    dataclasses.replace(targets, variants=skipped).refuse_other_shapes([case(1, 32)])


def test_a_length_over_the_models_maximum(tmp_path: Path) -> None:
    targets = resolve_targets([artefact(tmp_path / "compact")])
    targets.refuse_other_shapes([case(1, checkpoints.POSITIONS)])
    with pytest.raises(UsageError, match=f"at most {checkpoints.POSITIONS} tokens, not {checkpoints.POSITIONS + 1}"):
        targets.refuse_other_shapes([case(1, checkpoints.POSITIONS + 1)])

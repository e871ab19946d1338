from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
import types

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from compactor.benching.engines import not_run_reason, open_engine, ort
from compactor.benching.plan import Variant
from compactor.errors import ModelDirectoryError, UsageError
from compactor.runtime import providers
from compactor.runtime.binding import BoundSession
from compactor.runtime.errors import ProviderUnavailableError
from compactor.runtime.sessions import RECORD_PLACEMENT, open_session, open_with_options, session_options
from tests.compactor import checkpoints, families
from tests.runtime.graphs import VOCAB, embedding, make_model, save


def variant(engine, path, provider="cpu", precision="fp32", **options):
    return Variant("row", "the row", "target", engine, provider, precision, path, options)


def start(engine, path, *others, threads=1, spinning=False, **options):
    return open_engine(variant(engine, path, *others, **options), threads=threads, spinning=spinning)


def tokens(batch=2, length=5, seed=0):
    """What a workload's file holds: every input that anyone may want, padded on the right."""
    random = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    mask[-1, length // 2 + 1 :] = 0
    ids, types = random.integers(1, VOCAB, mask.shape), random.integers(0, 2, mask.shape)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types * mask}


@pytest.fixture
def graph(tmp_path):
    save(embedding(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return families.save(tmp_path_factory.mktemp("bert"), "bert", head="ForQuestionAnswering")


def typed_graph(element_type):
    """Doubles its one input, of a type of one's choice."""
    value = functools.partial(helper.make_tensor_value_info, elem_type=element_type, shape=["batch", "sequence"])
    node = helper.make_node("Identity", ["input_ids"], ["y"])
    return make_model([node], [value("input_ids")], [value("y")])


# What all of them have in common


@pytest.mark.parametrize(
    ("engine", "provider"), [("openvino", "cuda"), ("torch", "tensorrt"), ("onnxruntime", "torch")]
)
def test_refuses_a_provider_that_the_engine_does_not_run_on(graph, engine, provider):
    with pytest.raises(UsageError, match=f"{engine} does not run on '{provider}'"):
        start(engine, graph, provider)


@pytest.mark.parametrize("engine", ["onnxruntime", "torch", "ctranslate2"])
def test_refuses_an_option_that_it_would_ignore(graph, engine):
    with pytest.raises(UsageError, match="no option 'compil'"):
        start(engine, graph, compil=True)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_says_which_input_it_cannot_fill(graph, engine):
    pytest.importorskip(engine)
    with pytest.raises(ModelDirectoryError, match="'attention_mask', which cannot be filled") as caught:
        start(engine, graph).prepare({"pixel_values": np.zeros(1), "input_ids": np.zeros((1, 1))})
    assert caught.value.todo == "inputs that can be: input_ids, pixel_values"
    assert caught.value.where == str(graph)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("content", "message"), [(None, "no model file"), (b"nonsense", "cannot (open|compile) the graph")]
)
def test_refuses_a_graph_that_is_missing_or_broken(tmp_path, engine, content, message):
    pytest.importorskip(engine)
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelDirectoryError, match=message) as caught:
        start(engine, path)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_runs_a_graph_while_shapes_come_and_go_and_overwrites_nothing(graph, engine):
    pytest.importorskip(engine)
    running, session = start(engine, graph), open_session(graph, threads=1)
    results = []
    for batch, length in ((2, 5), (1, 7), (2, 5)):
        feeds = tokens(batch, length, seed=len(results))
        wanted = session.run(None, {name: feeds[name] for name in ("input_ids", "attention_mask")})[0]
        prepared = running.prepare(feeds)
        assert list(prepared) == ["input_ids", "attention_mask"]
        results.append((running.run(prepared)["last_hidden_state"], wanted))
    for found, wanted in results:  # after the last run
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("element_type", ["INT32", "INT64", "FLOAT", "FLOAT16"])
def test_casts_an_input_to_the_type_that_the_graph_declares(tmp_path, engine, element_type):
    pytest.importorskip(engine)
    save(typed_graph(getattr(TensorProto, element_type)), tmp_path / "model.onnx")
    running = start(engine, tmp_path / "model.onnx")
    transposed = tokens()["input_ids"].T  # not contiguous either
    prepared = running.prepare({"input_ids": transposed})
    assert prepared["input_ids"].flags.c_contiguous, "the engine would make it so on the clock"
    result = running.run(prepared)["y"]
    assert result.dtype == getattr(np, element_type.lower().replace("float", "float32").replace("3216", "16"))
    np.testing.assert_array_equal(result, transposed)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch", "ctranslate2"])
def test_the_environment_is_json(request, engine):
    pytest.importorskip(engine)
    path = request.getfixturevalue({"torch": "bert", "ctranslate2": "encoder"}.get(engine, "graph"))
    environment = start(engine, path, threads=2).environment
    assert json.loads(json.dumps(environment)) == environment
    assert environment["threads"] == 2
    assert environment["providers"]
    assert environment[engine]  # its version


def test_a_process_that_runs_onnxruntime_loads_no_torch_and_torch_is_told_not_to_spin(graph, bert, root):
    lines = [
        "import os, sys, pathlib",
        "from compactor.benching.engines import open_engine",
        "from compactor.benching.plan import Variant",
        "def start(engine, path):",
        "    variant = Variant('a', 'a', 'a', engine, 'cpu', 'fp32', pathlib.Path(path))",
        "    return open_engine(variant, threads=1, spinning=False)",
        f"start('onnxruntime', {str(graph)!r})",
        "assert not {'torch', 'transformers', 'openvino', 'ctranslate2'} & set(sys.modules), 'loaded too much'",
        f"environment = start('torch', {str(bert)!r}).environment",
        "assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'",
        "print(environment['spinning'], environment['threads'], environment['interop_threads'])",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=root, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "1", "1"], done.stderr


# ONNX Runtime


def test_onnxruntime_gets_its_threads_and_spins_as_told(graph):
    running = start("onnxruntime", graph, threads=2, spinning=True)
    options = running._session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert running.environment["spinning"] is True
    assert running.environment["providers"] == ["CPUExecutionProvider"]


def test_refuses_an_input_that_no_array_can_hold(tmp_path):
    save(typed_graph(TensorProto.STRING), tmp_path / "model.onnx")
    with pytest.raises(ModelDirectoryError, match=r"'input_ids' is of type tensor\(string\)"):
        start("onnxruntime", tmp_path / "model.onnx")


def test_the_refusal_of_a_gpu_says_what_to_install(graph, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderUnavailableError, match="'cuda' provider is not available") as caught:
        start("onnxruntime", graph, "cuda")
    assert "onnxruntime-gpu[cuda,cudnn]" in caught.value.todo


@pytest.fixture
def pretend_gpu(monkeypatch):
    """Sessions that are asked for on a GPU open on the CPU; returns what was asked for."""
    asked = []

    def open_on_the_cpu(path, *, provider, threads, allow_spinning, provider_options):
        asked.append((provider, provider_options))
        options = session_options(threads=threads, allow_spinning=allow_spinning)
        options.add_session_config_entry(RECORD_PLACEMENT, "1")
        return open_with_options(path, options)

    monkeypatch.setattr(ort, "open_session", open_on_the_cpu)
    monkeypatch.setattr(ort, "BoundSession", functools.partial(BoundSession, device="cpu"))
    monkeypatch.setattr(ort, "cuda_device_names", lambda: ("NVIDIA L4", "NVIDIA T4"))
    return asked


def test_on_a_gpu_the_inputs_and_outputs_are_bound(graph, pretend_gpu):
    running, session = start("onnxruntime", graph, "cuda", "fp16"), open_session(graph, threads=1)
    running._session.run = None  # the way that leaves the copies to ONNX Runtime
    for shape in ((2, 5), (1, 3)):
        prepared = running.prepare({name: array.astype(np.int32) for name, array in tokens(*shape).items()})
        result = running.run(prepared)["last_hidden_state"]
        np.testing.assert_array_equal(result, session.run(None, prepared)[0])
    assert running.environment["device"] == "NVIDIA L4"
    assert running.environment["io_binding"] is True
    assert running.environment["nodes_on_cpu"]["Attention"] == 1
    assert running.environment["nodes"] == {"CPUExecutionProvider": sum(running.environment["nodes_on_cpu"].values())}


@pytest.mark.parametrize(
    ("provider", "precision", "options", "expected"),
    [
        ("cuda", "fp32", {}, {"use_tf32": "0"}),
        ("cuda", "fp32", {"tf32": True}, {"use_tf32": "1"}),
        ("cuda", "fp16", {"provider_options": {"device_id": "1"}}, {"use_tf32": "0", "device_id": "1"}),
        ("tensorrt", "fp32", {}, {}),
        ("tensorrt", "fp16", {}, {"trt_fp16_enable": "1"}),
    ],
)
def test_a_gpu_is_told_which_numbers_to_use_and_the_report_is_told_too(
    graph, pretend_gpu, provider, precision, options, expected
):
    running = start("onnxruntime", graph, provider, precision, **options)
    assert pretend_gpu == [(provider, expected)]
    assert running.environment["provider_options"] == expected


def test_the_buffers_are_on_the_gpu_that_runs_the_graph(graph, pretend_gpu, monkeypatch):
    asked = []
    monkeypatch.setattr(ort, "BoundSession", lambda session, *, device_id: asked.append(device_id))
    running = start("onnxruntime", graph, "cuda", provider_options={"device_id": "1"})
    assert asked == [1]
    assert running.environment["device"] == "NVIDIA T4"


# OpenVINO


@pytest.mark.parametrize(("precision", "hint"), [("fp32", "f32"), ("bf16", "bf16"), ("int8", None)])
def test_openvino_computes_in_the_precision_of_the_row(graph, monkeypatch, precision, hint):
    openvino = pytest.importorskip("openvino")
    asked = []

    class Core:
        def compile_model(self, path, device, properties):
            asked.append((device, properties.get("INFERENCE_PRECISION_HINT")))
            return original().compile_model(path, device, properties | {"INFERENCE_PRECISION_HINT": "f32"})

    original = openvino.Core
    monkeypatch.setattr(openvino, "Core", Core)
    start("openvino", graph, "openvino", precision)
    assert asked == [("CPU", hint)]


def test_openvino_runs_for_latency_in_one_stream(graph):
    pytest.importorskip("openvino")
    properties = start("openvino", graph, threads=2).environment["properties"]
    assert properties == {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": "2",
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
    }


def test_openvino_takes_properties_and_records_them(graph):
    pytest.importorskip("openvino")
    running = start("openvino", graph, "openvino", "int8", PERFORMANCE_HINT="THROUGHPUT", ENABLE_CPU_PINNING="NO")
    assert running.environment["properties"]["PERFORMANCE_HINT"] == "THROUGHPUT"
    assert running.environment["properties"]["ENABLE_CPU_PINNING"] == "False"


def test_openvino_refuses_a_property_that_it_does_not_know(graph):
    pytest.importorskip("openvino")
    with pytest.raises(ModelDirectoryError, match=r"cannot compile the graph: .*NO_SUCH"):
        start("openvino", graph, NO_SUCH="1")


def test_openvino_runs_a_file_of_its_own(graph, tmp_path):
    openvino = pytest.importorskip("openvino")
    openvino.save_model(openvino.Core().read_model(graph), tmp_path / "model.xml", compress_to_fp16=False)
    results = []
    for path in (graph, tmp_path / "model.xml"):
        running = start("openvino", path)
        results.append(running.run(running.prepare(tokens()))["last_hidden_state"])
    np.testing.assert_allclose(*results, atol=1e-6)


@pytest.mark.parametrize(("engine", "name"), [("openvino", "OpenVINO"), ("ctranslate2", "CTranslate2")])
def test_says_what_to_install_for_a_peer(graph, monkeypatch, engine, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProviderUnavailableError, match=f"{name} is not installed") as caught:
        start(engine, graph)
    assert caught.value.todo == "pip install 'compactor[peers]'"


# PyTorch


def masked(feeds):
    """The model's own outputs."""
    model = families.build("bert", "ForQuestionAnswering")
    with torch.no_grad():
        result = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    return {name: result[name].numpy() for name in ("start_logits", "end_logits")}


@pytest.mark.parametrize("provider", ["torch", "cpu"])
def test_torch_gives_the_outputs_of_the_task(bert, provider):
    running = start("torch", bert, provider)
    feeds = tokens()
    prepared = running.prepare({**feeds, "pixel_values": np.zeros(1)})
    assert list(prepared) == ["input_ids", "attention_mask", "token_type_ids"]
    results = running.run(prepared)
    wanted = masked(feeds)
    assert list(results) == list(wanted)
    for name in wanted:
        np.testing.assert_allclose(results[name], wanted[name], atol=1e-5)
    assert sum(parameter.numel() for parameter in running.module.parameters()) > 1000


def test_torch_casts_token_ids(bert):
    running, feeds = start("torch", bert), tokens()
    narrow = {name: array.astype(np.int32) for name, array in feeds.items()}
    np.testing.assert_allclose(
        running.run(running.prepare(narrow))["end_logits"], masked(feeds)["end_logits"], atol=1e-5
    )


def test_torch_folds_the_masks_of_nn_pruning(tmp_path):
    weights = checkpoints.tensors() | checkpoints.hybrid_scores()
    path = checkpoints.write(tmp_path / "model", weights, masks=checkpoints.sparse_args())
    module = start("torch", path).module
    query = module.bert.encoder.layer[0].attention.self.query.weight
    assert 0 < int((query == 0).sum()) < query.numel()


def shift_answers(module):
    """A transform: what another tool might make of a model."""
    for name, parameter in module.named_parameters():
        if name == "qa_outputs.bias":
            parameter.data += 1.0
    return module


def test_torch_runs_what_a_transform_makes_of_the_model(bert):
    feeds = tokens()
    running = start("torch", bert, transform=f"{__name__}:shift_answers")
    results = running.run(running.prepare(feeds))
    np.testing.assert_allclose(results["start_logits"], masked(feeds)["start_logits"] + 1, atol=1e-5)


@pytest.mark.parametrize("name", ["no_such_module:f", f"{__name__}:no_such_function", "nothing"])
def test_torch_says_that_there_is_no_such_transform(bert, name):
    with pytest.raises(UsageError, match="there is no transform"):
        start("torch", bert, transform=name)


def test_torch_runs_images(tmp_path):
    path = families.save(tmp_path / "vit", "vit", "ForImageClassification")
    running = start("torch", path, "cpu", "bf16")
    pixels = np.random.default_rng(0).standard_normal((2, 3, families.IMAGE, families.IMAGE))
    result = running.run(running.prepare({"pixel_values": pixels}))["logits"]
    assert result.shape == (2, families.LABELS)
    assert np.isfinite(result).all()


@pytest.mark.parametrize(
    ("precision", "options", "dtype"),
    [("bf16", {}, "bfloat16"), ("fp16", {}, "float16"), ("fp32", {"dtype": "bfloat16"}, "bfloat16")],
)
def test_torch_runs_in_half_precision_and_gives_float32(bert, precision, options, dtype):
    running, feeds = start("torch", bert, "cpu", precision, **options), tokens()
    results = running.run(running.prepare(feeds))
    assert running.environment["dtype"] == dtype
    assert running.module.dtype is getattr(torch, dtype)
    for name, wanted in masked(feeds).items():
        assert results[name].dtype == np.float32
        np.testing.assert_allclose(results[name], wanted, atol=0.1)


def test_torch_refuses_a_precision_that_it_has_not(bert):
    with pytest.raises(UsageError, match="does not run the model in 'int8'"):
        start("torch", bert, "cpu", "int8")


def test_torch_compiles_once_for_all_lengths(bert, monkeypatch):
    compiled = []

    def backend(module, example):
        compiled.append(module)
        return module

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    running = start("torch", bert, compile=True)
    for shape in ((2, 5), (3, 7), (4, 11)):
        feeds = tokens(*shape)
        results = running.run(running.prepare(feeds))
        np.testing.assert_allclose(results["start_logits"], masked(feeds)["start_logits"], atol=1e-5)
    assert len(compiled) == 1
    assert running.environment["compile"] is running.environment["dynamic"] is True
    assert not hasattr(running.module, "_orig_mod"), "the module to count is not the compiled one"


def test_torch_says_what_the_compiler_lacks(bert, monkeypatch):
    def backend(module, example):
        raise RuntimeError("no working C++ compiler\nlong explanation")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    running = start("torch", bert, compile=True)
    with pytest.raises(ProviderUnavailableError, match=r"torch.compile fails: .*no working C\+\+ compiler") as caught:
        running.run(running.prepare(tokens()))
    assert "g++" in caught.value.todo
    assert len(str(caught.value).splitlines()) == 3


def test_torch_refuses_cuda_where_it_sees_no_device(bert, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ProviderUnavailableError, match="sees no CUDA device") as caught:
        start("torch", bert, "cuda")
    assert torch.__version__ in caught.value.where


def test_torch_on_cuda_waits_for_the_device(bert, monkeypatch):
    waited = []
    running = start("torch", bert)
    monkeypatch.setattr(running, "_device", "cuda")
    move, moved = torch.Tensor.to, []

    def move_nowhere(tensor, *where, **options):
        moved.extend(where)
        return tensor if where == ("cuda",) else move(tensor, *where, **options)

    monkeypatch.setattr(torch.Tensor, "to", move_nowhere)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append("device"))
    prepared = running.prepare(tokens())
    assert moved == [], "the copies are on the clock"
    running.run(prepared)
    assert moved.count("cuda") == 3
    assert waited == ["device"]


# CTranslate2


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A dense encoder as CTranslate2 stores it."""
    converters = pytest.importorskip("ctranslate2.converters")
    folder = tmp_path_factory.mktemp("encoder")
    model = families.build("bert", "Model", planted=None)
    model.config.position_embedding_type = "absolute"  # transformers 5 dropped the key that the converter asks for
    model.save_pretrained(folder / "source")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(checkpoints.VOCABULARY - 5))]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    from transformers import BertTokenizer

    BertTokenizer(str(vocabulary)).save_pretrained(folder / "source")
    converters.TransformersConverter(str(folder / "source")).convert(str(folder / "converted"))
    return folder / "converted"


def test_ctranslate2_gives_the_hidden_state_of_real_tokens(encoder):
    running, feeds = start("ctranslate2", encoder), tokens(3, 6)
    found = running.run(running.prepare(feeds))["last_hidden_state"]
    model = families.build("bert", "Model", planted=None)
    with torch.no_grad():
        wanted = model(**{name: torch.from_numpy(array) for name, array in feeds.items()}).last_hidden_state.numpy()
    real = feeds["attention_mask"] == 1
    np.testing.assert_allclose(found[real], wanted[real], atol=1e-4)
    assert running.environment["task_head"] == "not run"


def test_ctranslate2_quantizes_as_the_precision_says(encoder):
    assert start("ctranslate2", encoder, "cpu", "int8").environment["compute_type"] == "int8_float32"
    assert start("ctranslate2", encoder, "cpu", "int8", compute_type="float32").environment["compute_type"] == "float32"


def test_ctranslate2_refuses_padding_on_the_left(encoder):
    feeds = {name: array[:, ::-1] for name, array in tokens().items()}
    with pytest.raises(UsageError, match="padding on the right"):
        start("ctranslate2", encoder).prepare(feeds)


def test_ctranslate2_refuses_a_folder_that_it_did_not_write(tmp_path):
    pytest.importorskip("ctranslate2")
    with pytest.raises(ModelDirectoryError, match="CTranslate2 cannot open the model"):
        start("ctranslate2", tmp_path)


# Rows without numbers


@pytest.mark.parametrize(
    ("engine", "provider", "devices", "installed", "reason"),
    [
        ("onnxruntime", "cpu", 0, True, None),
        ("onnxruntime", "cuda", 0, True, "not run: no CUDA device"),
        ("torch", "cuda", 0, True, "not run: no CUDA device"),
        ("torch", "cuda", 1, True, None),
        ("torch", "torch", 0, True, None),
        ("openvino", "openvino", 0, True, None),
        ("openvino", "openvino", 0, False, "not run: openvino is not installed: pip install 'compactor[peers]'"),
        ("ctranslate2", "cpu", 0, False, "not run: ctranslate2 is not installed: pip install 'compactor[peers]'"),
    ],
)
def test_says_why_a_row_has_no_numbers(monkeypatch, engine, provider, devices, installed, reason):
    monkeypatch.setattr(providers, "count_cuda_devices", lambda: devices)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: types.SimpleNamespace() if installed else None)
    assert not_run_reason(engine, provider) == reason

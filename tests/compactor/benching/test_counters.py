from __future__ import annotations

import functools
import hashlib
import json
import math

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from compactor.benching import counters
from compactor.benching.counters import (
    count_macs,
    file_bytes,
    model_hash,
    parameters,
    profile,
    spread,
    torch_macs,
)
from compactor.benching.engines.torch import TorchEngine
from compactor.benching.plan import Variant
from compactor.benching.report import report_schema
from compactor.checkpoint import read_checkpoint
from compactor.schema import schema_problems
from tests.compactor import checkpoints, families
from tests.compactor.benching.test_engines import tokens
from tests.runtime.graphs import WIDTH, dense_layer, make_model, save

WEIGHTS = WIDTH * WIDTH + WIDTH  # of dense_layer


def variant(path, *, engine="onnxruntime", precision="fp32", **options) -> Variant:
    provider = "torch" if engine == "torch" else "cpu"
    return Variant("row", "the row", "target", engine, provider, precision, path, options)


@pytest.fixture
def graph(tmp_path):
    return variant(tmp_path / save(dense_layer(), tmp_path / "model.onnx"))


def cases(folder, **rows):
    """Cases whose batches have so many rows each."""
    found = []
    for case, counts in rows.items():
        files = [folder / f"{case}.{index}.npz" for index in range(len(counts))]
        for file, count in zip(files, counts, strict=True):
            np.savez(file, x=np.ones((count, WIDTH), np.float32), unused=np.ones(1))
        found.append({"id": case, "files": [str(file) for file in files]})
    return found


def spec(variant, cases, *, runs=3, layers=False, sample="call"):
    return {
        "variant": variant.to_json(),
        "threads": 1,
        "spinning": False,
        "sample": sample,
        "cases": cases,
        "profile": {"runs": runs, "layers": layers},
    }


# Profiles


def test_profiles_every_case_as_the_report_wants_it(graph, tmp_path):
    result = profile(spec(graph, cases(tmp_path, small=[2], large=[9]), layers=True))
    schema = report_schema()
    for case, rows in (("small", 2), ("large", 9)):
        block = result["profile"][case]
        assert schema_problems(block, {"$ref": "#/$defs/profile", "$defs": schema["$defs"]}, "profile") == []
        assert (block["case"], block["runs"], block["macs"]) == (case, 3, rows * WIDTH * WIDTH)
        assert {row["name"] for row in block["operators"]} == {"Gemm", "Gelu"}
        assert sum(row["ms"] for row in block["operators"]) == pytest.approx(block["total_ms"], abs=1e-5)
        assert [layer["name"] for layer in block["layers"]] == ["other"]
        assert (block["placement"], block["misplaced"]) == ({"cpu": 2}, [])
    assert result["notes"] == []
    assert json.loads(json.dumps(result)) == result


def test_layers_are_left_out_unless_asked_for(graph, tmp_path):
    assert profile(spec(graph, cases(tmp_path, small=[2])))["profile"]["small"]["layers"] is None


def test_one_run_is_the_mean_batch_or_the_whole_pass(graph, tmp_path):
    mixed = cases(tmp_path, mixed=[3, 9])
    call, whole = (profile(spec(graph, mixed, sample=sample))["profile"]["mixed"] for sample in ("call", "pass"))
    assert (call["runs"], call["macs"]) == (6, 6 * WIDTH * WIDTH)
    assert (whole["runs"], whole["macs"]) == (3, 12 * WIDTH * WIDTH)
    assert whole["total_ms"] > 0
    (gemm,) = [row for row in whole["operators"] if row["name"] == "Gemm"]
    assert (gemm["count"], gemm["macs"]) == (1, 12 * WIDTH * WIDTH)


@pytest.mark.parametrize(("sample", "macs"), [("call", 5), ("pass", 20)])
def test_many_batches_are_counted_by_some_of_them_and_that_is_said(graph, tmp_path, monkeypatch, sample, macs):
    monkeypatch.setattr(counters, "MAX_BATCHES", 2)
    result = profile(spec(graph, cases(tmp_path, many=[4, 100, 6, 100]), sample=sample))
    assert result["profile"]["many"]["macs"] == macs * WIDTH * WIDTH
    assert result["profile"]["many"]["runs"] == (2 if sample == "call" else 1)
    assert result["notes"] == [
        "Profiles and multiply-adds of many are from 2 of its 4 batches, evenly spaced.",
    ]


def test_says_which_operators_have_no_formula(tmp_path):
    node = helper.make_node("Einsum", ["x", "w"], ["y"], equation="ij,jk->ik")
    value = dense_layer().graph
    model = make_model([node], [value.input[0]], [value.output[0]], [("w", np.ones((WIDTH, WIDTH), np.float32))])
    result = profile(spec(variant(tmp_path / save(model, tmp_path / "m.onnx")), cases(tmp_path, a=[2], b=[3])))
    assert result["profile"]["a"]["macs"] is None
    assert result["notes"] == ["Multiply-adds are not known, because there is no formula for: 1 Einsum."]


@pytest.mark.parametrize(
    ("most", "expected"), [(10, [0, 1, 2, 3, 4]), (5, [0, 1, 2, 3, 4]), (2, [0, 2]), (3, [0, 1, 3]), (1, [0])]
)
def test_spreads_a_choice_evenly(most, expected):
    assert spread(list(range(5)), most) == expected


# PyTorch


def dense_macs(batch, length, *, labels=2):
    """Multiply-adds of the checkpoint of ``tests.compactor.families``: BERT with a classifier."""
    config = families.make_config("bert")
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    projections = batch * length * (4 * width * width + 2 * width * inner)
    attention = 2 * batch * length * length * width
    return layers * (projections + attention) + batch * (width * width + width * labels)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return families.save(tmp_path_factory.mktemp("bert"), "bert")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_counts_a_dense_model_in_pytorch(bert, attention):
    engine = TorchEngine(variant(bert, engine="torch"), threads=1, spinning=False)
    engine.module.set_attn_implementation(attention)
    labels = engine.module.config.num_labels
    for batch, length in ((1, 7), (3, 12)):
        prepared = engine.prepare(tokens(batch, length))
        assert count_macs(functools.partial(engine.run_uncompiled, prepared)) == dense_macs(
            batch, length, labels=labels
        )


@pytest.mark.parametrize("sample", ["call", "pass"])
def test_counts_the_mean_batch_or_the_whole_pass_in_pytorch(bert, tmp_path, sample):
    engine = TorchEngine(variant(bert, engine="torch"), threads=1, spinning=False)
    shapes = [(1, 7), (3, 12)]
    files = []
    for index, shape in enumerate(shapes):
        files.append(str(tmp_path / f"{index}.npz"))
        np.savez(files[-1], **tokens(*shape))
    expected = sum(dense_macs(*shape, labels=engine.module.config.num_labels) for shape in shapes)
    found = torch_macs(engine, {"cases": [{"id": "mixed", "files": files}], "sample": sample})
    assert found == {"macs": {"mixed": expected if sample == "pass" else round(expected / 2)}}


def test_counts_attention_by_the_numbers_of_queries_and_keys():
    class Attend(torch.nn.Module):
        def forward(self, q, k, v):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    inputs = {"q": torch.ones(2, 4, 5, 8), "k": torch.ones(2, 4, 6, 8), "v": torch.ones(2, 4, 6, 8)}
    assert count_macs(lambda: Attend()(**inputs)) == 2 * 4 * 5 * 6 * (8 + 8)


# Files


def test_weighs_a_graph_in_one_file(graph):
    data = graph.path.read_bytes()
    assert parameters(graph) == WEIGHTS
    assert file_bytes(graph) == len(data)
    assert model_hash(graph) == hashlib.sha256(data).hexdigest()


def test_weighs_a_graph_with_its_weights_beside_it(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(dense_layer(), path, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    (tmp_path / "other").write_bytes(b"not of this model")
    data = path.read_bytes() + (tmp_path / "model.onnx_data").read_bytes()
    assert parameters(variant(path)) == WEIGHTS
    assert file_bytes(variant(path)) == len(data)
    assert model_hash(variant(path)) == hashlib.sha256(data).hexdigest()


def test_weights_outside_of_the_graph_s_folder_are_not_read(tmp_path):
    path = tmp_path / "graph" / "model.onnx"
    path.parent.mkdir()
    model = dense_layer()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../secret")
    model.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    (tmp_path / "secret").write_bytes(b"1234")
    assert file_bytes(variant(path)) == path.stat().st_size
    assert model_hash(variant(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_graph_that_changes_is_read_again(graph):
    assert parameters(graph) == WEIGHTS
    model = dense_layer()
    del model.graph.initializer[1]
    save(model, graph.path)
    assert parameters(graph) == WIDTH * WIDTH


def test_weighs_an_openvino_graph(tmp_path):
    (tmp_path / "model.xml").write_text(
        "<net><layers>"
        '<layer id="0" type="Parameter"><data shape="?,?" element_type="i64"/></layer>'
        '<layer id="1" type="Const"><data element_type="f16" shape="3, 4" size="24"/></layer>'
        '<layer id="2" type="Const"><data element_type="i8" shape="5,2" size="10"/></layer>'
        '<layer id="3" type="Const"><data element_type="f32" shape="" size="4"/></layer>'
        '<layer id="4" type="Const"><data element_type="i64" shape="7" size="56"/></layer>'
        "</layers></net>"
    )
    (tmp_path / "model.bin").write_bytes(b"0123456789")
    found = variant(tmp_path / "model.xml", engine="openvino")
    assert parameters(found) == 12 + 10 + 1
    assert file_bytes(found) == 10 + (tmp_path / "model.xml").stat().st_size


def test_weighs_a_model_directory(bert):
    found = variant(bert, engine="torch")
    weights = (bert / "model.safetensors").read_bytes()
    stored = read_checkpoint(bert).tensors.values()
    assert parameters(found) == sum(tensor.numel() for tensor in stored if tensor.is_floating_point())
    assert file_bytes(found) == len(weights)
    assert model_hash(found) == hashlib.sha256(weights).hexdigest()


def test_scores_that_only_training_needs_are_no_parameters(tmp_path):
    plain, scored = tmp_path / "plain", tmp_path / "scored"
    checkpoints.write(plain)
    checkpoints.write(scored, checkpoints.tensors() | checkpoints.hybrid_scores(), masks=checkpoints.sparse_args())
    count = sum(math.prod(tensor.shape) for tensor in checkpoints.tensors().values() if tensor.is_floating_point())
    assert parameters(variant(plain, engine="torch")) == count
    assert parameters(variant(scored, engine="torch")) == count
    assert file_bytes(variant(scored, engine="torch")) > file_bytes(variant(plain, engine="torch"))


def test_pickled_weights_are_weighed_and_never_opened(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    found = variant(tmp_path, engine="torch")
    assert (parameters(found), file_bytes(found)) == (None, 8)


def test_weighs_a_converted_encoder(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"weights")
    found = variant(tmp_path, engine="ctranslate2")
    assert (parameters(found), file_bytes(found)) == (None, 7)


@pytest.mark.parametrize("name", ["absent.onnx", "broken.onnx", "absent.xml", "broken.xml", "absent"])
@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_a_missing_or_broken_model_has_no_weight_and_stops_nobody(tmp_path, name, engine):
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"\xff\xffnonsense")
    assert parameters(variant(tmp_path / name, engine=engine)) is None
    if name.startswith("absent"):
        assert file_bytes(variant(tmp_path / name, engine=engine)) is None
        assert model_hash(variant(tmp_path / name, engine=engine)) is None

"""Encoder-decoders: every part gives the same in PyTorch and in our graphs, and the report says what was run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import compactor
from compactor.benching import bench as benching
from compactor.benching import counters, processes, worker
from compactor.benching.counters import count_macs, file_bytes, model_hash, parameters, profile, torch_macs
from compactor.benching.engines import open_engine
from compactor.benching.engines.generating import search_settings
from compactor.benching.judging import describe_agreements, find_agreements
from compactor.benching.parts import DECODER_TOKENS, choose_parts, scoring_part, split_cases
from compactor.benching.plan import Case, Part, Settings, Variant
from compactor.benching.preparing import fill_sizes
from compactor.benching.processes import run_worker
from compactor.benching.report import load_report, report_problems, report_schema
from compactor.benching.request import Request
from compactor.benching.targets import resolve_targets
from compactor.errors import ModelDirectoryError, UsageError
from compactor.evaluation.inputs import InputSpec
from compactor.exporting.export import export
from compactor.manifest import load_manifest
from compactor.runtime.sampling import Clock
from compactor.schema import schema_problems
from tests.compactor.evaluation import summarizers
from tests.compactor.evaluation.summarizers import POSITIONS, ROWS, VOCABULARY

FAST: dict[str, Any] = {"rounds": 1, "duration_s": 0.01, "threads": 1, "spinning": False}
PAST, NEW = 5, 6
PARTS = [
    Part("encoder"),
    Part("first step"),
    Part("step", past=PAST),
    Part("generate", new_tokens=NEW, beams=1),
    Part("generate", new_tokens=NEW, beams=4),
]
BATCH, SOURCE = 3, 7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("summarizer")
    model = summarizers.save(folder / "model")
    return model, export(model, folder / "compact").path


@pytest.fixture(scope="module")
def variants(made: tuple[Path, Path]) -> dict[str, Variant]:
    found = resolve_targets([made[1]], baseline=made[0]).variants
    return {variant.precision if variant.engine == "onnxruntime" else "torch": variant for variant in found}


@pytest.fixture(scope="module")
def engines(variants: dict[str, Variant]) -> dict[str, Any]:
    return {name: open_engine(each, threads=1, spinning=False) for name, each in variants.items()}


@pytest.fixture
def small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benching, "_PEAK", {"size": 64, "seconds": 0.01})


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs workers here: a process of their own takes seconds to import what is imported already."""
    monkeypatch.setattr(processes, "_run", lambda command, threads: (worker.main(command[-1:]), ""))


def feeds(batch: int = BATCH, source: int = SOURCE) -> dict[str, Any]:
    """What a workload's file holds; the last source is padded."""
    random = np.random.default_rng(0)
    mask = np.ones((batch, source), np.int64)
    mask[-1, source // 2 :] = 0
    ids = random.integers(4, VOCABULARY, (batch, source))
    tokens = random.integers(4, VOCABULARY, (batch, PAST + 1))
    tokens[:, 0] = 2
    return {"input_ids": np.where(mask, ids, 1), "attention_mask": mask, DECODER_TOKENS: tokens, "unused": mask}


def result(engine: Any, part: Part, inputs: dict[str, Any] | None = None) -> Any:
    runner = engine.part(part)
    (output,) = runner.run(runner.prepare(feeds() if inputs is None else inputs)).values()
    return output


# What runs


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.words)
def test_every_part_gives_the_same_in_all_engines(engines: dict[str, Any], part: Part) -> None:
    expected, ours, quantized = (result(engines[name], part) for name in ("torch", "fp32", "int8"))
    if part.kind == "generate":
        assert expected.shape == (BATCH, 1 + NEW)
        assert (ours == expected).all()
        assert quantized.shape == expected.shape
    else:
        assert expected.shape == (BATCH, SOURCE, 32) if part.kind == "encoder" else (BATCH, 1, VOCABULARY)
        real = feeds()["attention_mask"].astype(bool) if part.kind == "encoder" else ...
        np.testing.assert_allclose(ours[real], expected[real], atol=1e-4)
        assert np.abs(quantized[real] - expected[real]).max() < 0.3 * np.abs(expected).max()


def test_a_step_is_what_the_model_gives_without_a_cache(engines: dict[str, Any]) -> None:
    inputs = feeds()
    with torch.no_grad():
        whole = (
            engines["torch"]
            .module(
                input_ids=torch.from_numpy(inputs["input_ids"]),
                attention_mask=torch.from_numpy(inputs["attention_mask"]),
                decoder_input_ids=torch.from_numpy(inputs[DECODER_TOKENS]),
            )
            .logits.numpy()
        )
    for engine in (engines["torch"], engines["fp32"]):
        np.testing.assert_allclose(result(engine, Part("first step"))[:, 0], whole[:, 0], atol=1e-4)
        np.testing.assert_allclose(result(engine, Part("step", past=PAST))[:, 0], whole[:, PAST], atol=1e-4)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.words)
@pytest.mark.parametrize("name", ["torch", "fp32"])
def test_a_call_leaves_the_next_one_what_it_found(engines: dict[str, Any], name: str, part: Part) -> None:
    runner = engines[name].part(part)
    prepared = runner.prepare(feeds())
    outputs = [next(iter(runner.run(prepared).values())) for _ in range(3)]
    assert (outputs[0] == outputs[2]).all() and (outputs[0] == outputs[1]).all()


def test_texts_have_all_their_tokens_whatever_the_model_wants(engines: dict[str, Any]) -> None:
    bias = engines["torch"].module.final_logits_bias
    bias[:, 2] = 1e4  # it wants to end at once
    try:
        texts = [
            result(engines["torch"], Part("generate", new_tokens=20, beams=beams, may_end=may_end))
            for beams in (1, 4)
            for may_end in (False, True)
        ]
    finally:
        bias[:, 2] = 0
    assert [found.shape[1] for found in texts] == [21, 2, 21, 2]
    assert not (texts[0][:, 1:-1] == 2).any()  # the last token is forced by the model's settings


def test_the_search_is_the_models_own_but_for_sampling_and_lengths(engines: dict[str, Any]) -> None:
    own = {"num_beams": 3, "do_sample": True, "temperature": 0.3, "length_penalty": 2.0, "no_repeat_ngram_size": 2}
    options = {"generation": own | {"max_length": 9, "min_length": 4, "forced_eos_token_id": 2}}
    variant = Variant("row", "row", "row", "torch", "torch", "fp32", Path("model"), options, generates=True)
    config = engines["torch"].module.config
    beams = search_settings(variant, config, Part("generate", new_tokens=20, beams=4))
    assert (beams.num_beams, beams.min_new_tokens, beams.max_new_tokens) == (4, 20, 20)
    assert (beams.length_penalty, beams.no_repeat_ngram_size, beams.do_sample) == (2.0, 2, False)
    assert not beams.min_length and beams.temperature in (None, 1.0)
    judged = search_settings(variant, config, Part("generate", new_tokens=8, may_end=True))
    assert (judged.num_beams, judged.max_new_tokens, judged.min_length) == (3, 8, 4)
    assert judged.min_new_tokens is None
    bare = dataclasses.replace(variant, options={})
    assert search_settings(bare, config, Part("generate", new_tokens=2, beams=1)).forced_eos_token_id == 2


def test_engines_that_have_no_decoder_say_so(variants: dict[str, Variant]) -> None:
    other = dataclasses.replace(variants["fp32"], engine="openvino", provider="openvino")
    with pytest.raises(UsageError, match="openvino does not run encoder-decoders here"):
        open_engine(other, threads=1, spinning=False)
    with pytest.raises(UsageError, match="no option 'compile'"):
        open_engine(dataclasses.replace(variants["torch"], options={"compile": True}), threads=1, spinning=False)
    with pytest.raises(ModelDirectoryError, match=r"no 'encoder_model_fp16\.onnx'"):
        open_engine(dataclasses.replace(variants["fp32"], precision="fp16"), threads=1, spinning=False)


# Targets


def test_an_artefact_is_a_row_for_each_precision(made: tuple[Path, Path]) -> None:
    model, compact = made
    found = resolve_targets([compact], baseline=model)
    assert [(each.id, each.engine, each.precision, each.path, each.generates) for each in found.variants] == [
        ("model-PyTorch", "torch", "fp32", model, True),
        ("compact-fp32", "onnxruntime", "fp32", compact, True),
        ("compact-int8", "onnxruntime", "int8", compact, True),
    ]
    assert (found.generates, found.task, found.max_length) == (True, "text2text-generation", POSITIONS)
    assert found.search is not None and found.search["max_length"] == 9
    assert all(each.options == {"generation": found.search} for each in found.variants)
    assert [layer["name"] for layer in found.layers or ()][-2:] == [
        "decoder.layers.1",
        "decoder.layers.1, cross-attention",
    ]
    assert resolve_targets([compact], baseline=compact).baseline == "compact-fp32"


def test_what_cannot_be_measured_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    model, compact = made
    with pytest.raises(UsageError, match="encoder-decoders are not measured on 'openvino'"):
        resolve_targets([compact], providers=("cpu", "openvino"))
    with pytest.raises(ModelDirectoryError, match="cannot be filled") as caught:
        resolve_targets([compact / "onnx" / "decoder_with_past_model.onnx"])
    assert caught.value.todo == "give the artefact's folder: a decoder is measured with its encoder"
    with pytest.raises(UsageError, match="different tasks"):
        resolve_targets([compact / "onnx" / "encoder_model.onnx", model])
    with pytest.raises(UsageError, match="no server scenario"):
        fill_sizes(Request([compact], scenario="server"), resolve_targets([compact]))
    broken = Path(shutil.copytree(compact, tmp_path / "broken"))
    (broken / "generation_config.json").write_text("[")
    with pytest.raises(ModelDirectoryError, match=r"generation_config\.json is not JSON"):
        resolve_targets([broken])


@pytest.mark.parametrize(
    ("option", "name"), [({"new_tokens": 3}, "--new-tokens"), ({"pasts": (3,)}, "--past"), ({"beams": (2,)}, "--beams")]
)
def test_options_of_decoders_are_refused_for_encoders(made: tuple[Path, Path], option: Any, name: str) -> None:
    encoder = resolve_targets([made[1] / "onnx" / "encoder_model.onnx"])
    assert fill_sizes(Request([]), encoder).batches == (1, 8)
    with pytest.raises(UsageError, match=f"{name} is for encoder-decoders"):
        fill_sizes(Request([], **option), encoder)


# Sizes


def test_the_usual_sizes_as_far_as_they_fit(made: tuple[Path, Path]) -> None:
    words = [part.words for part in choose_parts(Request([]), 1024)]
    assert words == [
        "generate 32 tokens with 1 beam",
        "generate 32 tokens with 4 beams",
        "encoder",
        "first step",
        "step after 16 tokens",
        "step after 64 tokens",
    ]
    assert [part.words for part in choose_parts(Request([]), None)] == words
    assert [part.past for part in choose_parts(Request([]), 48) if part.kind == "step"] == [16]
    assert [part.past for part in choose_parts(Request([]), 10) if part.kind == "step"] == [9]
    assert [part.new_tokens for part in choose_parts(Request([]), 10) if part.kind == "generate"] == [9, 9]
    assert [part.words for part in choose_parts(Request([], quick=True), 1024)][::5] == [
        "generate 8 tokens with 1 beam",
        "step after 16 tokens",
    ]
    targets = resolve_targets([made[1]])
    assert (fill_sizes(Request([]), targets).batches, fill_sizes(Request([]), targets).seqs) == ((1,), (POSITIONS,))
    assert fill_sizes(Request([], quick=True), targets).seqs == (32,)
    assert fill_sizes(Request([], seqs=(5,), batches=(2,)), targets).seqs == (5,)


@pytest.mark.parametrize(("sizes", "option"), [({"new_tokens": 10}, "--new-tokens"), ({"pasts": (3, 10)}, "--past")])
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, Any], option: str) -> None:
    with pytest.raises(UsageError, match="10 tokens are more than the decoder takes: 9 fit") as caught:
        choose_parts(Request([], **sizes), 10)
    assert caught.value.todo == f"give at most 9 to {option}"


def test_every_source_is_run_in_every_part(tmp_path: Path) -> None:
    spec = InputSpec(VOCABULARY, padding=1, special=frozenset({0, 1, 2}))
    file = tmp_path / "2x4.npz"
    np.savez(file, **spec.random_tokens(np.random.default_rng(0), 2, 4))  # type: ignore[arg-type]
    parts = [Part("generate", new_tokens=NEW, beams=4), Part("encoder"), Part("step", past=PAST)]
    cases = split_cases([Case("2x4", 2, 4, (file,), 2, 8, 8)], parts, spec, start=2, seed=1)
    assert [(case.id, case.tokens, case.positions, case.part) for case in cases] == [
        ("generate 6 tokens with 4 beams, 2x4", 12, 12, parts[0]),
        ("encoder, 2x4", 8, 8, parts[1]),
        ("step after 5 tokens, 2x4", 2, 2, parts[2]),
    ]
    assert all(case.files == (file,) for case in cases)
    with np.load(file) as arrays:
        tokens = arrays[DECODER_TOKENS]
    assert tokens.shape == (2, PAST + 1) and (tokens[:, 0] == 2).all() and (tokens[:, 1:] > 2).all()


def test_judged_texts_are_as_long_as_the_model_wants() -> None:
    assert scoring_part({"max_length": 9}, 30, 100) == Part("generate", new_tokens=8, may_end=True)
    assert scoring_part({"max_length": 9, "max_new_tokens": 4}, 30, 100).new_tokens == 4
    assert scoring_part({"max_length": None}, 30, 100).new_tokens == 30
    assert scoring_part(None, 30, 20).new_tokens == 19


# What it weighs and computes


def test_what_the_graphs_share_counts_once(made: tuple[Path, Path], variants: dict[str, Variant]) -> None:
    model, compact = made
    onnx_files = {file.name: file.stat().st_size for file in (compact / "onnx").iterdir()}
    fp32 = {name: size for name, size in onnx_files.items() if "quantized" not in name}
    assert len(fp32) == 4 and file_bytes(variants["fp32"]) == sum(fp32.values())
    assert file_bytes(variants["torch"]) == (model / "model.safetensors").stat().st_size
    assert model_hash(variants["fp32"]) != model_hash(variants["int8"])
    stages = {stage["graph"]: stage for stage in load_manifest(compact)["stages"] if stage["name"] == "compact"}
    each = [stages[graph]["parameters"] for graph in ("encoder_model", "decoder_model", "decoder_with_past_model")]
    counted = parameters(variants["fp32"])
    # Both halves have the table of tokens. The next step has nothing that the first has not.
    assert counted == each[0] + each[1] - VOCABULARY * summarizers.WIDTH
    dense = parameters(variants["torch"])
    assert dense is not None and 0.6 * dense < counted < dense


def spec(variant: Variant, folder: Path, parts: list[Part], **changes: Any) -> dict[str, Any]:
    file = folder / "feeds.npz"
    np.savez(file, **feeds())
    cases = [{"id": part.words, "files": [str(file)], "part": dataclasses.asdict(part)} for part in parts]
    wanted = {"profile": {"runs": 2, "layers": True}, "threads": 1, "spinning": False, "sample": "call"}
    return {"variant": variant.to_json(), "cases": cases, **wanted, **changes}


@pytest.fixture(scope="module")
def profiled(variants: dict[str, Variant], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    yield profile(spec(variants["fp32"], tmp_path_factory.mktemp("profiled"), PARTS))["profile"]


def test_every_part_has_a_profile(profiled: dict[str, Any]) -> None:
    schema = report_schema()
    for part in PARTS:
        block = profiled[part.words]
        assert schema_problems(block, {"$ref": "#/$defs/profile", "$defs": schema["$defs"]}, "profile") == []
        assert (block["case"], block["runs"]) == (part.words, 1 if part.kind == "generate" else 2)
    layers = {part.words: {layer["name"] for layer in profiled[part.words]["layers"]} for part in PARTS}
    halves = {words: {name.partition(".")[0] for name in names} for words, names in layers.items()}
    assert halves["encoder"] == {"encoder", "other"}
    assert halves["first step"] == halves["step after 5 tokens"] == {"decoder", "other"}
    assert halves["generate 6 tokens with 4 beams"] == {"encoder", "decoder", "other"}
    assert {f"decoder.layers.{i}.cross_attention" for i in range(2)} <= layers["step after 5 tokens"]


def test_a_text_takes_its_source_a_first_step_and_the_others(
    profiled: dict[str, Any], variants: dict[str, Variant], tmp_path: Path
) -> None:
    """With one beam: multiply-adds of the steps, each a token longer, add up to those of the text."""
    steps = [Part("step", past=past) for past in range(1, NEW)]
    blocks = profile(spec(variants["fp32"], tmp_path, steps))["profile"]
    expected = sum(block["macs"] for block in blocks.values())
    expected += profiled["encoder"]["macs"] + profiled["first step"]["macs"]
    greedy = profiled["generate 6 tokens with 1 beam"]
    assert greedy["macs"] == expected
    nodes = {part.words: sum(profiled[part.words]["placement"].values()) for part in PARTS}
    assert nodes["generate 6 tokens with 1 beam"] == sum(
        nodes[name] for name in ("encoder", "first step", "step after 5 tokens")
    )


def test_long_texts_are_not_profiled(variants: dict[str, Variant], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(counters, "MAX_STEPS", NEW - 1)
    found = profile(spec(variants["fp32"], tmp_path, [PARTS[0], PARTS[3]]))
    assert list(found["profile"]) == ["encoder"]


def test_pytorch_counts_the_same_and_what_was_pruned(
    engines: dict[str, Any], variants: dict[str, Variant], profiled: dict[str, Any], tmp_path: Path
) -> None:
    counted = torch_macs(engines["torch"], spec(variants["torch"], tmp_path, PARTS))["macs"]
    for part in PARTS:
        assert profiled[part.words]["macs"] < counted[part.words]
    module, inputs = engines["torch"].module, feeds()
    ids = torch.from_numpy(inputs["input_ids"])
    assert counted["encoder"] == count_macs(
        lambda: module.get_encoder()(input_ids=ids, attention_mask=torch.from_numpy(inputs["attention_mask"]))
    )


# Agreement


def keep(folder: Path, **arrays: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.savez(folder / f"{name}.0.npz", **{"sequences" if name == "texts" else "logits": np.asarray(array)})


def test_texts_are_the_same_or_not_and_numbers_have_a_largest_difference(tmp_path: Path) -> None:
    cases = [Case(name, 2, 4, (Path("a"),), 2, 8, 8) for name in ("texts", "step")]
    keep(tmp_path / "base", texts=[[2, 4, 5], [2, 6, 7]], step=[[1.0, -4.0]])
    keep(tmp_path / "fp32", texts=[[2, 4, 5], [2, 6, 7]], step=[[1.0, -4.5]])
    keep(tmp_path / "int8", texts=[[2, 4, 5], [2, 6, 8]], step=[[1.0, np.nan]])
    keep(tmp_path / "other", texts=[[2, 4], [2, 6]])
    found = find_agreements(tmp_path, cases, "base")
    assert found == {
        "fp32": {
            "texts": {"texts": 2, "same_texts": 2, "max_abs_diff": None, "max_abs": None},
            "step": {"texts": None, "same_texts": None, "max_abs_diff": 0.5, "max_abs": 4.0},
        },
        "int8": {
            "texts": {"texts": 2, "same_texts": 1, "max_abs_diff": None, "max_abs": None},
            "step": {"texts": None, "same_texts": None, "max_abs_diff": None, "max_abs": None},
        },
        "other": {"texts": {"texts": 2, "same_texts": 0, "max_abs_diff": None, "max_abs": None}},
    }
    names = {name: f"the {name}" for name in found}
    assert describe_agreements(names, found, "base") == [
        "the fp32 wrote the same tokens as base in all 2 texts that were generated for the clock.",
        "the int8 wrote other tokens than base in 1 of 2 texts that were generated for the clock.",
        "the other wrote other tokens than base in 2 of 2 texts that were generated for the clock.",
    ]
    assert find_agreements(tmp_path, cases, None) == find_agreements(tmp_path / "none", cases, "base") == {}


# The whole


@pytest.mark.usefixtures("in_process", "small_peak")
def test_the_whole_way_against_pytorch(made: tuple[Path, Path], tmp_path: Path) -> None:
    model, compact = made
    out = tmp_path / "report"
    report = compactor.bench(
        [compact], baseline=model, quick=True, profile_layers=True, out=out, new_tokens=5, past=[3], **FAST
    )
    assert report_problems(report) == []
    assert load_report(out) == json.loads(json.dumps(report))
    cases = [case["id"] for case in report["workload"]["cases"]]
    assert cases == [
        "generate 5 tokens with 1 beam, 1x32",
        "generate 5 tokens with 4 beams, 1x32",
        "encoder, 1x32",
        "first step, 1x32",
        "step after 3 tokens, 1x32",
    ]
    assert report["workload"]["cases"][1]["part"] == {"kind": "generate", "past": None, "new_tokens": 5, "beams": 4}
    dense, fp32, int8 = report["variants"]
    assert [row["status"] for row in report["variants"]] == ["measured"] * 3
    assert all([result["case"] for result in row["results"]] == cases for row in report["variants"])
    for found, tokens in zip(fp32["results"], (5, 5, 32, 1, 1), strict=True):
        rates = found["throughput"]
        assert rates["tokens_per_s"] == pytest.approx(tokens * rates["examples_per_s"])
        assert found["macs_per_s"] == pytest.approx(found["macs"] * rates["examples_per_s"])
    for found in fp32["results"][:2]:
        assert found["agreement"] == {"texts": 1, "same_texts": 1, "max_abs_diff": None, "max_abs": None}
    for found in fp32["results"][2:]:
        assert found["agreement"]["max_abs_diff"] < 1e-4 < found["agreement"]["max_abs"]
    assert all(found["agreement"]["texts"] == 1 for found in int8["results"][:2])
    assert all(found["agreement"] is None for found in dense["results"])
    assert "compact fp32 wrote the same tokens as model, PyTorch in all 2 texts" in " ".join(report["notes"])
    profiles = [(entry["case"], bool(entry["layers"])) for entry in fp32["profiles"]]
    assert profiles == [(case, True) for case in (cases[0], *cases[2:])]
    assert fp32["profile"] == fp32["profiles"][0] and dense["profile"] is None and dense["profiles"] == []
    assert report["peak"] and report["layers"]
    text = (out / "report.md").read_text()
    assert "writes 5 new tokens for one 32-token request (greedy search) in" in text
    assert "## Operators: compact fp32, first step" in text and "| no token |" in text


@pytest.mark.usefixtures("in_process", "small_peak")
def test_quality_is_that_of_texts_that_end_by_themselves(made: tuple[Path, Path], tmp_path: Path) -> None:
    model, compact = made
    data = summarizers.write_data(tmp_path / "data.jsonl")
    report = compactor.bench(
        [compact], baseline=model, data=data, batch=[2], scenario="offline", new_tokens=3, past=[2], beams=[1],
        metric="rouge1,rougeL", **FAST,
    )  # fmt: skip
    assert report_problems(report) == []
    assert [case["id"] for case in report["workload"]["cases"]][:2] == [
        "generate 3 tokens with 1 beam, batch 2, in order",
        "encoder, batch 2, in order",
    ]
    written, encoded = report["workload"]["cases"][:2]
    assert (written["examples"], written["tokens"], encoded["tokens"]) == (
        6,
        18,
        sum(2 + len(row["document"].split()) for row in ROWS),
    )
    dense, fp32, _ = (row["quality"]["metrics"] for row in report["variants"])
    assert dense["rouge1"]["n"] == 6 and dense["rouge1"]["difference"] is None
    assert fp32["rouge1"]["difference"]["changed"] == fp32["rougeL"]["difference"]["changed"] == 0
    expected = _rouge1(model)
    assert dense["rouge1"]["value"] == pytest.approx(expected)


def _rouge1(model: Path) -> float:
    """As transformers alone would do it."""
    from torchmetrics.functional.text import rouge_score
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    module, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    scores = []
    for row in ROWS:
        ids = module.generate(**tokenizer(row["document"], return_tensors="pt", return_token_type_ids=False))
        text = tokenizer.decode(ids[0], skip_special_tokens=True).strip()
        scores.append(float(rouge_score([text], [[row["summary"]]], rouge_keys="rouge1")["rouge1_fmeasure"]))
    return float(np.mean(scores))


def test_it_runs_in_a_process_of_its_own(variants: dict[str, Variant], tmp_path: Path) -> None:
    file = tmp_path / "feeds.npz"
    np.savez(file, **feeds())
    case = Case("texts", BATCH, SOURCE, (file,), BATCH, 18, 18, part=PARTS[3])
    clock = Clock(warm_up_s=0, warm_up_calls=1, measure_s=0, min_samples=2, max_samples=2)
    settings = Settings("single", 1, "", None, False, 1, clock, 0, False)
    found = run_worker("time", variants["int8"], [case], settings, outputs=tmp_path / "kept")
    assert len(found["cases"]["texts"]["samples_ms"]) == 2
    assert found["environment"]["providers"] == ["CPUExecutionProvider"]
    with np.load(tmp_path / "kept" / "texts.0.npz") as arrays:
        assert arrays["sequences"].shape == (BATCH, 1 + NEW)


@pytest.mark.usefixtures("in_process", "small_peak")
def test_a_decoder_that_crashes_is_a_row(made: tuple[Path, Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(made[1], tmp_path / "broken"))
    file = broken / "onnx" / "decoder_with_past_model.onnx"
    graph = onnx.load(file, load_external_data=False)
    name = next(node for node in graph.graph.node if node.op_type == "LayerNormalization")
    name.op_type = "LayerNormalisation"  # of the same length, so that the manifest's size holds
    onnx.save(graph, file)
    report = compactor.bench([broken], quick=True, new_tokens=2, past=[1], beams=[1], **FAST)
    assert report_problems(report) == []
    fp32, int8 = report["variants"]
    assert (fp32["status"], int8["status"]) == ("failed", "measured")
    assert "LayerNormalisation" in fp32["why"]["what"]

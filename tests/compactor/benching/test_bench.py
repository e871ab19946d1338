"""The whole of ``bench`` on a tiny model: in every scenario a report that follows its schema and agrees with itself."""

import csv
import json
import statistics

import numpy as np
import pytest

import compactor
from compactor.benching import bench as benching
from compactor.benching.report import load_report, report_problems
from compactor.errors import ModelDirectoryError, OutputError, UsageError
from compactor.exporting.export import export
from tests.compactor import families

FAST = {"rounds": 1, "duration_s": 0.01, "threads": 1, "spinning": False}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benched")
    model = families.save(folder / "model", "bert")
    return model, export(model, folder / "compact").path


@pytest.fixture
def small_peak(monkeypatch):
    monkeypatch.setattr(benching, "_PEAK", {"size": 64, "seconds": 0.01})


@pytest.fixture
def texts(made, tmp_path):
    """A tokenizer beside the artefact's copy, and labelled sentences."""
    import shutil

    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "good", "bad", "film", "a", "very"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    artefact = shutil.copytree(made[1], tmp_path / "compact")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(artefact)
    data = tmp_path / "dev.tsv"
    with data.open("w", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(["sentence", "label"])
        for i in range(12):
            rows.writerow([" ".join(["a", *["very"] * (i % 5), ("good", "bad")[i % 2], "film"]), i % 2])
    return artefact, data


def test_single_against_pytorch(made, small_peak, tmp_path):
    model, artefact = made
    out = tmp_path / "report"
    said = []
    report = compactor.bench(
        [artefact], baseline=model, batch=[1, 2], seq=[8], out=out, profile_layers=True, command="as typed",
        progress=said.append, **FAST,
    )  # fmt: skip
    assert report_problems(report) == []
    assert load_report(out) == json.loads(json.dumps(report))
    assert {"report.json", "report.md", "report.html"} == {path.name for path in out.iterdir()}

    torch, fp32, int8 = report["variants"]
    assert [row["engine"] for row in (torch, fp32, int8)] == ["torch", "onnxruntime", "onnxruntime"]
    assert report["baseline"] == torch["id"] and torch["results"][0]["ratio"] is None
    assert [row["status"] for row in report["variants"]] == ["measured"] * 3
    assert [result["case"] for result in fp32["results"]] == ["1x8", "2x8"]
    for base, result in zip(torch["results"], fp32["results"], strict=True):
        samples = result["rounds_ms"][0]
        assert result["summary"]["median"] == pytest.approx(statistics.median(samples))
        expected = base["summary"]["median"] / result["summary"]["median"]
        assert result["ratio"]["value"] == pytest.approx(expected)
        assert result["ratio"]["verdict"] == "too few processes to tell"
        batch = int(result["case"][0])
        per_second = 1e3 * len(samples) / sum(samples)
        assert result["throughput"]["examples_per_s"] == pytest.approx(batch * per_second, rel=1e-3)
        assert result["throughput"]["tokens_per_s"] == pytest.approx(batch * 8 * per_second, rel=1e-3)
        assert result["macs_per_s"] == pytest.approx(result["macs"] * per_second, rel=1e-3)
        assert result["share_of_peak"] == pytest.approx(result["macs_per_s"] / report["peak"]["fp32"]["macs_per_s"])
        assert result["macs"] < base["macs"]  # what was pruned is not computed
    assert fp32["results"][1]["macs"] == 2 * fp32["results"][0]["macs"]
    assert int8["counters"]["file_bytes"] == (artefact / "onnx/model_quantized.onnx").stat().st_size
    assert int8["profile"]["layers"] and fp32["profile"]["operators"][0]["ms"] > 0
    profile = fp32["profile"]
    assert sum(entry["ms"] for entry in profile["operators"]) == pytest.approx(profile["total_ms"], rel=1e-3)
    assert sum(entry["macs"] or 0 for entry in profile["operators"]) == fp32["results"][0]["macs"]
    assert not report["verdict"]["valid"]  # one round is no measurement
    assert any("round 1 of 1" in line for line in said)
    assert report["command"] == "as typed" and report["layers"]


def test_offline_counts_passes_and_knows_buckets(texts, small_peak):
    artefact, data = texts
    report = compactor.bench([artefact], data=data, batch=[4], scenario="offline", **FAST)
    assert report_problems(report) == []
    in_order, bucketed = report["workload"]["cases"]
    assert (in_order["bucketed"], bucketed["bucketed"]) == (False, True)
    assert in_order["examples"] == bucketed["examples"] == 12 and in_order["tokens"] == bucketed["tokens"]
    assert bucketed["positions"] <= in_order["positions"]
    result = report["variants"][0]["results"][0]
    seconds = np.mean(result["rounds_ms"][0]) / 1e3
    assert result["throughput"]["examples_per_s"] == pytest.approx(12 / seconds, rel=1e-3)
    assert result["throughput"]["tokens_per_s"] == pytest.approx(in_order["tokens"] / seconds, rel=1e-3)


def test_quality_stands_beside_speed(texts, small_peak):
    artefact, data = texts
    report = compactor.bench([artefact], data=data, batch=[1], **FAST)
    assert report_problems(report) == []
    assert report["settings"]["metric"] == "accuracy" and report["workload"]["examples"] == 12
    fp32, int8 = (row["quality"]["metrics"]["accuracy"] for row in report["variants"])
    assert fp32["n"] == 12 and fp32["difference"] is None
    assert int8["difference"]["value"] == pytest.approx(int8["value"] - fp32["value"])


def test_server_finds_a_rate(texts, small_peak):
    artefact, data = texts
    options = FAST | {"duration_s": 0.2}
    report = compactor.bench([artefact], lengths=data, batch=[4], scenario="server", **options)
    assert report_problems(report) == []
    for row in report["variants"]:
        assert row["results"] == [] and row["server"]["max_batch"] == 4
        assert row["server"]["probes"][0]["latencies_ms"]
    assert any("--p99-bound" in note for note in report["notes"])


def test_an_endpoint_beside_a_model_is_asked_the_same_texts(texts, small_peak):
    pytest.importorskip("aiohttp")
    from tests.compactor.benching.server.endpoint import endpoint

    artefact, data = texts
    options = FAST | {"duration_s": 0.5, "qps": 40.0, "bound_ms": 5000.0}
    with endpoint() as server:
        report = compactor.bench([artefact, server.url], data=data, batch=[4], scenario="server", **options)
    assert report_problems(report) == []
    fp32, int8, remote = report["variants"]
    assert [row["engine"] for row in (fp32, int8, remote)] == ["onnxruntime", "onnxruntime", "http"]
    assert report["baseline"] == fp32["id"] and fp32["quality"] is not None and remote["quality"] is None
    assert fp32["server"]["probes"][0]["statuses"] is None
    assert remote["server"]["probes"][0]["statuses"]["ok"] == 40
    assert remote["server"]["bound_ms"] == fp32["server"]["bound_ms"]
    asked = {document["inputs"][0]["data"][0] for _, document in server.requests}
    assert asked == {line.split("\t")[0] for line in data.read_text().splitlines()[1:]}


def test_a_variant_that_crashes_is_a_row_and_the_others_run(made, small_peak, tmp_path):
    _, artefact = made
    broken = tmp_path / "broken.onnx"
    import onnx

    saved = onnx.load(artefact / "onnx" / "model.onnx")
    next(node for node in saved.graph.node if node.op_type == "LayerNormalization").op_type = "NoSuchOperator"
    onnx.save(saved, broken)
    report = compactor.bench([artefact / "onnx" / "model.onnx", broken], batch=[1], seq=[8], **FAST)
    assert report_problems(report) == []
    good, bad = report["variants"]
    assert good["status"] == "measured" and good["results"]
    assert bad["status"] == "failed" and bad["results"] == [] and bad["why"]["what"]


def test_an_interrupt_keeps_what_is_measured(made, monkeypatch, tmp_path):
    _, artefact = made
    real = benching.measure

    def measure(*arguments, **options):
        found = real(*arguments, **options)
        found.interrupted = True
        return found

    monkeypatch.setattr(benching, "measure", measure)
    report = compactor.bench([artefact], batch=[1], seq=[8], out=tmp_path / "report", **FAST)
    assert report["interrupted"] and report["variants"][0]["results"] and report["peak"] is None
    assert load_report(tmp_path / "report")["interrupted"]


def test_a_report_is_not_replaced_unasked(made, monkeypatch, tmp_path):
    monkeypatch.setattr(benching, "make_plan", pytest.fail)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(OutputError, match="there is a report already"):
        compactor.bench([made[1]], out=tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        compactor.bench([made[1]], out=tmp_path / "report.json")


def test_bad_requests_end_before_anything_runs(made, monkeypatch, tmp_path):
    monkeypatch.setattr(benching, "measure", pytest.fail)
    with pytest.raises(UsageError, match="at least 1 round"):
        compactor.bench([made[1]], rounds=0)
    with pytest.raises(UsageError, match="at least 1 thread"):
        compactor.bench([made[1]], threads=0)
    with pytest.raises(UsageError, match="more than the model takes"):
        compactor.bench([made[1]], seq=[100_000])
    with pytest.raises(ModelDirectoryError, match="the folder is empty"):
        compactor.bench([tmp_path])

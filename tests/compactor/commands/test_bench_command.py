"""``compactor bench``: what it hands on, what it prints, which mistakes it refuses, and how it ends."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compactor.benching.report import dump_report
from compactor.errors import ModelDirectoryError, OutputError, UsageError
from tests.compactor.fakes import replace_module, run
from tests.compactor.reports import make_report

Bench = Callable[..., dict[str, Any]]
DEFAULTS = {
    "baseline": None,
    "providers": ("cpu",),
    "threads": None,
    "batch": None,
    "seq": None,
    "lengths": None,
    "data": None,
    "scenario": "single",
    "qps": None,
    "duration_s": None,
    "bound_ms": None,
    "metric": None,
    "out": None,
    "overwrite": False,
    "quick": False,
    "rounds": None,
    "seed": 17,
    "affinity": None,
    "spinning": True,
    "profile": False,
    "profile_layers": False,
    "new_tokens": None,
    "past": None,
    "beams": None,
}


URL = "http://127.0.0.1:8000/v2/models/small/infer"


class Fake:
    """Stands in for ``bench()``: keeps what it was asked for, makes some noise, and gives ``answer``."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | BaseException = make_report()
        self.calls = 0
        self.targets: tuple[Path, ...] = ()
        self.options: dict[str, Any] = {}

    def __call__(self, targets: tuple[Path, ...], **options: Any) -> dict[str, Any]:
        self.calls += 1
        self.targets, self.options = targets, options
        print("a library talks")
        options["progress"]("round 1 of 8")
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    replace_module(monkeypatch, "compactor.benching.bench", bench=made)
    return made


def test_the_defaults(fake: Fake) -> None:
    assert run("bench", "compact", "-q") == 0
    assert fake.options.pop("progress")
    assert fake.options.pop("command") == "compactor bench compact -q"
    assert fake.targets == (Path("compact"),)
    assert fake.options == DEFAULTS


def test_passes_its_options_on(fake: Fake, tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    typed = (
        "bench compact other.onnx --baseline dense --provider cpu,cuda --provider openvino,cpu --threads 2"
        f" --batch 1,8,1 --data {tmp_path / 'data.tsv'} --scenario server --qps 12.5 --p99-bound 20 --duration 0.5"
        f" --metric accuracy,f1 --rounds 4 --quick --seed 3 --affinity {cpu} --no-spinning --profile-layers"
        f" --new-tokens 62 --past 16,64,16 --beams 4 -o {tmp_path / 'out'} --overwrite"
    )
    assert run(*shlex.split(typed)) == 0
    assert fake.targets == (Path("compact"), Path("other.onnx"))
    assert fake.options.pop("progress")
    assert fake.options.pop("command") == f"compactor {typed}"
    assert fake.options == DEFAULTS | {
        "baseline": Path("dense"),
        "providers": ("cpu", "cuda", "openvino"),
        "threads": 2,
        "batch": (1, 8),
        "data": tmp_path / "data.tsv",
        "scenario": "server",
        "qps": 12.5,
        "bound_ms": 20.0,
        "duration_s": 0.5,
        "metric": "accuracy,f1",
        "rounds": 4,
        "quick": True,
        "seed": 3,
        "affinity": (cpu,),
        "spinning": False,
        "profile_layers": True,
        "new_tokens": 62,
        "past": (16, 64),
        "beams": (4,),
        "out": tmp_path / "out",
        "overwrite": True,
    }


def test_a_url_is_handed_on_as_it_was_typed(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: object())
    assert run("bench", "compact", URL, "--scenario", "server", "--data", "d.tsv", "--threads", "2") == 0
    assert fake.targets == (Path("compact"), URL)


def test_an_endpoint_alone_needs_the_client_and_no_metrics(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = {"torchmetrics"}
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *more: None if name in missing else object() if name == "aiohttp" else find(name, *more),
    )
    typed = ("bench", URL, "--scenario", "server", "--data", "d.tsv")
    assert run(*typed) == 0
    capsys.readouterr()
    missing.add("aiohttp")
    assert run(*typed) == 2
    err = capsys.readouterr().err
    assert "'aiohttp' is not installed, which the URL of an endpoint needs" in err
    assert "pip install 'compactor[ray]'" in err


def test_the_command_in_the_report_can_be_typed_again(fake: Fake) -> None:
    assert run("bench", "my model", "--seq", "32, 128", "--batch=8") == 0
    assert fake.options["command"] == "compactor bench 'my model' --seq '32, 128' --batch=8"
    assert (fake.options["seq"], fake.options["batch"]) == ((32, 128), (8,))


def test_a_range_of_cpus(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3, 6})
    assert run("bench", "compact", "--affinity", "6,1-3,2") == 0
    assert fake.options["affinity"] == (1, 2, 3, 6)


# What it prints


def test_json_is_the_report_and_progress_goes_to_stderr(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "compact", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == fake.answer
    assert err.splitlines() == ["loading libraries", "round 1 of 8"]


def test_says_how_fast_each_variant_is_and_where_the_report_lies(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("bench", "compact", "-o", tmp_path / "out", "-q") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "compact int8" in out and "faster" in out
    assert out.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"


# How it ends


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_an_invalid_report_is_shown_and_fails(
    form: tuple[str, ...], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = make_report(reasons=["another process used 1.4 CPUs", "processes differ by 30 %"])
    assert run("bench", "compact", "-q", *form) == 6
    out, err = capsys.readouterr()
    assert "compact int8" in out
    assert err.splitlines() == [
        "error: the report is INVALID: another process used 1.4 CPUs (and 1 more)",
        "to do: measure again on a quiet machine; or accept the numbers with --allow-noisy",
    ]
    assert run("bench", "compact", "-q", "--allow-noisy", *form) == 0
    assert capsys.readouterr().err == ""


def test_an_interrupted_report_is_shown_and_ends_like_an_interrupt(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = make_report(interrupted=True, reasons=["too few rounds"])
    assert run("bench", "compact", "-q") == 130
    out, err = capsys.readouterr()
    assert "compact int8" in out
    assert err == "error: interrupted\n"


def test_what_was_measured_before_an_interrupt_may_have_no_interval(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    report = make_report(interrupted=True, rounds=1, reasons=["too few rounds"])
    for variant in report["variants"]:
        for result in variant["results"]:
            result["summary"]["process_spread"] = None
            if result["ratio"] is not None:
                result["ratio"].update(low=None, high=None, verdict="too few processes to tell")
    fake.answer = report
    assert run("bench", "compact", "-q") == 130
    assert "too few processes to tell" in capsys.readouterr().out


def test_a_variant_that_crashed_is_no_failure_as_long_as_one_was_measured(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = make_report(failed={"compact-int8": "out of memory"})
    assert run("bench", "compact", "-q") == 0
    assert "out of memory" in capsys.readouterr().out


def test_when_nothing_was_measured_it_fails_whatever_the_verdict(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("model-torch", "compact-int8", "compact-cuda-fp16")
    fake.answer = make_report(variants=names, failed={"model-torch": "no memory", "compact-int8": "no room"})
    assert run("bench", "compact", "-q", "--allow-noisy") == 6
    assert "error: nothing could be measured: no memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelDirectoryError("the folder is empty"), 3),
        (UsageError("the graph is fixed to 1x128, and cannot take 8x32"), 2),
        (OutputError("there is a report already"), 5),
        (KeyboardInterrupt(), 130),
    ],
    ids=["target", "usage", "output", "interrupt"],
)
def test_errors_keep_their_exit_codes(
    error: BaseException, code: int, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = error
    assert run("bench", "compact", "-q") == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {str(error) or 'interrupted'}")


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param("", "Missing argument 'TARGET...'", id="no-target"),
        pytest.param("m --provider tpu", "'tpu' is not one of cpu, cuda", id="provider"),
        pytest.param("m --provider cpu,", "'' is not one of cpu, cuda", id="empty-provider"),
        pytest.param("m --threads 0", "0 is not in the range", id="threads"),
        pytest.param("m --batch 0", "'0' is not a whole number from 1 to", id="batch-0"),
        pytest.param("m --batch 1,-8", "'-8' is not a whole number", id="batch-negative"),
        pytest.param("m --batch 1,,8", "'' is not a whole number", id="batch-empty"),
        pytest.param("m --batch 1.5", "'1.5' is not a whole number", id="batch-broken"),
        pytest.param("m --batch 1000000", "'1000000' is not a whole number from 1 to 16,384", id="batch-absurd"),
        pytest.param("m --seq x", "'x' is not a whole number", id="seq"),
        pytest.param("m --past 0", "'0' is not a whole number from 1 to 1,000,000", id="past"),
        pytest.param("m --beams 1,99", "'99' is not a whole number from 1 to 64", id="beams"),
        pytest.param("m --new-tokens 0", "0 is not in the range", id="new-tokens"),
        pytest.param("m --seq ²", "'²' is not a whole number", id="seq-superscript"),
        pytest.param("m --seq 99999999999", "is not a whole number from 1 to 1,000,000", id="seq-absurd"),
        pytest.param("m --seq 32 --data d", "--seq and --data are two sources of lengths", id="seq-data"),
        pytest.param("m --seq 32 --lengths l", "--seq and --lengths are two sources", id="seq-lengths"),
        pytest.param("m --data d --lengths l", "--lengths and --data are two sources", id="data-lengths"),
        pytest.param("m --metric f1", "--metric needs labelled texts: add --data", id="metric"),
        pytest.param("m --metric f1 --lengths l", "--metric needs labelled texts", id="metric-lengths"),
        pytest.param("m --qps 5", "--qps is for --scenario server", id="qps"),
        pytest.param("m --qps 5 --scenario offline", "--qps is for --scenario server", id="qps-offline"),
        pytest.param("m --qps 0 --scenario server", "0.0 is not in the range", id="qps-0"),
        pytest.param("m --qps nan --scenario server", "nan", id="qps-nan"),
        pytest.param("m --p99-bound 5", "--p99-bound is for --scenario server", id="bound"),
        pytest.param("m --duration 0", "0.0 is not in the range", id="duration"),
        pytest.param("m --duration nan", "nan", id="duration-nan"),
        pytest.param("m --rounds 0", "0 is not in the range", id="rounds"),
        pytest.param("m --scenario batch", "'batch' is not one of", id="scenario"),
        pytest.param("m --seed -1", "-1 is not in the range", id="seed"),
        pytest.param("m --overwrite", "--overwrite needs -o DIR", id="overwrite"),
        pytest.param("m -o m", "-o names a TARGET", id="out-is-target"),
        pytest.param("m --baseline b -o ./x/../b", "-o names a TARGET", id="out-is-baseline"),
        pytest.param("m -q -v", "contradict", id="quiet-and-verbose"),
        pytest.param("m --affinity x", "'x' is neither a CPU nor a range", id="affinity"),
        pytest.param("m --affinity 3-1", "'3-1' is not within the CPUs", id="affinity-backwards"),
        pytest.param("m --affinity 99998", "'99998' is not within the CPUs that this process may use", id="no-cpu"),
        pytest.param("m --compare a b", "leave out TARGETs", id="compare-targets"),
        pytest.param("--compare a b --batch 1", "leave out --batch", id="compare-batch"),
        pytest.param("--compare a b --allow-noisy", "leave out --allow-noisy", id="compare-noisy"),
        pytest.param("--compare a", "requires 2 arguments", id="compare-one"),
        pytest.param("m --frob", "No such option", id="unknown"),
        pytest.param(f"{URL} --data d", "is an endpoint, whose rate is measured: add --scenario", id="url-single"),
        pytest.param(f"m {URL} --data d --scenario offline", "add --scenario server", id="url-offline"),
        pytest.param(f"{URL} --scenario server", "is asked texts: add --data FILE", id="url-without-texts"),
        pytest.param(f"{URL} --scenario server --seq 8", "is asked texts: add --data FILE", id="url-seq"),
        pytest.param(f"{URL} --scenario server --data d --threads 2", "--threads is for models", id="url-threads"),
        pytest.param(f"{URL} --scenario server --data d --provider cpu", "--provider is for", id="url-provider"),
        pytest.param(f"{URL} --scenario server --data d --batch 8", "--batch is for models", id="url-batch"),
        pytest.param(f"{URL} --scenario server --data d --profile", "--profile is for models", id="url-profile"),
        pytest.param(f"{URL} --scenario server --data d --metric f1", "--metric is for models", id="url-metric"),
        pytest.param(f"{URL} --scenario server --data d --no-spinning", "-spinning is for", id="url-spinning"),
        pytest.param(f"m --baseline {URL} --scenario server", "is an endpoint, and no baseline", id="url-baseline"),
        pytest.param("http://h/x --scenario server --data d", "neither of the two routes", id="url-route"),
        pytest.param("http://h:x/predict --scenario server --data d", "this is no URL", id="url-broken"),
    ],
)
def test_a_mistake_is_answered_before_anything_is_loaded(
    arguments: str, message: str, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("bench", *arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert 2 <= len(err.splitlines()) <= 3
    assert fake.calls == 0
    assert "loading" not in err


@pytest.mark.parametrize(
    ("package", "arguments"),
    [("matplotlib", "-o out"), ("jinja2", "-o out"), ("torchmetrics", "--data d.tsv")],
)
def test_a_package_that_is_missing_is_missed_before_the_measurement(
    package: str, arguments: str, fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == package else find(name, *more))
    assert run("bench", "compact", *arguments.split()) == 2
    err = capsys.readouterr().err
    assert f"'{package}' is not installed, which {arguments.split()[0]} needs" in err
    assert "pip install 'compactor[bench]'" in err
    assert fake.calls == 0
    assert run("bench", "compact", "-q") == 0, "without it, nothing needs it"


# Comparing two reports


def _written(folder: Path, name: str, **options: Any) -> Path:
    """A report of processes that hardly differ, in a file or as ``report.json`` in a folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_report(make_report(**options)), encoding="utf-8")
    return path


def test_two_reports_of_the_same_are_no_slowdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = _written(tmp_path, "a/report.json"), _written(tmp_path, "b.json", seed=8)
    assert run("bench", "--compare", a.parent, b, "-q") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "compact int8" in out and "1x128" in out
    assert "slower" not in out
    assert "Decided by the speed-up over model, PyTorch fp32" in out


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_slowdown_is_shown_and_fails(
    form: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = _written(tmp_path, "a.json")
    b = _written(tmp_path, "b.json", seed=8, speed={"compact-int8": 0.7})
    assert run("bench", "--compare", a, b, "-q", *form) == 6
    out, err = capsys.readouterr()
    assert err.splitlines() == ["error: compact int8 became slower on 1x32 (and 2 more)", f"where: {b}"]
    if form:
        rows = {(row["variant"], row["case"]): row["verdict"] for row in json.loads(out)["rows"]}
        assert rows["compact-int8", "8x128"] == "slower"
    else:
        lines = [line for line in out.splitlines() if line.startswith("compact int8")]
        assert len(lines) == 3 and all(line.endswith("slower") for line in lines)
    assert run("bench", "--compare", b, a, "-q") == 0, "faster is no failure"
    assert "faster" in capsys.readouterr().out


def test_rates_of_a_server_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = _written(tmp_path, "a.json", scenario="server")
    b = _written(tmp_path, "b.json", scenario="server", speed={"compact-int8": 0.5})
    assert run("bench", "--compare", a, b, "-q") == 6
    out, err = capsys.readouterr()
    (line,) = (line for line in out.splitlines() if line.startswith("compact int8"))
    assert line.endswith("slower")
    assert "error: compact int8 became slower" in err


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        pytest.param(lambda tmp: tmp / "nope.json", 3, "no such report", id="missing"),
        pytest.param(lambda tmp: tmp, 3, "no 'report.json' in this folder", id="folder"),
        pytest.param(lambda tmp: _text(tmp / "x.json", '{"schema": 1}'), 3, "this is not a report", id="other"),
        pytest.param(lambda tmp: _text(tmp / "x.json", "no"), 3, "the report is not JSON", id="text"),
        pytest.param(lambda tmp: _written(tmp, "o.json", scenario="server"), 2, "their scenario", id="scenario"),
        pytest.param(
            lambda tmp: _written(tmp, "o.json", variants=("compact-openvino-fp32",), baseline=None),
            2,
            "no variant and case in common",
            id="nothing-in-common",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    make: Callable[[Path], Path], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = _written(tmp_path, "a.json")
    assert run("bench", "--compare", a, make(tmp_path), "-q") == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[0]


def _text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_a_gate_that_is_passed_is_a_line_more(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "compact", "--gate", "answers=90,speed=1.1", "--data", "d.tsv", "-q") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("gate passed: compact int8: ") for line in lines)


def test_a_gate_that_is_not_passed_ends_with_6(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "compact", "--gate", "speed=99", "-q") == 6
    out, err = capsys.readouterr()
    assert "gate failed: compact int8: " in out
    assert err.startswith("error: gate failed: compact int8: ") and "(asked 99)" in err
    assert run("bench", "compact", "--gate", "speed=99", "-q", "--json") == 6
    assert json.loads(capsys.readouterr().out)["kind"], "stdout is the report alone"


@pytest.mark.parametrize(
    ("gate", "message"),
    [("answers=99", "there are no texts"), ("fast", "asks for nothing"), ("speed=0", "cannot be 0")],
)
def test_a_gate_that_asks_for_nothing(gate: str, message: str, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "compact", "--gate", gate) == 2
    assert message in capsys.readouterr().err and fake.calls == 0

"""Processes: each measurement in one of its own, ABBA, failures and interrupts that cost no more than themselves."""

import dataclasses
import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from compactor.benching import processes
from compactor.benching.plan import Case, Settings, Variant
from compactor.benching.processes import abba, measure, run_worker
from compactor.runtime.sampling import Clock
from tests.runtime.graphs import VOCAB, embedding, save

SETTINGS = Settings("single", 1, "as requested", None, False, 2, Clock(0, 1, 0, 3, 3), 0, True)


@pytest.fixture
def variant(tmp_path):
    path = Path(save(embedding(), tmp_path / "model.onnx"))
    return Variant("onnx", "model.onnx", "model.onnx", "onnxruntime", "cpu", "fp32", path)


@pytest.fixture
def case(tmp_path):
    files = []
    for i, length in enumerate((5, 7)):
        ids = np.random.default_rng(i).integers(0, VOCAB, (2, length))
        files.append(tmp_path / f"batch-{i}.npz")
        np.savez(files[-1], input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
    return Case("batch 2", 2, None, files, 4, 24, 24)


def renamed(variant, name, **changes):
    return dataclasses.replace(variant, id=name, name=name, **changes)


def test_rounds_run_forwards_and_backwards_in_turn():
    assert abba(["a", "b", "c"], 3) == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]


def test_every_variant_starts_anew_in_every_round(variant, case):
    said = []
    found = measure([renamed(variant, "a"), renamed(variant, "b")], [case], SETTINGS, say=said.append)
    assert [line.split(" (")[0] for line in said] == [
        *("round 1 of 2: a", "round 1 of 2: b", "round 2 of 2: b", "round 2 of 2: a"),
    ]
    assert not found.interrupted
    for measured in found.variants.values():
        assert len(measured.load_ms) == len(measured.peak_rss_bytes) == 2
        assert measured.peak_rss_bytes[0] > measured.rss_before_bytes[0] > 0
        assert measured.environment["onnxruntime"]
        # Two batches take turns, so samples come in pairs: 4 is the first multiple beyond the 3 that were asked for.
        assert [len(entry["samples_ms"]) for entry in measured.cases["batch 2"]] == [4, 4]


def test_offline_samples_are_whole_passes(variant, case):
    settings = dataclasses.replace(SETTINGS, scenario="offline")
    found = run_worker("time", variant, [case], settings)
    assert len(found["cases"]["batch 2"]["samples_ms"]) == 3


def test_outputs_are_those_of_each_batch(variant, case, tmp_path):
    import onnxruntime

    kept = tmp_path / "kept"
    run_worker("outputs", variant, [case], SETTINGS, outputs=kept)
    session = onnxruntime.InferenceSession(str(variant.path))
    for i, file in enumerate(case.files):
        with np.load(file) as feeds, np.load(kept / f"batch 2.{i}.npz") as got:
            expected = session.run(None, {name: feeds[name] for name in ("input_ids", "attention_mask")})[0]
            np.testing.assert_allclose(got["last_hidden_state"], expected, rtol=1e-6)


def test_what_the_folder_we_are_in_holds_is_not_run(variant, case, tmp_path, monkeypatch):
    (tmp_path / "compactor").mkdir()
    (tmp_path / "compactor" / "__init__.py").write_text("raise RuntimeError('another package')")
    monkeypatch.chdir(tmp_path)
    assert "error" not in run_worker("time", variant, [case], SETTINGS)


def test_a_variant_that_fails_is_out_and_the_others_go_on(variant, case, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"nothing of the kind")
    said = []
    broken = renamed(variant, "broken", path=tmp_path / "broken.onnx")
    found = measure([broken, variant], [case], SETTINGS, say=said.append)
    assert found.variants["broken"].error["what"]
    assert sum(line.startswith("round") and ": broken" in line for line in said) == 1
    assert any(line.startswith("broken failed: ") for line in said)
    assert len(found.variants["onnx"].load_ms) == 2


def test_one_with_a_reason_is_not_started(variant, case):
    found = measure([renamed(variant, "gpu", reason="not run: no CUDA device")], [case], SETTINGS, say=pytest.fail)
    assert found.variants == {}


@pytest.mark.parametrize(("code", "what"), [("os.kill(os.getpid(), 9)", "SIGKILL"), ("os._exit(3)", "code 3")])
def test_a_process_that_dies_is_an_error_with_its_last_words(monkeypatch, variant, case, code, what):
    real = subprocess.Popen

    def popen(command, **options):
        script = f"import os, sys; print('last words', file=sys.stderr, flush=True); {code}"
        return real([command[0], "-c", script], **options)

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    error = run_worker("time", variant, [case], SETTINGS)["error"]
    assert what in error["what"] and "last words" in error["where"]


def test_an_interrupt_keeps_what_is_measured_and_ends_the_process(monkeypatch, variant, case):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, command, **options):
            self.hangs = bool(started)  # the second one, until the user has enough
            super().__init__([command[0], "-c", "import time; time.sleep(600)"] if self.hangs else command, **options)
            started.append(self)

        def wait(self, timeout=None):
            if self.hangs:
                self.hangs = False
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(processes.subprocess, "Popen", Popen)
    said = []
    found = measure([renamed(variant, "a"), renamed(variant, "b")], [case], SETTINGS, say=said.append)
    assert found.interrupted and "interrupted" in said[-1]
    assert started[1].returncode == -signal.SIGKILL
    assert len(found.variants["a"].load_ms) == 1 and found.variants["b"].load_ms == []


def test_the_spec_says_what_the_settings_say(monkeypatch, variant, case):
    specs = []

    def run(command, threads):
        specs.append(json.loads(Path(command[-1]).read_text()))
        return 1, ""

    monkeypatch.setattr(processes, "_run", run)
    settings = dataclasses.replace(SETTINGS, affinity=(0,), threads=3)
    run_worker("profile", variant, [case], settings, profile={"runs": 2})
    (spec,) = specs
    assert (spec["threads"], spec["affinity"], spec["spinning"], spec["sample"]) == (3, [0], False, "call")
    assert Variant.from_json(spec["variant"]) == variant
    assert spec["profile"] == {"runs": 2} and spec["cases"][0]["files"] == [str(file) for file in case.files]

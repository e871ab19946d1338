"""What one may choose: checked at once, and the same after a trip through a config."""

from __future__ import annotations

import pytest

from compactor.runtime.errors import RuntimeSetupError
from compactor.runtime.serving import settings as settings_module
from compactor.runtime.serving.settings import ServeSettings


def test_a_config_holds_what_was_changed():
    settings = ServeSettings("models/compact", threads=2, max_queued=5, truncate=True)
    args = settings.to_args()
    assert args == {"artefact": "models/compact", "threads": 2, "max_queued": 5, "truncate": True}
    assert ServeSettings.from_args(args) == settings


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 0},
        {"max_batch": 0},
        {"batch_wait_ms": -1.0},
        {"batch_wait_ms": float("nan")},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"max_queued": -1},
        {"max_replicas": 0},
        {"min_replicas": 3, "max_replicas": 2},
        {"min_replicas": -1},
    ],
)
def test_numbers_out_of_range(change):
    with pytest.raises(RuntimeSetupError, match=next(iter(change))):
        ServeSettings("x", **change)


def test_unknown_and_missing_settings():
    with pytest.raises(RuntimeSetupError, match="no setting 'thread'"):
        ServeSettings.from_args({"artefact": "x", "thread": 3})
    with pytest.raises(RuntimeSetupError, match="'artefact' is missing"):
        ServeSettings.from_args({"threads": 3})


@pytest.mark.parametrize(("cores", "threads", "replicas"), [(1, 1, 1), (2, 1, 2), (16, 1, 16)])
def test_replicas_fill_the_cores(monkeypatch, cores, threads, replicas):
    monkeypatch.setattr(settings_module, "usable_cores", lambda: cores)
    settings = ServeSettings("x")
    assert (settings.replica_threads, settings.most_replicas) == (threads, replicas)
    assert ServeSettings("x", threads=4).most_replicas == max(1, cores // 4)
    assert ServeSettings("x", min_replicas=99).most_replicas == 99


@pytest.mark.parametrize("name", ["", " ", "a/b"])
def test_names_that_no_url_holds(name):
    with pytest.raises(RuntimeSetupError, match="no name for a model"):
        ServeSettings("x", name=name)


def test_the_models_name():
    assert ServeSettings("models/compact").model_name == "compact"
    assert ServeSettings("models/compact", name="films").model_name == "films"

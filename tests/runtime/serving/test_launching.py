"""The config for a cluster, the command's refusals; and the same application on two nodes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from benchmarks._served import free_port

pytest.importorskip("ray")
yaml = pytest.importorskip("yaml")

TWO_NODES = """
import json, os, subprocess, sys, time, urllib.request
import ray
from ray.cluster_utils import Cluster

config, url = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
serve = os.path.join(os.path.dirname(sys.executable), "serve")
subprocess.run([serve, "run", "--non-blocking", "--address", cluster.address, config], check=True, timeout=180)
ray.init(cluster.address, log_to_driver=False)
from ray import serve as api
while api.status().applications["compactor"].status != "RUNNING":
    time.sleep(0.5)
replicas = [
    actor["Address"]["NodeID"]
    for actor in ray._private.state.actors().values()
    if "ServeReplica:compactor" in actor["ActorClassName"] and actor["State"] == "ALIVE"
]
answers = []
for text in ("a gripping film", "what a bore") * 10:
    request = urllib.request.Request(url, json.dumps({"inputs": text}).encode())
    with urllib.request.urlopen(request, timeout=60) as reply:
        answers.append(json.load(reply)["outputs"][0]["label"])
print("FOUND " + json.dumps({"nodes": len(ray.nodes()), "replicas": replicas, "answers": answers}))
api.shutdown()
ray.shutdown()
cluster.shutdown()
"""


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "compactor", "serve", *map(str, arguments)], capture_output=True, text=True, **options
    )


def test_the_config_is_what_serve_deploy_reads(artefact):
    from ray.serve.schema import ServeDeploySchema

    done = command(artefact, "--config-only", "--threads", "1", "--max-replicas", "8", "--max-queued", "5")
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    read = ServeDeploySchema.model_validate(config)
    assert read.http_options.host == "127.0.0.1"
    (application,) = read.applications
    assert application.import_path == "compactor.runtime.serving.application:build"
    assert application.args == {"artefact": str(artefact), "threads": 1, "max_replicas": 8, "max_queued": 5}
    assert application.deployments[0].autoscaling_config["max_replicas"] == 8


def test_no_cluster_of_somebody_else_is_joined(artefact, monkeypatch):
    import ray

    from compactor.runtime.serving.launching import running
    from compactor.runtime.serving.settings import ServeSettings

    given = {}

    def init(**options):
        given.update(options)
        raise RuntimeError("far enough")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RuntimeError, match="far enough"), running(ServeSettings(str(artefact)), port=free_port()):
        pass
    assert given["address"] == "local"


@pytest.mark.slow
def test_two_nodes_run_the_same_application(artefact, tmp_path):
    """One replica on each, behind the proxies that a cluster has by default."""
    port = free_port()
    done = command(
        artefact, "--config-only", "--threads", "1", "--min-replicas", "2", "--max-replicas", "2", "--port", port
    )
    config = yaml.safe_load(done.stdout)
    config["proxy_location"] = "HeadOnly"  # both nodes are this machine, and have one port 8000 between them
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    found = subprocess.run(
        [sys.executable, "-c", TWO_NODES, str(tmp_path / "config.yaml"), f"http://127.0.0.1:{port}/predict"],
        capture_output=True,
        text=True,
        env={**environment, "RAY_USAGE_STATS_ENABLED": "0"},
        timeout=300,
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    result = json.loads(found.stdout.split("FOUND ")[1].splitlines()[0])
    assert result["nodes"] == 2
    assert len(result["replicas"]) == 2 and len(set(result["replicas"])) == 2
    assert result["answers"] == ["positive", "negative"] * 10


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--max-replicas", "0"], 2, "--max-replicas"),
        (["--min-replicas", "3", "--max-replicas", "2"], 2, "below min_replicas"),
        (["--port", "70000"], 2, "--port"),
        (["--timeout", "0"], 2, "--timeout"),
        (["--name", "a/b"], 2, "no name for a model"),
        (["--precision", "fp16"], 3, "holds no fp16 graph"),
        (["--provider", "cuda"], 2, "cuda"),
        (["-q", "-v"], 2, "contradict"),
    ],
)
def test_refusals_come_before_ray(artefact, options, code, words):
    done = command(artefact, *options)
    assert done.returncode == code and words in done.stderr
    assert "starting Ray" not in done.stderr and not done.stdout


def test_no_artefact(tmp_path):
    done = command(tmp_path)
    assert done.returncode == 3 and "no compactor.json" in done.stderr


@pytest.mark.slow
def test_a_taken_port_is_said(artefact):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = command(artefact, "--port", taken.getsockname()[1])
    assert done.returncode == 2 and "cannot be used" in done.stderr and "another --port" in done.stderr

"""Start a server on this machine, stop it without losing a request, and write the config that a cluster takes."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import RuntimeSetupError
from ..signals import own_sigterm
from .settings import ServeSettings

LOOPBACK = "127.0.0.1"
BUILD = "compactor.runtime.serving.application:build"

_REPEATABLE_BYTES = 64 * 1024


@contextlib.contextmanager
def running(
    settings: ServeSettings, *, host: str = LOOPBACK, port: int = 8000, metrics_port: int | None = None
) -> Iterator[str]:
    """A server on this machine while the block runs, with a Ray of its own.

    Args:
        settings: What it serves, and how.
        host: Where HTTP is bound.
        port: Its port.
        metrics_port: Where Prometheus finds the metrics; a free port when omitted.

    Yields:
        The address, ``http://127.0.0.1:8000``.

    Raises:
        RuntimeSetupError: A port is taken, or the model could not be loaded.
    """
    _require_free(host, port)
    if metrics_port is not None:
        _require_free("0.0.0.0", metrics_port)
    with _environment(_tuned()):
        import ray
        from ray import serve

        from .application import APPLICATION, build

        application = build(settings.to_args())
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        with own_sigterm():
            ray.init(
                address="local",  # or it joins a cluster of somebody else, or waits for one that has died
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _metrics_export_port=metrics_port,
            )
        try:
            serve.start(http_options=http_options(settings, host, port))
            try:
                serve.run(application, name=APPLICATION, route_prefix="/")
            except RuntimeError as error:
                raise RuntimeSetupError(
                    f"the application did not start: {_last_line(error)}",
                    where=settings.artefact,
                    todo="look into the replica's log, in logs/serve of Ray's session folder",
                ) from error
            yield f"http://{LOOPBACK if host == '0.0.0.0' else host}:{port}"
        finally:
            _stop()


def _stop() -> None:
    """Let the replicas finish what they have accepted, then end Serve and Ray."""
    import ray
    from ray import serve

    from .application import APPLICATION

    try:
        with contextlib.suppress(Exception):  # it may never have run
            serve.delete(APPLICATION)  # returns when the replicas have drained
        serve.shutdown()  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()


def _tuned() -> dict[str, str]:
    """Environment of the Ray that is started here: HAProxy in front of the replicas, without a Python proxy between.

    It passes three times as many requests on the same cores. What is sent twice where a replica dies is safe to send
    twice: an answer has no effect. HAProxy can repeat only what fits into its buffer.
    """
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # a line is in the log when its request is answered
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response",
        "RAY_SERVE_HAPROXY_RETRIES": "3",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(_REPEATABLE_BYTES),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
    }


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set them, unless they are set already, for as long as the block runs."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def http_options(settings: ServeSettings, host: str, port: int) -> dict[str, Any]:
    """Of Ray's HTTP proxies. Their time-out is above the replicas', which answer 504 themselves."""
    return {"host": host, "port": port, "request_timeout_s": settings.timeout_s + 5.0, "keep_alive_timeout_s": 75}


def cluster_config(settings: ServeSettings, *, host: str, port: int) -> dict[str, Any]:
    """What ``serve deploy`` takes, as plain values: the same application, on a cluster."""
    from .application import APPLICATION, DEPLOYMENT, build, scaling

    build(settings.to_args())  # refuses what no cluster should be told
    return {
        "proxy_location": "EveryNode",
        "http_options": http_options(settings, host, port),
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": BUILD,
                "args": settings.to_args(),
                "deployments": [
                    {
                        "name": DEPLOYMENT,
                        "autoscaling_config": scaling(settings),
                    }
                ],
            }
        ],
    }


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RuntimeSetupError(
                f"the address cannot be used: {error.strerror}", where=f"{host}:{port}", todo="choose another --port"
            ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else repr(error)

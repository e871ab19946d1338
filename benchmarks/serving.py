"""What Ray Serve costs and withstands: ``compactor serve`` beside a bare session loop, on SST-2's sentences.

    python benchmarks/serving.py [--rounds 4] [--seconds 10] [--steady-s 300] [--clients 16] [--work DIR]
                                 [--only "random weights"] [--out benchmarks/results/serving-NAME.json]

Two models: a random BERT with the sizes of an entry of the paper, and the bundled example. For each, in turn:

1. throughput: a loop over a bare session (one sentence a call, tokenized before, all cores), ``runtime.load``
   (tokenization included), and the server under so many clients that each send a sentence when they have the last
   answer; every measurement in processes of its own, in ABBA order. The load comes from the same machine: what the
   client takes of its cores is the server's loss.
2. the server at 80 % of that rate, with random arrivals, for minutes;
3. a replica killed at half the rate: what failed, what was lost after repeating it, how long until it was replaced;
4. malformed requests: their statuses, and the replicas' memory before and after;
5. more clients than the queue takes: how fast the refusals are, and the rate afterwards.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import os
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

from benchmarks import _graphs, _record, _run, plant
from benchmarks._served import Server, memory_bytes
from benchmarks._workshop import EXAMPLE, SENTENCES, TASK, Workshop, classifiers, say
from compactor.benching.server.http_load import Exchanges, closed_loop, open_loop, plain_body, post_once, run, v2_body
from compactor.benching.server.queueing import percentile, poisson_arrivals
from compactor.evaluation.datafiles import read_table
from compactor.runtime.threads import usable_cores

NAME = "films"
BARE, LOADED, SERVED = "bare session loop", "runtime.load", "served"
STEADY = 0.8  # of the rate under clients that wait for their answers
KILLED_AT = 0.5

_WARM_UP = 200
_MALFORMED = 1000
_OVERLOAD_CLIENTS = 512
_KILL_S, _KILL_AFTER_S = 40.0, 10.0
_REPEATS = 20
_PATIENCE_S = 120.0


def main(argv: Sequence[str] | None = None) -> int:
    """Build, measure, and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    plant.add_entry_options(parser)
    parser.add_argument("--rounds", type=int, default=4, help="of the throughput (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--steady-s", type=float, default=300.0, help="at 80 %% of the rate (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--only", help="one of the models")
    parser.add_argument("--work", type=Path, help="keep the models here")
    parser.add_argument("--out", type=Path, help="result, JSON; a table is written beside it")
    args = parser.parse_args(argv)
    _record.warn_if_busy()
    settings = {"clients": args.clients, "rounds": args.rounds, "seconds": args.seconds, "cores": usable_cores()}
    head = {**_record.head("compactor-serving", "serving.py", argv), "settings": settings}
    with _run.work_folder(args.work, "serving-") as work:
        result: dict[str, Any] = {**head, "models": {}}
        for title, shop in classifiers(work, plant.chosen_entry(args)).items():
            if args.only in (None, title):
                result["models"][title] = measure(artefact(shop), args)
                if args.out is not None:  # after each model: a later one may be cut off
                    _record.write_result(args.out, result, render(result))
    print(render(result))
    return 0


def artefact(shop: Workshop) -> Path:
    """The artefact of a model, with a tokenizer."""

    def build(path: Path) -> None:
        shutil.copytree(shop.ours().parent, path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(EXAMPLE / name, path / name)

    return shop.once("served", build)


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All five measurements of one artefact."""
    texts = read_sentences()
    rates: dict[str, list[float]] = {kind: [] for kind in (BARE, LOADED, SERVED)}
    latencies = []
    for kind in _run.turns(list(rates), args.rounds):
        if kind == SERVED:
            with Server(folder, *options()) as server:
                exchanges = _load(server, texts, args.clients, args.seconds)
            rates[kind].append(exchanges.answered_per_s)
            latencies.append(_latencies(exchanges))
        else:
            function = bare_rate if kind == BARE else loaded_rate
            rates[kind].append(_graphs.in_fresh_process(function, folder, texts, args.seconds))
    capacity = statistics.median(rates[SERVED])
    bodies = [v2_body([text]) for text in texts]
    found: dict[str, Any] = {"rates": rates, "latency_ms": latencies}
    with Server(folder, *options()) as server:
        _load(server, texts, args.clients, 2.0)
        say(f"{args.steady_s:g} s at {STEADY:.0%} of {capacity:.0f}/s")
        found["steady"] = steady(server, bodies, STEADY * capacity, args.steady_s)
        say("malformed requests")
        found["malformed"] = malformed(server)
        say("overload")
        found["overload"] = overload(server, bodies, args.seconds)
        after = _load(server, texts, args.clients, args.seconds)
        found["overload"] |= {"afterwards_per_s": after.answered_per_s, "afterwards_statuses": _statuses(after)}
    with Server(folder, *options(2)) as server:
        say("a replica is killed")
        _load(server, texts, args.clients, 2.0)
        found["killed"] = killed(server, bodies, KILLED_AT * capacity)
    return found


def options(replicas: int | None = None) -> list[str]:
    """Of ``compactor serve``: a replica a core from the start, so that no measurement sees one being added."""
    count = str(replicas or usable_cores())
    return ["--name", NAME, "--min-replicas", count, "--max-replicas", count]


def read_sentences() -> list[str]:
    """SST-2's, in the order of the file."""
    return read_table(SENTENCES).texts("sentence")


def bare_rate(folder: Path, texts: Sequence[str], seconds: float) -> float:
    """Sentences a second of a loop over an ONNX Runtime session: one sentence a call, tokenized before."""
    from compactor.runtime.artefacts import Artefact
    from compactor.runtime.encoding import TextEncoder
    from compactor.runtime.sessions import open_session

    found = Artefact.open(folder)
    session = open_session(folder / found.graphs[found.choose().precision])
    encoder = TextEncoder(folder, task=TASK, limit=found.max_tokens, truncate=True).tokenizer
    wanted = [entry.name for entry in session.get_inputs()]
    feeds = []
    for encoding in encoder.encode_batch(list(texts)):
        values = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
        values["token_type_ids"] = encoding.type_ids
        feeds.append({name: np.array([values[name]], np.int64) for name in wanted})
    for each in feeds[:_WARM_UP]:
        session.run(None, each)
    each_in_turn = itertools.cycle(feeds)
    return _calls_per_s(lambda: session.run(None, next(each_in_turn)), seconds)


def loaded_rate(folder: Path, texts: Sequence[str], seconds: float) -> float:
    """Sentences a second of ``runtime.load``, from texts to answers."""
    import compactor.runtime

    model = compactor.runtime.load(folder, truncate=True)
    model(texts[:_WARM_UP])
    return len(texts) * _calls_per_s(lambda: model(texts), seconds)


def _calls_per_s(call: Callable[[], object], seconds: float) -> float:
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        call()
        count += 1
    return count / (time.perf_counter() - start)


def steady(server: Server, bodies: Sequence[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Random arrivals at a rate: what failed, and how long answers took from when they were due."""
    arrivals = poisson_arrivals(rate, round(rate * seconds), seed=17)
    exchanges = run(open_loop(_infer(server), bodies, arrivals))
    return {"rate": rate, "seconds": seconds, **_outcome(exchanges)}


def killed(server: Server, bodies: Sequence[bytes], rate: float) -> dict[str, Any]:
    """Kill one of two replicas in the middle; repeat what failed, as a client would."""
    events: dict[str, float] = {}
    stop = threading.Event()
    started = time.perf_counter()

    def kill() -> None:
        time.sleep(_KILL_AFTER_S)
        before = server.replicas()
        events["killed_s"] = time.perf_counter() - started
        os.kill(before[0], signal.SIGKILL)
        while not stop.wait(0.1):
            now = server.replicas()
            if before[0] not in now and len(now) == len(before):
                events["replaced_s"] = time.perf_counter() - started
                return

    thread = threading.Thread(target=kill)
    thread.start()
    arrivals = poisson_arrivals(rate, round(rate * _KILL_S), seed=18)
    exchanges = run(open_loop(_infer(server), bodies, arrivals))
    lost = sum(not _repeat(server, bodies[which]) for which in exchanges.bodies[~exchanges.ok].tolist())
    thread.join(_PATIENCE_S)
    stop.set()
    thread.join()
    calm = percentile((exchanges.done - exchanges.due)[exchanges.ok & (exchanges.due < _KILL_AFTER_S)], 99.0)
    late = ~exchanges.ok | (exchanges.done - exchanges.due > 2 * calm)
    troubled = exchanges.due[late & (exchanges.due >= events["killed_s"] - 1.0)]
    return {
        "rate": rate,
        **_outcome(exchanges),
        "lost_after_repeating": lost,
        "replaced_after_s": events["replaced_s"] - events["killed_s"] if "replaced_s" in events else None,
        "calm_p99_ms": 1e3 * calm,
        "delayed_until_s": float(troubled.max() - events["killed_s"]) if len(troubled) else 0.0,
        "delayed": int(late.sum()),
    }


def malformed(server: Server) -> dict[str, Any]:
    """Requests that are none, a thousand at a time; the memory of the replicas between them."""
    bodies = [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 5000,
        b"null",
        b'{"inputs": []}',
        b'{"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a"]}]}',
        b'{"inputs": [{"name": "text", "shape": [1], "datatype": "FP32", "data": [1.0]}]}',
        v2_body([""]),
        v2_body(["word " * 1000]),
        v2_body(["a"] * 1000),
        b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["' + b"a" * (2 << 20) + b'"]}]}',
    ]
    statuses: collections.Counter[str] = collections.Counter()
    memory = []
    for _ in range(4):  # the first thousand warms up
        statuses.update(_statuses(run(closed_loop(_infer(server), bodies, 8, 600.0, most=_MALFORMED))))
        memory.append(sum(memory_bytes(pid) for pid in server.replicas()))
    answered = run(post_once(_infer(server), v2_body(["good"]))).status
    return {"statuses": statuses, "replica_bytes": memory, "answered_afterwards": answered}


def overload(server: Server, bodies: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """More clients than replicas and queues take."""
    exchanges = run(closed_loop(_infer(server), bodies, _OVERLOAD_CLIENTS, seconds))
    took = 1e3 * (exchanges.done - exchanges.sent)[exchanges.statuses == 503]
    return {
        "clients": _OVERLOAD_CLIENTS,
        "statuses": _statuses(exchanges),
        "answered_per_s": exchanges.answered_per_s,
        "refusal_ms": {"p50": percentile(took, 50.0), "p99": percentile(took, 99.0)} if len(took) else None,
    }


def _load(server: Server, texts: Sequence[str], clients: int, seconds: float) -> Exchanges:
    """Clients that wait for their answers, on the plain route, once the server is warm."""
    bodies = [plain_body([text]) for text in texts]
    run(closed_loop(f"{server.url}/predict", bodies, clients, 600.0, most=_WARM_UP))
    return run(closed_loop(f"{server.url}/predict", bodies, clients, seconds))


def _repeat(server: Server, body: bytes) -> bool:
    """Whether a request is answered when it is sent again, a few times if need be."""
    for _ in range(_REPEATS):
        with contextlib.suppress(OSError):
            if run(post_once(_infer(server), body, timeout_s=10.0)).status == 200:
                return True
        time.sleep(0.2)
    return False


def _infer(server: Server) -> str:
    return f"{server.url}/v2/models/{NAME}/infer"


def _outcome(exchanges: Exchanges) -> dict[str, Any]:
    return {
        "requests": len(exchanges),
        "failed": int((~exchanges.ok).sum()),
        "statuses": _statuses(exchanges),
        "latency_ms": _latencies(exchanges),
        "sent_late_ms": 1e3 * percentile(exchanges.lateness_s, 99.0),
    }


def _statuses(exchanges: Exchanges) -> dict[str, int]:
    return {str(status): count for status, count in exchanges.count_statuses().items()}


def _latencies(exchanges: Exchanges) -> dict[str, float]:
    return {f"p{percent:g}": 1e3 * percentile(exchanges.latencies_s, percent) for percent in (50.0, 95.0, 99.0)}


def render(result: Mapping[str, Any]) -> str:
    """The page: rates, and what the server withstood."""
    settings = result["settings"]
    pieces = [
        "# Serving SST-2's sentences: Ray Serve beside a bare session loop",
        f"872 sentences, one a request. {settings['rounds']} rounds of {settings['seconds']:g} s, everything in "
        f"processes of its own; the median [least, largest]. The server has {settings['cores']} replicas of one "
        f"thread, {settings['clients']} clients that each wait for their answer, and shares the "
        f"{settings['cores']} cores with them.",
    ]
    rows = [_rates_row(title, found["rates"]) for title, found in result["models"].items()]
    header = ["sentences a second", BARE, LOADED, SERVED, "served / bare loop", "served / runtime.load"]
    pieces.append(_record.markdown_table(header, rows))
    for title, found in result["models"].items():
        pieces += [f"## {title}", "\n".join(f"- {line}" for line in _lines(found))]
    return _record.page(*pieces, _record.machine_line(result), f"`{result['command']}`")


def _rates_row(title: str, rates: Mapping[str, Sequence[float]]) -> list[str]:
    def cell(values: Sequence[float], form: str) -> str:
        middle, least, largest = (
            format(value, form) for value in (statistics.median(values), min(values), max(values))
        )
        return f"{middle} [{least}, {largest}]"

    ratios = ([a / b for a, b in zip(rates[SERVED], rates[kind], strict=True)] for kind in (BARE, LOADED))
    return [title, *(cell(rates[kind], ",.0f") for kind in (BARE, LOADED, SERVED)), *(cell(r, ".0%") for r in ratios)]


def _lines(found: Mapping[str, Any]) -> list[str]:
    steady_, kill, bad, over = (found[part] for part in ("steady", "killed", "malformed", "overload"))
    took = steady_["latency_ms"]
    grown = bad["replica_bytes"][-1] / bad["replica_bytes"][0] - 1
    replaced = kill["replaced_after_s"]
    refusal = over["refusal_ms"]
    return [
        f"{steady_['seconds']:g} s at {steady_['rate']:.0f} a second ({STEADY:.0%} of the median), random arrivals: "
        f"{steady_['failed']} of {steady_['requests']:,} failed; latency from when they were due {took['p50']:.1f} ms "
        f"(median), {took['p95']:.1f} (p95), {took['p99']:.1f} (p99).",
        f"A replica of two killed at {kill['rate']:.0f} a second: {kill['failed']} of {kill['requests']:,} requests "
        f"failed, {kill['lost_after_repeating']} were lost after repeating them; {kill['delayed']} took more than "
        f"twice the p99 of before or failed, the last {kill['delayed_until_s']:.1f} s after it; a new replica listened "
        + (f"{replaced:.1f} s after it." if replaced is not None else "not within the measurement."),
        f"{sum(bad['statuses'].values()):,} malformed requests: statuses {_listed(bad['statuses'])}; memory of the "
        f"replicas {bad['replica_bytes'][0] / 1e6:.0f} MB after the first thousand, {grown:+.1%} after the last.",
        f"{over['clients']} clients: statuses {_listed(over['statuses'])}, {over['answered_per_s']:.0f} answers a "
        "second"
        + (f", refusals within {refusal['p50']:.0f} ms (median), {refusal['p99']:.0f} (p99)" if refusal else "")
        + f"; afterwards {over['afterwards_per_s']:.0f} a second, statuses {_listed(over['afterwards_statuses'])}.",
    ]


def _listed(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{status}: {count:,}" for status, count in statuses.items())


if __name__ == "__main__":
    sys.exit(main())

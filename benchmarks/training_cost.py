"""What pruning adds to training: time of a step and memory of hybrid, beside plain fine-tuning with the same teacher.

    python benchmarks/training_cost.py [--rounds 8] [--steps 20] [--threads 2] [--batch 32] [--length 64]
                                       [--freeze-embeddings] [--out benchmarks/results/training-cost.json]

A random classifier of MiniLM's size learns a fixed stream of random batches from a random teacher of the same size,
with and without masks; each in a process of its own, in ABBA order. A process trains a whole short run with warm-up,
pruning and cool-down, so that its median step is one of the pruning phase, the most expensive one.

Memory is counted in two ways: the peak of the process, and what torch holds of tensors in a step of the pruning phase,
at the end of the forward pass and at its peak. The second is counted once, by torch's profiler, in a process that is
not timed: it is the same every time.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

from benchmarks import _graphs, _record, _run
from benchmarks._workshop import say
from compactor.benching.statistics import Ratio, ratio
from compactor.reporting.numbers import bytes_text, duration
from compactor.runtime.sampling import peak_memory_bytes
from compactor.runtime.threads import explain_threads

PLAIN, HYBRID = "plain fine-tuning", "hybrid"
TIME_TARGET, MEMORY_TARGET = 1.25, 1.05
DENSITY = 0.3  # that hybrid is steered to
MARKER = "the forward pass is over"
COUNTED_STEP = 2  # from 0: after the optimizer has its state, and in the pruning phase of ``COUNTED_STEPS``
COUNTED_STEPS = 4

_SETTLING = 2  # steps of a process that are not timed: memory is allocated, code is loaded


SHAPE = {  # sizes of the batches and of the model, as they are where nothing else is asked for
    "batch": 32,  # sequences of a step
    "length": 64,  # tokens of each
    "width": 384,
    "layers": 6,
    "heads": 12,  # of each layer
    "inner": 1536,  # neurons of each layer
    "vocabulary": 30_522,  # tokens that it knows
}

Shape = Mapping[str, int]  # those, and whether the embeddings are ``frozen``


def main(argv: Sequence[str] | None = None) -> int:
    """Time, count and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--freeze-embeddings", action="store_true", help="train everything but the embeddings")
    parser.add_argument("--steps", type=int, default=20, help="of each process (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="processes of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of training (default: one for each core)")
    parser.add_argument("--out", type=Path, help="result, JSON; a table is written beside it")
    args = parser.parse_args(argv)
    if args.steps <= _SETTLING + 2:
        parser.error(f"--steps: expected more than {_SETTLING + 2}, got {args.steps}")
    shape = {**{name: getattr(args, name) for name in SHAPE}, "frozen": args.freeze_embeddings}
    threads = explain_threads(args.threads).threads
    _record.warn_if_busy()
    head = _record.head("compactor-training-cost", "training_cost.py", argv)
    head |= {"threads": threads, "shape": shape, "steps": args.steps}
    result = head | compare(shape, args.steps, args.rounds, threads)
    _record.publish(result, render(result), args.out)
    return 0


def compare(shape: Shape, steps: int, rounds: int, threads: int) -> dict[str, Any]:
    """Run both in every round, and count the memory of each once."""
    timed: dict[str, list[dict[str, Any]]] = {PLAIN: [], HYBRID: []}
    for name in _run.turns(list(timed), rounds):
        timed[name].append(_graphs.in_fresh_process(time_steps, name, shape, steps, threads))
    counted = {}
    for name in timed:
        say(f"counting memory: {name}")
        counted[name] = _graphs.in_fresh_process(count_memory, name, shape, threads)
    return {"rounds": timed, "memory": counted}


def time_steps(name: str, shape: Shape, steps: int, threads: int) -> dict[str, Any]:
    """One process: the milliseconds from each step's begin to the next one's, and the peak of its memory."""
    starts: list[float] = []

    def note(*_: Any, **__: Any) -> None:
        starts.append(time.perf_counter())

    trainer = train(name, shape, steps, threads, on_step_begin=note, on_train_end=note)
    samples = [1e3 * (after - before) for before, after in itertools.pairwise(starts)]
    return {
        "step_ms": [round(sample, 3) for sample in samples[_SETTLING:]],
        "peak_rss_bytes": peak_memory_bytes(),
        "density": 1.0 if trainer.pruner is None else trainer.pruner.density(),
    }


def count_memory(name: str, shape: Shape, threads: int) -> dict[str, int]:
    """What torch holds in a step of the pruning phase.

    Returns:
        ``standing_bytes`` between steps: weights, scores, the teacher, the optimizer's state; ``forward_bytes`` at the
        end of the forward pass and ``peak_bytes`` at the highest point of the step, with what stands.
    """
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def begin(args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == COUNTED_STEP:
            profiler.start()

    def end(args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == COUNTED_STEP + 1:
            profiler.stop()

    trainer = train(name, shape, COUNTED_STEPS, threads, on_step_begin=begin, on_step_end=end)
    events: Sequence[Any] = profiler.profiler.kineto_results.events()  # type: ignore[union-attr] # it was started
    forward, peak = read_trace([(event.name(), event.start_ns(), event.nbytes()) for event in events])
    models = (trainer.model, trainer.teacher)
    tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    tensors += [value for values in trainer.optimizer.state.values() for value in values.values()]
    standing = tensor_bytes(tensors)
    return {"standing_bytes": standing, "forward_bytes": standing + forward, "peak_bytes": standing + peak}


def train(name: str, shape: Shape, steps: int, threads: int, **watch: Callable[..., None]) -> Any:
    """The trainer, after a whole run; ``watch`` are methods of its callback."""
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="training-cost-") as folder:
        trainer = make_trainer(name, shape, steps, Path(folder))
        callback = TrainerCallback()
        vars(callback).update(watch)
        trainer.add_callback(callback)
        trainer.train()
    return trainer


def read_trace(events: Sequence[tuple[str, int, int]]) -> tuple[int, int]:
    """Bytes that were allocated since the trace began and not freed: at the marker, and at most.

    Args:
        events: Name, time and bytes of each. Those called ``[memory]`` are allocations, and below zero what is freed.
    """
    end = next(moment for name, moment, _ in events if name == MARKER)
    held = forward = peak = 0
    for moment, size in sorted((moment, size) for name, moment, size in events if name == "[memory]"):
        held += size
        peak = max(peak, held)
        if moment <= end:
            forward = held
    return forward, peak


def tensor_bytes(tensors: Sequence[Any]) -> int:
    """Of their storages, each counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def make_trainer(name: str, shape: Shape, steps: int, folder: Path) -> Any:
    """The trainer of ``compactor prune`` on random batches, the same in every process; it writes and judges nothing."""
    import torch
    import transformers
    from transformers import PrinterCallback, Seq2SeqTrainingArguments

    from compactor.trainer.config import PruneConfig
    from compactor.trainer.methods import find_method
    from compactor.trainer.pruner import Plan, Pruner
    from compactor.trainer.schedule import Schedule
    from compactor.trainer.structure import find_blocks
    from compactor.trainer.trainer import PruningTrainer

    class Marked(PruningTrainer):
        """Leaves a mark in the profile where the forward pass ends, the teacher's included."""

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            with torch.profiler.record_function(MARKER):
                return loss

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        intermediate_size=shape["inner"],
        max_position_embeddings=max(512, shape["length"]),
    )
    model, teacher = (transformers.BertForSequenceClassification(config) for _ in range(2))
    ids = torch.randint(0, shape["vocabulary"], (steps * shape["batch"], shape["length"]))
    labels = torch.randint(0, 2, (steps * shape["batch"],))
    if shape["frozen"]:
        model.bert.embeddings.requires_grad_(False)
    settings = PruneConfig(method="hybrid" if name == HYBRID else "dense", steps=steps, batch_size=shape["batch"])
    if name == HYBRID:
        method = find_method("hybrid")
        plan = Plan(
            attention=method.attention,
            feed_forward=method.feed_forward,
            schedule=settings.schedule(steps) if steps > COUNTED_STEPS else Schedule(steps, 1, 1),
            target_density=DENSITY,
        )
        Pruner.install(model, find_blocks(model, {"input_ids": ids[:1]}), plan)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=shape["batch"],
        max_steps=steps,
        learning_rate=settings.learning_rate,
        optim="adamw_torch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        seed=0,
    )
    trainer = Marked(
        config=settings,
        facts={},
        teacher=teacher,
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def cost(result: Mapping[str, Any], name: str) -> Ratio:
    """How many times more of a measured thing hybrid takes."""
    plain, hybrid = (
        [found[name] if isinstance(found[name], list) else [found[name]] for found in result["rounds"][kind]]
        for kind in (PLAIN, HYBRID)
    )
    return ratio(hybrid, plain)


def render(result: Mapping[str, Any]) -> str:
    """The table: both, their ratio, and what was asked for."""
    timed, memory, shape = result["rounds"], result["memory"], result["shape"]
    steps = [statistics.median(statistics.median(found["step_ms"]) for found in timed[kind]) for kind in timed]
    resident = [statistics.median(found["peak_rss_bytes"] for found in timed[kind]) for kind in timed]

    def counted(title: str, field: str, wanted: str) -> list[str]:
        sizes = [bytes_text(memory[kind][field]) for kind in memory]
        return [title, *sizes, f"{memory[HYBRID][field] / memory[PLAIN][field]:.3f}×", wanted]

    memory_target = f"at most {MEMORY_TARGET:g}×"
    rows = [
        ["time of a step", *map(duration, steps), _ratio_cell(cost(result, "step_ms")), f"at most {TIME_TARGET:g}×"],
        counted("tensors between steps", "standing_bytes", ""),
        counted("tensors at the end of the forward pass", "forward_bytes", memory_target),
        counted("tensors at the peak of a step", "peak_bytes", memory_target),
        [
            "peak memory of the process",
            *(bytes_text(round(value)) for value in resident),
            _ratio_cell(cost(result, "peak_rss_bytes")),
            memory_target,
        ],
    ]
    frozen = ", embeddings frozen" if shape["frozen"] else ""
    return _record.page(
        "# What pruning adds to training",
        f"A random BERT of {shape['layers']} layers, {shape['width']} wide, with {shape['heads']} heads and "
        f"{shape['inner']:,} neurons{frozen}, and a teacher of its size; batches of {shape['batch']} × "
        f"{shape['length']} tokens. {len(timed[HYBRID])} processes of {result['steps']} steps each, in ABBA order; "
        "medians, and 95 % bootstrap intervals of ratios.",
        _record.markdown_table(["", PLAIN, HYBRID, "ratio", "wanted"], rows),
        f"{result['threads']} threads. {_record.machine_line(result)}",
        f"`{result['command']}`",
    )


def _ratio_cell(found: Ratio) -> str:
    interval = "" if found.low is None or found.high is None else f" [{found.low:.3f}, {found.high:.3f}]"
    return f"{found.value:.3f}×{interval}"


if __name__ == "__main__":
    sys.exit(main())

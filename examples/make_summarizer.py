"""Make a small summarizer from nothing: a language by script, a BART trained on it, and pruned by ``compactor prune``.

    python examples/make_summarizer.py --out DIR [--work DIR] [--seed N]

No download and no data: reports are drawn at random, and so are the first weights. Four steps, each kept in ``--work``:

1. ``data``: reports of a made-up town as ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl`` (``document``, ``summary``);
2. ``random``: a tokenizer with the words of the training texts, and a random ``BartForConditionalGeneration``;
3. ``dense``: that model, trained by ``--method dense``;
4. ``pruned``: the dense one, pruned by ``recipes/summarizer-small.toml`` without a teacher, its decoder twice as hard.

What came out is copied to ``--out``, zeros in place: ``compactor export`` takes it from there. Both models are scored
on the test reports, with the generation settings of their folders.

**The language.** A report names its place, its day and the desk that it is for; sentences about matches, orders,
weather and traffic follow, mixed with each other and with gossip. The summary states the two things that the desk
wants. A model has to find them among names and numbers of the same kind (a referee is no scorer), to turn sentences
round ("lost to" is a win of the other), to name what is paraphrased ("mist hung low" is fog), and to take what was said
last (an order changed or cancelled, a train that is late): words of other sentences decide what is copied.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compactor.trainer.config import PruneConfig

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "recipes" / "summarizer-small.toml"

COUNTS: Mapping[str, int] = {"train": 8000, "dev": 300, "test": 500}
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # their numbers are BART's
DOCUMENT_TOKENS, SUMMARY_TOKENS = 128, 32
SIZES: Mapping[str, int] = {"layers": 2, "width": 128, "heads": 8, "neurons": 512}
BEAMS = 4
DENSE: Mapping[str, Any] = {
    "steps": 3000,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "learning_rate_warm_up": 300,
    "weight_decay": 0.01,
    "beams": 1,
    "eval_steps": 1000,
    "logging_steps": 100,
}
ROUGE = ("rouge1", "rouge2", "rougeL")
FOLDER = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
FOLDER_MAY_HAVE = ("special_tokens_map.json", "pruning.json", "pruning.safetensors", "training.json", "training.html")

# The words

FIRST = (
    "Ada Ben Carla Dev Emil Fay Gus Hana Ida Jon Kim Lea Max Nina Omar Pia Raj Sam Tess Uma Vera Will Yan Zoe".split()
)
LAST = (
    "Adler Baker Conti Duval Evans Fischer Gomez Haas Ito Jansen Keller Larsen Moreau Novak Olsen Perez Quist Rossi "
    "Silva Tanaka Urban Vega Weber Young Zeman Berg Costa Dahl Frank Klein Lund Meyer"
).split()
PLACES = (
    "Arden Brook Corby Dunmore Elton Fenton Glen Harlow Irvine Kelso Linden Marsh Norton Oakham Penrith Selby".split()
)
TEAMS = (
    "Bears Bulls Comets Eagles Foxes Giants Hawks Kings Lions Owls Pirates Ravens Sharks Stars Tigers Wolves".split()
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
GOODS = "apples bells boots candles chairs clocks drums hats jars kites lamps mirrors pens rugs tents vases".split()
VEHICLES = "bus coach ferry train tram".split()
WEATHER: Mapping[str, Sequence[str]] = {
    "fog": ("mist hung low", "nobody saw far", "the hills were hidden"),
    "rain": ("it poured", "drops fell", "the streets were wet"),
    "snow": ("flakes fell", "all turned white", "it was icy"),
    "sun": ("the sky was clear", "it was bright", "there was not a cloud"),
    "wind": ("a gale blew", "it was stormy", "the trees bent"),
}
DESKS: Mapping[str, tuple[str, str]] = {  # what each wants, in this order
    "front": ("match", "orders"),
    "sports": ("match", "weather"),
    "trade": ("orders", "traffic"),
    "travel": ("traffic", "weather"),
}
UNWANTED = 0.4  # how often a thing that the desk does not want is told


# The language


class Teller:
    """Draws reports; what names a person or a place within a report names only one.

    Args:
        draw: Where all chance comes from.
    """

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._last: list[str] = []
        self._places: list[str] = []
        self._teams: list[str] = []

    def report(self) -> tuple[str, str]:
        """A document and its summary."""
        draw = self._draw
        self._last, self._places, self._teams = (draw.sample(words, len(words)) for words in (LAST, PLACES, TEAMS))
        desk = draw.choice(tuple(DESKS))
        place, day = self._places.pop(), draw.choice(DAYS)
        tellings, stated = [], {}
        for name in ("match", "orders", "weather", "traffic"):
            if name in DESKS[desk] or draw.random() < UNWANTED:
                sentences, stated[name] = getattr(self, f"_{name}")()
                tellings.append(sentences)
        tellings += [[self._gossip()] for _ in range(draw.randrange(3))]
        head = f"Report from {place}, {day}, for the {desk} desk."
        summary = f"{day} in {place}: {'; '.join(stated[name] for name in DESKS[desk])}."
        return " ".join([head, *self._mixed(tellings)]), summary

    def _mixed(self, tellings: Sequence[list[str]]) -> list[str]:
        """All sentences, each telling in its own order."""
        turns = [number for number, sentences in enumerate(tellings) for _ in sentences]
        self._draw.shuffle(turns)
        rest = [iter(sentences) for sentences in tellings]
        return [next(rest[number]) for number in turns]

    def _match(self) -> tuple[list[str], str]:
        draw = self._draw
        one, two, scorer = self._teams.pop(), self._teams.pop(), self._last.pop()
        low, high = sorted(draw.sample(range(10), 2))
        played, stated = draw.choice(
            (
                (f"The {one} beat the {two} {high} to {low}.", f"{one} beat {two} {high} to {low}"),
                (f"The {two} lost to the {one} {low} to {high}.", f"{one} beat {two} {high} to {low}"),
                (f"The {one} and the {two} drew {low} to {low}.", f"{one} drew {two} {low} to {low}"),
            )
        )
        others = [f"The last goal came from {draw.choice(FIRST)} {scorer}."]
        if draw.random() < 0.5:
            others.append(f"The referee was {self._person()}.")
        draw.shuffle(others)
        return [played, *others], f"{stated}, {scorer} scored last"

    def _orders(self) -> tuple[list[str], str]:
        draw = self._draw
        orders, changes, stated = [], [], []
        for goods in draw.sample(GOODS, 2):
            last, count = self._last.pop(), draw.randint(10, 59)
            orders.append(
                draw.choice(("{who} ordered {what}.", "{what} go to {who}.")).format(
                    who=f"{draw.choice(FIRST)} {last}", what=f"{count} {goods}"
                )
            )
            chance = draw.random()
            if chance < 0.25:
                changes.append(f"{last} cancelled the order.")
            elif chance < 0.5:
                count = draw.randint(10, 59)
                changes.append(f"{last} wants {count} instead.")
            stated.append(f"nothing for {last}" if chance < 0.25 else f"{count} {goods} for {last}")
        draw.shuffle(changes)
        return [*orders, *changes], ", ".join(stated)

    def _weather(self) -> tuple[list[str], str]:
        draw = self._draw
        degrees = draw.randint(10, 39)
        morning, evening = draw.sample(tuple(WEATHER), 2)
        sentences = [
            f"In the morning {draw.choice(WEATHER[morning])}.",
            f"In the evening {draw.choice(WEATHER[evening])}.",
            f"It had {degrees} degrees.",
        ]
        draw.shuffle(sentences)
        return sentences, f"{morning}, then {evening}, {degrees} degrees"

    def _traffic(self) -> tuple[list[str], str]:
        draw = self._draw
        vehicle, other = draw.sample(VEHICLES, 2)
        place, hour, later = self._places.pop(), *draw.sample(range(24), 2)
        sentences = [f"The {vehicle} to {place} leaves at {hour}."]
        stated = f"{vehicle} to {place} at {hour}"
        chance = draw.random()
        if chance < 0.25:
            sentences.append(f"The {vehicle} does not run.")
            stated = f"no {vehicle} to {place}"
        elif chance < 0.5:
            sentences.append(f"The {vehicle} is late and leaves at {later}.")
            stated = f"{vehicle} to {place} at {later}"
        if draw.random() < 0.5:
            arrival = f"The {other} from {self._places.pop()} came at {draw.randrange(24)}."
            sentences.insert(draw.randint(0, len(sentences)), arrival)
        return sentences, stated

    def _gossip(self) -> str:
        draw = self._draw
        return draw.choice(
            (
                f"{self._person()} turned {draw.randint(20, 59)}.",
                f"{self._person()} moved to {self._places.pop()}.",
                f"The {self._teams.pop()} have {draw.randint(20, 39)} players.",
                f"{draw.randint(10, 59)} {draw.choice(GOODS)} were found.",
            )
        )

    def _person(self) -> str:
        return f"{self._draw.choice(FIRST)} {self._last.pop()}"


def write_data(folder: Path, counts: Mapping[str, int], seed: int) -> None:
    """A file of JSON lines for each split; no document is in two of them, or twice in one."""
    teller = Teller(random.Random(seed))
    seen: set[str] = set()
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        lines = []
        while len(lines) < count:
            document, summary = teller.report()
            if document not in seen:
                seen.add(document)
                lines.append(json.dumps({"document": document, "summary": summary}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_data(path: Path) -> list[dict[str, str]]:
    """The pairs in a file of ``write_data``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# The model


def write_random_model(folder: Path, texts: Sequence[str], sizes: Mapping[str, int], seed: int) -> None:
    """A BART that knows nothing, and a tokenizer that knows the words of ``texts``."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig

    from compactor.trainer.folders import save_inputs

    tokenizer = make_tokenizer(texts)
    bos, pad, eos = (SPECIAL.index(token) for token in ("<s>", "<pad>", "</s>"))
    special = {
        "bos_token_id": bos,
        "pad_token_id": pad,
        "eos_token_id": eos,
        "decoder_start_token_id": eos,
        "forced_eos_token_id": eos,
    }
    config = BartConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=DOCUMENT_TOKENS,
        d_model=sizes["width"],
        encoder_layers=sizes["layers"],
        decoder_layers=sizes["layers"],
        encoder_attention_heads=sizes["heads"],
        decoder_attention_heads=sizes["heads"],
        encoder_ffn_dim=sizes["neurons"],
        decoder_ffn_dim=sizes["neurons"],
        dropout=0.1,
        init_std=0.05,  # at BART's 0.02 so narrow a model attends to everything alike, for long
        **special,
    )
    torch.manual_seed(seed)
    model = BartForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        **special,
        forced_bos_token_id=bos,
        max_length=SUMMARY_TOKENS,
        num_beams=BEAMS,
        early_stopping=True,
    )
    model.save_pretrained(folder)
    save_inputs(tokenizer, folder)


def make_tokenizer(texts: Sequence[str]) -> Any:
    """One token a word and a punctuation mark; what it encodes it decodes to the same text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*SPECIAL, *words))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[(token, SPECIAL.index(token)) for token in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=DOCUMENT_TOKENS,
        model_input_names=["input_ids", "attention_mask"],  # BART takes no types of tokens
        clean_up_tokenization_spaces=False,
    )


def summarize(folder: Path, documents: Sequence[str]) -> list[str]:
    """What the model in ``folder`` writes, with the generation settings of its folder."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    written: list[str] = []
    for start in range(0, len(documents), 50):
        batch = tokenizer(list(documents[start : start + 50]), padding=True, return_tensors="pt")
        ids = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        written += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return written


def score(folder: Path, pairs: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """ROUGE and its standard errors, in points, and how many summaries are right to the letter."""
    from compactor.evaluation.quality import evaluate

    written = summarize(folder, [pair["document"] for pair in pairs])
    wanted = [pair["summary"] for pair in pairs]
    judged = {name: evaluate(name, written, [(each,) for each in wanted]) for name in ROUGE}
    points = {name: f"{100 * found['value']:.2f} ± {100 * found['se']:.2f}" for name, found in judged.items()}
    exact = sum(one == other for one, other in zip(written, wanted, strict=True))
    return {**points, "right to the letter": f"{exact} of {len(pairs)}"}


# The steps


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is made.

    Attributes:
        dense: How the first model is trained.
        recipe: How it is pruned.
        counts: Reports of each split.
        sizes: Layers of encoder and decoder each, width, heads and neurons of a layer.
        seed: Of the reports, of the first weights, and of the training.
    """

    dense: PruneConfig
    recipe: PruneConfig
    counts: Mapping[str, int]
    sizes: Mapping[str, int]
    seed: int


def make(work: Path, out: Path, settings: Settings) -> dict[str, Any]:
    """The four steps, those that are in ``work`` left as they are; then ``out``, and what is to be said of it."""
    from compactor.trainer.models import quiet_transformers

    with quiet_transformers():
        return _make_quietly(work, out, settings)


def _make_quietly(work: Path, out: Path, settings: Settings) -> dict[str, Any]:
    from compactor.trainer.pruning import prune

    check_seed(work, settings.seed)
    train, dev, test = (work / "data" / f"{split}.jsonl" for split in ("train", "dev", "test"))
    if not all(path.exists() for path in (train, dev, test)):
        write_data(work / "data", settings.counts, settings.seed)
    first, dense, pruned = work / "random", work / "dense", work / "pruned"
    if not (first / "tokenizer.json").exists():
        texts = [text for pair in read_data(train) for text in pair.values()]
        write_random_model(first, texts, settings.sizes, settings.seed)
    if not (dense / "training.json").exists():
        prune(first, train, dev, dense, config=settings.dense, overwrite=True, progress=say)
    if not (pruned / "training.json").exists():
        command = f"compactor prune DENSE --config {RECIPE.name} --data train.jsonl --eval dev.jsonl -o OUT"
        prune(dense, train, dev, pruned, config=settings.recipe, overwrite=True, command=command, progress=say)
    out.mkdir(parents=True, exist_ok=True)
    for name in (*FOLDER, *FOLDER_MAY_HAVE):
        if name in FOLDER or (pruned / name).exists():
            shutil.copyfile(pruned / name, out / name)
    pairs = read_data(test)
    say(f"summarizing the {len(pairs)} reports of {test.name}, dense and pruned")
    return {**facts(dense, pruned), "dense": score(dense, pairs), "pruned": score(out, pairs)}


def check_seed(work: Path, seed: int) -> None:
    """Note the seed of the steps in ``work``. Exits where they are of another."""
    note = work / "seed.json"
    work.mkdir(parents=True, exist_ok=True)
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != seed:
        sys.exit(f"error: the steps in {work} are of seed {note.read_text().strip()}: give that one, or another --work")
    note.write_text(f"{seed}\n", encoding="utf-8")


def facts(dense: Path, pruned: Path) -> dict[str, Any]:
    """What is left, and how long it took."""
    final = json.loads((pruned / "training.json").read_text(encoding="utf-8"))["final"]
    layers = final["layers"]
    first = json.loads((dense / "training.json").read_text(encoding="utf-8"))["final"]["seconds"]
    left = {}
    for stack in ("encoder", "decoder"):
        for kind in ("attention", "cross_attention"):
            heads = [sum(layer["heads"]) for layer in layers if (layer["stack"], layer["kind"]) == (stack, kind)]
            if heads:
                left[f"{stack} {kind}".replace("_", "-")] = " + ".join(map(str, heads))
        left[f"{stack} neurons"] = " + ".join(
            str(layer["neurons"][0]) for layer in layers if (layer["stack"], layer["kind"]) == (stack, "feed_forward")
        )
    return {
        "linear weights left": f"{100 * final['density']:.1f} %",
        "heads and neurons left, by layer": left,
        "minutes": {"dense": round(first / 60, 1), "pruned": round(final["seconds"] / 60, 1)},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Make it, and say how good it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the pruned model")
    parser.add_argument("--work", type=Path, help="keep the steps here (default: a temporary folder)")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=17, help="of reports, weights and training (default: %(default)s)")
    args = parser.parse_args(argv)
    from compactor.trainer.config import PruneConfig, read_recipe

    lengths = {"max_length": DOCUMENT_TOKENS, "target_length": SUMMARY_TOKENS}
    dense = PruneConfig(method="dense", task="summarization", seed=args.seed, **lengths, **DENSE)
    recipe = read_recipe(args.recipe).changed(seed=args.seed)
    with tempfile.TemporaryDirectory(prefix="summarizer-") as temporary:
        settings = Settings(dense, recipe, COUNTS, SIZES, args.seed)
        told = make(args.work or Path(temporary), args.out, settings)
    print(json.dumps(told, indent=1, ensure_ascii=False))
    return 0


def say(message: str) -> None:
    """How it is going, on stderr."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

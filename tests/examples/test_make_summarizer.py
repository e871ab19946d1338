"""The small summarizer: its language means what its summaries say, and the whole way runs, on very little."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from compactor.trainer.config import PruneConfig, read_recipe
from examples import make_summarizer
from examples.make_summarizer import DESKS, DOCUMENT_TOKENS, RECIPE, SUMMARY_TOKENS, WEATHER, Settings, Teller

COUNTS = {"train": 24, "dev": 4, "test": 4}
KINDS = {phrase: kind for kind, phrases in WEATHER.items() for phrase in phrases}


def reports(count: int, seed: int = 5) -> list[tuple[str, str]]:
    teller = Teller(random.Random(seed))
    return [teller.report() for _ in range(count)]


# A reader that knows no more than the document


def found(pattern: str, document: str) -> dict[str, str]:
    match = re.search(pattern, document)
    return {} if match is None else match.groupdict()


def read_match(document: str) -> str:
    scorer = found(r"last goal came from \w+ (?P<last>\w+)\.", document)["last"]
    played = (
        found(r"The (?P<one>\w+) beat the (?P<two>\w+) (?P<a>\d) to (?P<b>\d)\.", document)
        or found(r"The (?P<two>\w+) lost to the (?P<one>\w+) (?P<b>\d) to (?P<a>\d)\.", document)
        or found(r"The (?P<one>\w+) and the (?P<two>\w+) drew (?P<a>\d) to (?P<b>\d)\.", document)
    )
    verb = "drew" if played["a"] == played["b"] else "beat"
    return "{one} {verb} {two} {a} to {b}, {scorer} scored last".format(**played, verb=verb, scorer=scorer)


def read_orders(document: str) -> str:
    sold = r"(\w+ (?P<last>\w+) ordered (?P<count>\d+) (?P<goods>\w+)\.)"
    given = r"((?P<count>\d+) (?P<goods>\w+) go to \w+ (?P<last>\w+)\.)"
    orders = sorted((match for each in (sold, given) for match in re.finditer(each, document)), key=lambda m: m.start())
    stated = []
    for order in orders:
        last = order["last"]
        count = found(rf"{last} wants (?P<count>\d+) instead", document).get("count", order["count"])
        cancelled = f"{last} cancelled the order" in document
        stated.append(f"nothing for {last}" if cancelled else f"{count} {order['goods']} for {last}")
    return ", ".join(stated)


def read_weather(document: str) -> str:
    when = {
        part: KINDS[found(rf"In the {part} (?P<what>[^.]+)\.", document)["what"]] for part in ("morning", "evening")
    }
    degrees = found(r"It had (?P<degrees>\d+) degrees", document)["degrees"]
    return f"{when['morning']}, then {when['evening']}, {degrees} degrees"


def read_traffic(document: str) -> str:
    trip = found(r"The (?P<vehicle>\w+) to (?P<place>\w+) leaves at (?P<hour>\d+)\.", document)
    vehicle, place = trip["vehicle"], trip["place"]
    if f"The {vehicle} does not run." in document:
        return f"no {vehicle} to {place}"
    late = found(rf"The {vehicle} is late and leaves at (?P<hour>\d+)\.", document)
    return f"{vehicle} to {place} at {(late or trip)['hour']}"


READ = {"match": read_match, "orders": read_orders, "weather": read_weather, "traffic": read_traffic}


def test_a_summary_follows_from_its_document():
    for document, summary in reports(1000):
        head = found(r"^Report from (?P<place>\w+), (?P<day>\w+), for the (?P<desk>\w+) desk\.", document)
        stated = "; ".join(READ[name](document) for name in DESKS[head["desk"]])
        assert summary == f"{head['day']} in {head['place']}: {stated}."


def test_persons_places_and_teams_are_told_apart_by_their_names():
    person = rf"\b(?:{'|'.join(make_summarizer.FIRST)}) (\w+)"
    place, team = (rf"\b({'|'.join(names)})\b" for names in (make_summarizer.PLACES, make_summarizer.TEAMS))
    for document, _ in reports(300):
        for pattern in (person, place, team):
            named = re.findall(pattern, document)
            assert len(set(named)) == len(named)


def test_data_is_the_same_for_the_same_seed_and_no_document_comes_twice(tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        make_summarizer.write_data(tmp_path / name, COUNTS, seed)
    texts = {
        name: [(tmp_path / name / f"{split}.jsonl").read_text() for split in COUNTS] for name in ("one", "two", "other")
    }
    assert texts["one"] == texts["two"] != texts["other"]
    pairs = [pair for split in COUNTS for pair in make_summarizer.read_data(tmp_path / "one" / f"{split}.jsonl")]
    assert len({pair["document"] for pair in pairs}) == len(pairs) == sum(COUNTS.values())


def test_texts_fit_and_come_back_from_the_tokenizer_as_they_were():
    pairs = reports(2000)
    tokenizer = make_summarizer.make_tokenizer([text for pair in pairs for text in pair])
    assert len(tokenizer) < 400
    for texts, limit in zip(zip(*pairs, strict=True), (DOCUMENT_TOKENS, SUMMARY_TOKENS), strict=True):
        encoded = tokenizer(list(texts))["input_ids"]
        assert max(map(len, encoded)) <= limit
        assert tokenizer.batch_decode(encoded, skip_special_tokens=True) == list(texts)
        assert tokenizer.unk_token_id not in {number for ids in encoded for number in ids}


# The whole way


def settings(**changes: Any) -> Settings:
    common = {
        "task": "summarization",
        "steps": 4,
        "batch_size": 4,
        "beams": 1,
        "learning_rate": 1e-3,
        "target_length": 24,
    }
    dense = PruneConfig(method="dense", **common)
    recipe = PruneConfig(method="hybrid-nt", target_density=0.6, attention_block="4x4", **common)
    values = {"counts": COUNTS, "sizes": {"layers": 1, "width": 16, "heads": 2, "neurons": 24}, "seed": 3} | changes
    return Settings(dense=dense, recipe=recipe, **values)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    place = tmp_path_factory.mktemp("summarizer")
    yield place, make_summarizer.make(place / "work", place / "out", settings())


def test_the_whole_way_writes_a_folder_that_summarizes(made):
    from transformers import AutoTokenizer

    place, _ = made
    names = {path.name for path in (place / "out").iterdir()}
    assert names >= {*make_summarizer.FOLDER, "pruning.json", "pruning.safetensors", "training.json"}
    assert not names & {"checkpoints", "run.json"}
    texts = make_summarizer.summarize(place / "out", [document for document, _ in reports(2)])
    assert len(texts) == 2 and all(isinstance(text, str) for text in texts)
    stated = json.loads((place / "out" / "tokenizer_config.json").read_text())
    assert stated["tokenizer_class"] == "PreTrainedTokenizerFast"  # which transformers 4 knows as well
    opened = AutoTokenizer.from_pretrained(place / "out")
    assert set(opened("Monday")) == {"input_ids", "attention_mask"}


def test_generation_settings_stay_those_of_the_random_model(made):
    place, _ = made
    wanted = {"decoder_start_token_id": 2, "forced_bos_token_id": 0, "max_length": SUMMARY_TOKENS, "num_beams": 4}
    first, last = (json.loads((place / each / "generation_config.json").read_text()) for each in ("work/random", "out"))
    assert wanted.items() <= first.items() and wanted.items() <= last.items()
    assert first.keys() == last.keys()


def test_what_is_told(made):
    _, told = made
    assert 0.5 < float(told["linear weights left"].removesuffix(" %")) / 100 < 0.7
    assert set(told["heads and neurons left, by layer"]) == {
        *("encoder attention", "encoder neurons"),
        *("decoder attention", "decoder cross-attention", "decoder neurons"),
    }
    for name in ("dense", "pruned"):
        assert set(told[name]) == {*make_summarizer.ROUGE, "right to the letter"}
        assert all("±" in told[name][metric] for metric in make_summarizer.ROUGE)


def test_finished_steps_are_not_made_again(made, monkeypatch):
    place, told = made

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("made again")

    for name in ("write_data", "write_random_model"):
        monkeypatch.setattr(make_summarizer, name, never)
    monkeypatch.setattr("compactor.trainer.pruning.prune", never)
    assert make_summarizer.make(place / "work", place / "out", settings()) == told


def test_steps_of_another_seed_are_refused(made):
    place, _ = made
    with pytest.raises(SystemExit, match="are of seed 3: give that one, or another --work"):
        make_summarizer.make(place / "work", place / "out", settings(seed=4))


def test_the_recipe_is_for_this_model():
    recipe = read_recipe(RECIPE)
    assert (recipe.method, recipe.task, recipe.decoder_lambda) == ("hybrid-nt", "summarization", 2.0)
    assert (recipe.max_length, recipe.target_length) == (DOCUMENT_TOKENS, SUMMARY_TOKENS)
    head = make_summarizer.SIZES["width"] // make_summarizer.SIZES["heads"]
    assert recipe.attention_block == f"{head}x{head}"

"""Ask a Triton server, or any other that speaks the V2 protocol, for the answers of an exported text model.

    compactor export examples/sst2-small repository --layout triton
    tritonserver --model-repository=$PWD/repository
    python examples/triton_client.py repository "a charming and often affecting journey ."

Texts are tokenised here, with the files that lie beside the model's folder, and padded to a few lengths: Triton puts
only requests of the same shape together. Needs numpy and tokenizers, and nothing of compactor.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

LENGTHS = (16, 32, 64, 128, 256, 512)
BATCH = 32  # texts of a request, at most: max_batch_size in config.pbtxt
TYPES = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32}


class Client:
    """One model of one server. It keeps no connection, so threads may share it.

    Args:
        repository: The folder that ``compactor export --layout triton`` wrote.
        url: Of the server.
        model: The model's name; by default that of the only one in the repository.
    """

    def __init__(self, repository: str | Path, url: str = "http://127.0.0.1:8000", model: str | None = None) -> None:
        home = Path(repository)
        name = model or next(home.glob("*/config.pbtxt")).parent.name
        self.url = f"{url.rstrip('/')}/v2/models/{name}"
        config = json.loads((home / "config.json").read_text(encoding="utf-8"))
        limit = json.loads((home / "tokenizer_config.json").read_text(encoding="utf-8"))["model_max_length"]
        self.labels = [label for _, label in sorted((int(i), label) for i, label in config["id2label"].items())]
        self.padding = config.get("pad_token_id") or 0
        self.lengths = [*(length for length in LENGTHS if length < limit), limit]
        self.tokenizer = Tokenizer.from_file(str(home / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(limit)
        with urllib.request.urlopen(self.url, timeout=10) as response:
            self.inputs = [entry["name"] for entry in json.load(response)["inputs"]]

    def classify(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """The label and its probability for each text, in the order of the texts."""
        answers: list[tuple[str, float]] = []
        for outputs in self.infer(texts):
            odds = np.exp(outputs["logits"] - outputs["logits"].max())
            best = int(odds.argmax())
            answers.append((self.labels[best], float(odds[best] / odds.sum())))
        return answers

    def infer(self, texts: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """The outputs for each text by name, without a batch axis, in the order of the texts."""
        tokens = self.tokenizer.encode_batch(list(texts))
        buckets: dict[int, list[int]] = {}
        for index, text in enumerate(tokens):
            length = next(length for length in self.lengths if len(text) <= length)
            buckets.setdefault(length, []).append(index)
        requests = [
            (length, rows[first : first + BATCH])
            for length, rows in buckets.items()
            for first in range(0, len(rows), BATCH)
        ]
        answers: list[dict[str, np.ndarray]] = [{}] * len(tokens)
        with ThreadPoolExecutor(8) as pool:
            responses = pool.map(lambda request: self.ask([tokens[i] for i in request[1]], request[0]), requests)
            for (_, rows), outputs in zip(requests, responses, strict=True):
                for position, index in enumerate(rows):
                    answers[index] = {name: array[position] for name, array in outputs.items()}
        return answers

    def ask(self, texts: Sequence[Encoding], length: int) -> dict[str, np.ndarray]:
        """One request: (B, length) tokens, padded; (B, ...) of each output."""
        padding = {"input_ids": self.padding, "attention_mask": 0, "token_type_ids": 0}
        fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        inputs = []
        for name in self.inputs:
            rows = [getattr(text, fields[name]) for text in texts]
            data = [row + [padding[name]] * (length - len(row)) for row in rows]
            inputs.append({"name": name, "datatype": "INT64", "shape": [len(texts), length], "data": data})
        body = json.dumps({"inputs": inputs}).encode()
        request = urllib.request.Request(f"{self.url}/infer", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            outputs = json.load(response)["outputs"]
        return {
            entry["name"]: np.array(entry["data"], TYPES[entry["datatype"]]).reshape(entry["shape"])
            for entry in outputs
        }


def main() -> None:
    """Print the label of each text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("repository", type=Path, help="what 'compactor export --layout triton' wrote")
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="to classify")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server (default: %(default)s)")
    arguments = parser.parse_args()
    client = Client(arguments.repository, arguments.url)
    for text, (label, score) in zip(arguments.texts, client.classify(arguments.texts), strict=True):
        print(f"{label}\t{score:.4f}\t{text}")


if __name__ == "__main__":
    main()

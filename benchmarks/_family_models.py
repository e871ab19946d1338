"""The encoders of ``families.py``: random weights in the published sizes, dense or with planted dead structure.

Pruned means: in every layer half of the heads and two thirds of the neurons are dead, at random places. A dead head has
no weight in Q, K, V and O, a dead neuron none in what makes it and in what reads it. Biases are never zero, also where
the weights are: real checkpoints keep them, and a compiler that drops them changes the output.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _graphs
from benchmarks._workshop import GRAPHS, Workshop
from benchmarks.export_cost import measure_command
from compactor.evaluation.inputs import Feeds, InputSpec

COST = "cost.json"  # in the folder of an artefact: what its export took
_SPREAD = 0.02  # standard deviation of the biases
_PARTS = ("q_proj", "k_proj", "v_proj")
_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@dataclasses.dataclass(frozen=True)
class Family:
    """A published encoder, by its config and where its blocks lie.

    Attributes:
        name: For options, folders and ids.
        title: For tables.
        architecture: The stock class of transformers.
        settings: Of its config, where they differ from the class's own.
        layer: Path of a layer, with its number as ``{}``.
        attention: Under it, what makes Q, K and V: a matrix each, or one of all three, rows in that order.
        attention_output: Under it, what reads the heads.
        neurons: Under it, what makes the neurons: a matrix, two with a gate, or one of both.
        neurons_output: Under it, what reads the neurons.
    """

    name: str
    title: str
    architecture: str
    settings: Mapping[str, Any] = dataclasses.field(hash=False)
    layer: str
    attention: tuple[str, ...]
    attention_output: str
    neurons: tuple[str, ...]
    neurons_output: str

    @property
    def image(self) -> bool:
        """Whether it looks at images instead of tokens."""
        return self.architecture.endswith("ForImageClassification")

    @property
    def task(self) -> str:
        """As optimum calls it."""
        return "image-classification" if self.image else "text-classification"

    @property
    def layers(self) -> int:
        """How many there are."""
        return int(self.settings["num_hidden_layers"])

    @property
    def heads(self) -> tuple[int, int]:
        """Heads of a layer, before and after."""
        heads = int(self.settings["num_attention_heads"])
        return heads, heads - heads // 2

    @property
    def width(self) -> tuple[int, int]:
        """Neurons of a layer, before and after."""
        neurons = int(self.settings["intermediate_size"])
        return neurons, neurons - 2 * neurons // 3

    @property
    def tiny(self) -> Family:
        """The same in two narrow layers: to try the whole way."""
        title, settings = f"{self.title}, tiny", {**self.settings, **_TINY}
        return dataclasses.replace(self, name=f"tiny-{self.name}", title=title, settings=settings)


_BERT_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_BERT_BLOCKS = {
    "attention": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_output": "attention.output.dense",
    "neurons": ("intermediate.dense",),
    "neurons_output": "output.dense",
}

FAMILIES: tuple[Family, ...] = (
    Family(
        "modernbert",
        "ModernBERT-base",
        "ModernBertForSequenceClassification",
        {"hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12, "intermediate_size": 1152},
        layer="model.layers.{}",
        attention=("attn.Wqkv",),
        attention_output="attn.Wo",
        neurons=("mlp.Wi",),
        neurons_output="mlp.Wo",
    ),
    Family(
        "deberta",
        "DeBERTa-v3-base",
        "DebertaV2ForSequenceClassification",
        {
            **_BERT_SIZES,
            "relative_attention": True,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        },
        layer="deberta.encoder.layer.{}",
        **{**_BERT_BLOCKS, "attention": tuple(f"attention.self.{part}_proj" for part in ("query", "key", "value"))},
    ),
    Family(
        "gte",
        "GTE-base (gte-base-en-v1.5)",
        "GteForSequenceClassification",
        {
            **_BERT_SIZES,
            "vocab_size": 30528,
            "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        },
        layer="gte.layers.{}",
        attention=tuple(f"self_attn.{part}" for part in _PARTS),
        attention_output="self_attn.o_proj",
        neurons=("mlp.gate_proj", "mlp.up_proj"),
        neurons_output="mlp.down_proj",
    ),
    Family(
        "esm",
        "ESM-2 150M",
        "EsmForSequenceClassification",
        {
            "vocab_size": 33,
            "hidden_size": 640,
            "num_hidden_layers": 30,
            "num_attention_heads": 20,
            "intermediate_size": 2560,
            "max_position_embeddings": 1026,
            "position_embedding_type": "rotary",
            "token_dropout": True,
            "emb_layer_norm_before": False,
            "layer_norm_eps": 1e-5,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
            "mask_token_id": 32,
        },
        layer="esm.encoder.layer.{}",
        **_BERT_BLOCKS,
    ),
    Family(
        "vit",
        "ViT-base",
        "ViTForImageClassification",
        {**_BERT_SIZES, "num_labels": 1000},
        layer="vit.layers.{}",
        attention=tuple(f"attention.{part}" for part in _PARTS),
        attention_output="attention.o_proj",
        neurons=("mlp.fc1",),
        neurons_output="mlp.fc2",
    ),
    Family("bert", "BERT-base", "BertForSequenceClassification", _BERT_SIZES, "bert.encoder.layer.{}", **_BERT_BLOCKS),
)


def plant_family(folder: Path, family: Family, *, pruned: bool, seed: int = 0) -> None:
    """Write a Hugging Face folder with random weights.

    Args:
        folder: Where to; created.
        family: The sizes.
        pruned: Whether half of the heads and two thirds of the neurons are dead.
        seed: Of the weights, which are the same dense and pruned, and of what is dead.
    """
    import torch
    import transformers

    architecture = getattr(transformers, family.architecture)
    torch.manual_seed(seed)
    model = architecture(architecture.config_class(**family.settings)).eval().requires_grad_(False)
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            tensor.normal_(std=_SPREAD)
    random = np.random.default_rng(seed)
    for number in range(family.layers if pruned else 0):
        layer = model.get_submodule(family.layer.format(number))
        heads, neurons = (_alive(*sizes, random) for sizes in (family.heads, family.width))
        channels = heads.repeat(model.config.hidden_size // len(heads))
        for alive, makers, reader in (
            (channels, family.attention, family.attention_output),
            (neurons, family.neurons, family.neurons_output),
        ):
            for maker in makers:
                weight = layer.get_submodule(maker).weight  # (parts of it one below the other, in)
                weight.mul_(torch.from_numpy(np.tile(alive, len(weight) // len(alive))[:, None]))
            layer.get_submodule(reader).weight.mul_(torch.from_numpy(alive))
    model.save_pretrained(folder)


def _alive(before: int, after: int, random: np.random.Generator) -> Any:
    """Which of them live: ``after`` of ``before``."""
    alive = np.zeros(before, dtype=bool)
    alive[random.choice(before, after, replace=False)] = True
    return alive


@dataclasses.dataclass(frozen=True)
class FamilyModel(Workshop):
    """A random model of a family.

    Attributes:
        family: The sizes.
        pruned: Whether it has dead structure.
    """

    family: Family
    pruned: bool

    @property
    def kind(self) -> str:
        """``dense`` or ``pruned``."""
        return "pruned" if self.pruned else "dense"

    @property
    def folder(self) -> Path:
        """Where everything of this model goes."""
        return self.work / f"{self.family.name}-{self.kind}"

    def checkpoint(self) -> Path:
        """The random model, with its zeros."""
        return self.once(
            "checkpoint",
            lambda path: _graphs.in_fresh_process(plant_family, path, self.family, pruned=self.pruned),
        )

    def check_sizes(self, manifest: Mapping[str, Any]) -> None:
        """Nothing: what an export left of a family is part of the result (``left``)."""

    def artefact(self) -> Path:
        """The folder of our export, made by the command, with what that took beside it. Raises ``BuildError``."""
        return self.once("exported", self._export)

    def cost(self) -> dict[str, Any]:
        """What the export took and left; empty where there is none.

        Returns:
            ``wall_s`` and ``peak_bytes`` of the command, ``model_bytes`` of the weights it read, and ``left``.
        """
        path = self.folder / "exported"
        if not path.exists():
            return {}
        found: dict[str, Any] = json.loads((path / COST).read_text(encoding="utf-8"))
        manifest = json.loads((path / "compactor.json").read_text(encoding="utf-8"))
        return {**found, "left": left(self.family, manifest["layers"]), "packed": manifest["recipe"]["pack"]}

    def ours_in(self, precision: str) -> Path:
        """The graph of our export in ``fp32`` or ``int8``. Raises ``BuildError``."""
        path = self.artefact() / "onnx" / GRAPHS[precision]
        if not path.exists():
            raise _graphs.BuildError(f"the export wrote no {path.name}")
        return path

    def spec(self) -> InputSpec:
        """What it takes."""
        config = json.loads((self.checkpoint() / "config.json").read_text(encoding="utf-8"))
        return InputSpec.from_config(config, task=self.family.task, image=self.family.image)

    def _export(self, path: Path) -> None:
        checkpoint = self.checkpoint()
        command = [sys.executable, "-m", "compactor", "export", str(checkpoint), str(path), "--quiet"]
        try:
            cost = measure_command(command)
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines()[1:] if line.strip()] or ["it failed without a word"]
            raise _graphs.BuildError("compactor export: " + " ".join(lines[-2:])) from error
        cost["model_bytes"] = (checkpoint / "model.safetensors").stat().st_size
        (path / COST).write_text(json.dumps(cost), encoding="utf-8")


def random_example(spec: InputSpec, length: int, seed: int) -> Feeds:
    """One random example without padding: of ``length`` tokens, or an image."""
    random = np.random.default_rng(seed)
    return spec.random_images(random, 1) if spec.image else spec.random_tokens(random, 1, length)


def left(family: Family, layers: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """What an export saw and kept of the blocks, by the layers of its manifest.

    Returns:
        ``heads`` and ``neurons``, each before and after, over all layers; what was not recognised counts in neither.
    """
    attention = [layer["heads"] for layer in layers if layer["kind"] == "attention"]
    feed_forward = [  # a head may have one as well, of another width
        layer["width"] for layer in layers if layer["kind"] == "feed_forward" and layer["width"][0] == family.width[0]
    ]
    return {
        kind: [sum(sizes[i] for sizes in found) for i in (0, 1)]
        for kind, found in (("heads", attention), ("neurons", feed_forward))
    }

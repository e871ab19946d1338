"""``Dense``, ``LayerNorm`` and ``Normalize``: what is done to vectors, of a text or of its tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from .features import SENTENCE, TOKENS, Features
from .module import Module, require

Array = NDArray[np.float32]
_NORM_EPSILON = 1e-5  # of torch's LayerNorm
_ERF = np.frompyfunc(math.erf, 1, 1)


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * np.tanh(0.5 * x) + 0.5)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "torch.nn.modules.linear.Identity": lambda x: x,
    "torch.nn.modules.activation.Tanh": np.tanh,
    "torch.nn.modules.activation.ReLU": lambda x: np.maximum(x, 0),
    "torch.nn.modules.activation.GELU": lambda x: x * (0.5 + 0.5 * _ERF(x / math.sqrt(2)).astype(np.float32)),
    "torch.nn.modules.activation.SiLU": lambda x: x * _sigmoid(x),
    "torch.nn.modules.activation.Sigmoid": _sigmoid,
}
_SHORT = {path.replace(".modules.linear", "").replace(".modules.activation", ""): path for path in ACTIVATIONS}


def read_dense(module: Module, source: str) -> Callable[[Features], None]:
    """A linear layer, an activation, and the input added to that where ``use_residual`` says so.

    Args:
        module: The module.
        source: What it reads where its settings do not say.

    Raises:
        ArtefactError: A setting is not built, or the weights are others.
    """
    weights, activation, residual = weights_of(module)
    activate = ACTIVATIONS[activation]
    read, write = names_of(module, source)

    def project(features: Features) -> None:
        given = features.arrays[read]
        made = activate(given @ weights["linear__weight"].T + weights.get("linear__bias", np.float32(0)))
        if residual:
            made = made + (given @ weights["residual__weight"].T if "residual__weight" in weights else given)
        features.arrays[write] = made

    return project


def weights_of(module: Module) -> tuple[dict[str, Array], str, bool]:
    """Of a ``Dense``: its arrays, the name of its activation, and whether its input is added.

    Raises:
        ArtefactError: A setting is not built, or the weights are others.
    """
    config = module.config
    path = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    path = _SHORT.get(path, path) if isinstance(path, str) else path
    require(path in ACTIVATIONS, module, "activation_function", path, f"one of {', '.join(ACTIVATIONS)}")
    wide, narrow = module.size("in_features"), module.size("out_features")
    shapes: dict[str, tuple[int, ...]] = {"linear__weight": (narrow, wide)}
    if config.get("bias", True):
        shapes["linear__bias"] = (narrow,)
    residual = bool(config.get("use_residual", False))
    if residual and wide != narrow:
        shapes["residual__weight"] = (narrow, wide)
    return module.weights(**shapes), str(path), residual


def read_layer_norm(module: Module) -> Callable[[Features], None]:
    """LayerNorm of the text's vector (Ba et al. 2016, arXiv 1607.06450, eq. 4).

    Raises:
        ArtefactError: A setting is unknown, or the weights are others.
    """
    module.allow("dimension")
    width = module.size("dimension")
    weights = module.weights(norm__weight=(width,), norm__bias=(width,))

    def norm(features: Features) -> None:
        given = features.arrays[SENTENCE]
        centred = given - given.mean()
        scaled = centred / np.sqrt((centred**2).mean() + _NORM_EPSILON)
        features.arrays[SENTENCE] = (scaled * weights["norm__weight"] + weights["norm__bias"]).astype(np.float32)

    return norm


def read_normalize(module: Module) -> Callable[[Features], None]:
    """Vectors to length 1.

    Raises:
        ArtefactError: A setting is unknown.
    """
    module.allow("module_input_name", "module_output_name")
    read, write = names_of(module, SENTENCE)

    def normalize(features: Features) -> None:
        given = features.arrays[read]
        length = np.linalg.norm(given, axis=-1, keepdims=True)
        features.arrays[write] = given / np.maximum(length, np.float32(1e-12))

    return normalize


def names_of(module: Module, source: str) -> tuple[str, str]:
    """What a module reads, and what it writes.

    Args:
        module: The module.
        source: What it reads where its settings do not say.

    Raises:
        ArtefactError: They are none of those here.
    """
    read = module.config.get("module_input_name", source)
    require(read in (SENTENCE, TOKENS), module, "module_input_name", read, f"{SENTENCE} or {TOKENS}")
    write = module.config.get("module_output_name") or read
    require(write in (SENTENCE, TOKENS), module, "module_output_name", write, f"{SENTENCE} or {TOKENS}")
    return read, write

"""Read ``sparse_args.json``: how a raw nn_pruning checkpoint turns scores into masks.

nn_pruning writes its training arguments there. Three kinds of matrix have settings of their own: the query, key and
value projections; the attention output (the feed-forward's settings, or the attention's with block rows and columns
exchanged); and the feed-forward pair. Whatever would change the masks or the model beyond that is refused by name.
"""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Any

from compactor.checkpoint.config import read_json_object
from compactor.errors import ModelDirectoryError

FILE_NAME = "sparse_args.json"
_DEFAULT_MIN_FRACTION = 0.005  # nn_pruning's own, before the option existed


class Method(enum.Enum):
    """How a score decides; the values are nn_pruning's, with its spelling."""

    DISABLED = "disabled"
    THRESHOLD = "threshold"
    SIGMOID_THRESHOLD = "sigmoied_threshold"
    TOP_K = "topK"
    MAGNITUDE = "magnitude"
    L0 = "l0"


class Submethod(enum.Enum):
    """What a score stands for: a block of the matrix, or a row, a column, or one of each."""

    BLOCK = "default"
    JOINT = "joint"
    CROSSED = "1d"
    ALTERNATING = "1d_alt"

    @property
    def by_lines(self) -> bool:
        """Whether scores are vectors of rows and columns, and not grids of blocks."""
        return self in (Submethod.CROSSED, Submethod.ALTERNATING)


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """How the scores of one kind of matrix become its mask.

    Attributes:
        method: How a score decides.
        submethod: What a score stands for.
        block_rows: Rows of the stored ``(out, in)`` weight that share a score.
        block_cols: Its columns that share a score.
    """

    method: Method
    submethod: Submethod
    block_rows: int
    block_cols: int


@dataclasses.dataclass(frozen=True)
class SparseArgs:
    """The part of ``sparse_args.json`` that decides the masks.

    Attributes:
        attention: Settings of the query, key and value projections.
        attention_output: Settings of the attention's output projection.
        dense: Settings of the feed-forward pair.
        output_with_dense: Whether the attention's output goes with the feed-forward pair.
        threshold: The final threshold; for ``topK`` and ``magnitude`` the fraction that is kept; ``l0`` has none.
        min_fraction: The fraction of scores that threshold methods keep at least; 0 for no such floor.
        bias_mask: Whether a row without a live block loses its bias.
        relu: Whether training turned GELU into ReLU.
        no_norm: Whether training turned LayerNorm into NoNorm.
    """

    attention: MaskSettings
    attention_output: MaskSettings
    dense: MaskSettings
    output_with_dense: bool
    threshold: float
    min_fraction: float
    bias_mask: bool
    relu: bool
    no_norm: bool


def read_sparse_args(path: Path) -> SparseArgs:
    """Read and check ``sparse_args.json``.

    Raises:
        ModelDirectoryError: The file is damaged, or asks for a method or a model change that is not supported.
    """
    values = read_json_object(path)
    reader = _Reader(values, str(path))
    reader.refuse_unsupported()
    attention = MaskSettings(
        *reader.method("attention_pruning_method"),
        reader.block("attention_block_rows"),
        reader.block("attention_block_cols"),
    )
    dense = MaskSettings(
        *reader.method("dense_pruning_method"), reader.block("dense_block_rows"), reader.block("dense_block_cols")
    )
    transposed = dataclasses.replace(attention, block_rows=attention.block_cols, block_cols=attention.block_rows)
    with_dense = reader.flag("attention_output_with_dense", default=True)
    return SparseArgs(
        attention=attention,
        attention_output=dense if with_dense else transposed,
        dense=dense,
        output_with_dense=with_dense,
        threshold=reader.number("final_threshold", default=None),
        min_fraction=reader.fraction("linear_min_parameters", default=_DEFAULT_MIN_FRACTION),
        bias_mask=reader.flag("bias_mask", default=False),
        relu=reader.flag("gelu_patch", default=False),
        no_norm=reader.flag("layer_norm_patch", default=False),
    )


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Typed access to the values; every refusal names the option and the file."""

    values: dict[str, Any]
    where: str

    def refuse_unsupported(self) -> None:
        """Refuse options under which the stored weights and scores alone do not define the model."""
        if (ampere := self.values.get("ampere_pruning_method")) not in (None, "disabled"):
            raise self._error(f"ampere pruning ('{ampere}') is not supported")
        for name, what in (
            ("qat", "quantization-aware training"),
            ("rewind_model_name_or_path", "masks that also depend on another model"),
        ):
            if self.values.get(name):
                raise self._error(f"'{name}' is set: {what} is not supported")
        if self.values.get("gelu_patch") and self.values.get("eval_with_current_patch_params"):
            raise self._error("'gelu_patch' with 'eval_with_current_patch_params' is not supported")

    def method(self, name: str) -> tuple[Method, Submethod]:
        text = self.values.get(name)
        if not isinstance(text, str):
            raise self._error(f"'{name}' is missing")
        method, _, submethod = text.partition(":")
        if method not in {known.value for known in Method}:
            raise self._error(f"pruning method '{method}' ('{name}') is not supported", todo=_one_of(Method))
        if (submethod or "default") not in {known.value for known in Submethod}:
            raise self._error(f"pruning sub-method '{submethod}' ('{name}') is not supported", todo=_one_of(Submethod))
        return Method(method), Submethod(submethod or "default")

    def block(self, name: str) -> int:
        value = self.values.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._error(f"'{name}' must be a positive whole number, not {value!r}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if value not in (True, False):  # 0 and 1 are common
            raise self._error(f"'{name}' must be true or false, not {value!r}")
        return bool(value)

    def number(self, name: str, *, default: float | None) -> float:
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e30 < value < 1e30:
            raise self._error(f"'{name}' must be a number, not {value!r}")
        return float(value)

    def fraction(self, name: str, *, default: float) -> float:
        value = self.number(name, default=default)
        if not 0 <= value <= 1:
            raise self._error(f"'{name}' must lie between 0 and 1, not {value!r}")
        return value

    def _error(self, what: str, todo: str | None = None) -> ModelDirectoryError:
        return ModelDirectoryError(what, where=self.where, todo=todo)


def _one_of(values: type[enum.Enum]) -> str:
    return f"supported: {', '.join(str(value.value) for value in values)}"

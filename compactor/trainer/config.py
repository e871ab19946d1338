"""The settings of a run: defaults, a recipe in TOML, options; each overrides the one before.

The defaults are the paper's where it has one for all data sets (Lagunas et al., 2021, Appendix A): learning rates of
3e-5 for weights and 1e-2 for scores, a final threshold of 0.1, a teacher's share of 0.9 at temperature 2.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from compactor.errors import UsageError
from compactor.trainer.methods import Method, Second, Unit, find_method, parse_unit
from compactor.trainer.schedule import FINAL_THRESHOLD, Schedule

Precision = Literal["fp32", "bf16", "fp16"]


def _setting(default: Any, text: str, *, at_least: float | None = None, at_most: float | None = None) -> Any:
    """A field with its help and its bounds."""
    return dataclasses.field(default=default, metadata={"help": text, "at_least": at_least, "at_most": at_most})


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """Everything that decides what a run computes; ``docs/training.md`` lists the fields from here."""

    method: str = _setting("hybrid", "what is pruned: `compactor prune --list-methods`")
    task: str | None = _setting(
        None,
        "text-classification, question-answering, summarization or image-classification; by default, as MODEL and data "
        "say",
    )
    epochs: float | None = _setting(
        None, "passes over the training data; 3 where neither this nor steps is given", at_least=0
    )
    steps: int | None = _setting(None, "optimizer steps, instead of epochs", at_least=1)
    batch_size: int = _setting(32, "examples of a batch, in each process", at_least=1)
    eval_batch_size: int = _setting(64, "examples of a batch of an evaluation", at_least=1)
    accumulate: int = _setting(1, "batches of an optimizer step", at_least=1)
    max_length: int | None = _setting(
        None, "tokens of an example at most: 128; of a question's window 384, of a document 512", at_least=8
    )
    stride: int = _setting(128, "tokens by which windows over a long context overlap", at_least=0)
    max_answer: int = _setting(30, "tokens of an answer at most", at_least=1)
    target_length: int = _setting(142, "tokens of a summary at most, as far as MODEL has positions", at_least=1)
    beams: int = _setting(4, "beams of generation in an evaluation", at_least=1)
    learning_rate: float = _setting(3e-5, "of the weights", at_least=0)
    score_learning_rate: float = _setting(1e-2, "of the scores", at_least=0)
    weight_decay: float = _setting(0.0, "of the weights (AdamW)", at_least=0)
    learning_rate_warm_up: float = _setting(
        0.1, "steps in which learning rates rise: a number, or a share below 1", at_least=0
    )
    max_grad_norm: float = _setting(1.0, "gradients are clipped to this norm", at_least=0)
    warm_up: float = _setting(0.1, "steps before pruning: a number, or a share below 1", at_least=0)
    cool_down: float = _setting(0.3, "last steps, with masks settled: a number, or a share below 1", at_least=0)
    second_steps: float = _setting(
        0.5, "steps of what follows in filled methods: a number, or a share of steps below 1", at_least=0
    )
    final_threshold: float = _setting(FINAL_THRESHOLD, "what the sigmoid of a score must pass", at_least=0, at_most=1)
    strength: float | None = _setting(None, "λ, the weight of the regularisation; by default the method's", at_least=0)
    target_density: float | None = _setting(
        None, "the part of the linear weights to reach; λ is steered there", at_least=0.005, at_most=1
    )
    attention_lambda: float | None = _setting(None, "multiple of λ for attention; by default the method's", at_least=0)
    feed_forward_lambda: float | None = _setting(
        None, "multiple of λ for feed-forward layers; by default the method's", at_least=0
    )
    decoder_lambda: float = _setting(2.0, "multiple of both in a decoder", at_least=0)
    attention_block: str | None = _setting(
        None, "what a score of attention covers: ROWSxCOLS, head, dim or none; by default the method's"
    )
    feed_forward_block: str | None = _setting(
        None, "what a score of feed-forward layers covers: ROWSxCOLS, dim or none; by default the method's"
    )
    least: float = _setting(
        0.005, "the part of each matrix's scores that stays, whatever they are", at_least=0, at_most=1
    )
    alpha_teacher: float = _setting(0.9, "weight of the teacher's answers", at_least=0)
    alpha_ce: float = _setting(0.1, "weight of the data's, beside a teacher", at_least=0)
    alpha_hidden: float | None = _setting(
        None,
        "weight of the states of tokens after each layer, beside a teacher of MODEL's shape; by default the method's",
        at_least=0,
    )
    temperature: float = _setting(2.0, "of the teacher's answers and the student's", at_least=0.01)
    freeze_embeddings: bool = _setting(
        False, "leave the embeddings as they are: faster where they are most of the model"
    )
    precision: Precision = _setting("fp32", "fp32, or mixed with bf16 or fp16")
    seed: int = _setting(17, "of initialisation, data order and dropout", at_least=0)
    eval_steps: int | None = _setting(
        None, "steps between evaluations and checkpoints; by default a tenth of all", at_least=1
    )
    logging_steps: int | None = _setting(None, "steps between log lines; by default a fiftieth of all", at_least=1)

    def __post_init__(self) -> None:
        """Check each value's bounds.

        Raises:
            UsageError: One is out of them, or two contradict each other.
        """
        for field in dataclasses.fields(self):
            value, low, high = getattr(self, field.name), field.metadata["at_least"], field.metadata["at_most"]
            if isinstance(value, int | float) and not isinstance(value, bool):
                if (low is not None and value < low) or (high is not None and value > high) or value != value:
                    bounds = f"from {low:g} to {high:g}" if high is not None else f"at least {low:g}"
                    raise UsageError(f"{_key(field.name)} is {value:g}", todo=f"expected a number {bounds}")
        if self.epochs is not None and self.steps is not None:
            raise UsageError("both epochs and steps are given", todo="leave one out")
        if not self.preset.prunes and (self.attention_block or self.feed_forward_block):
            raise UsageError(
                f"the method '{self.method}' prunes nothing", todo="leave out the blocks, or choose another"
            )
        if self.preset.second is Second.KEEP and self.target_density is not None:
            raise UsageError(
                f"the method '{self.method}' prunes nothing, so no density is reached", todo="leave it out"
            )
        self.attention, self.feed_forward  # noqa: B018 # raise for a block that is none

    @property
    def preset(self) -> Method:
        """The method's own settings."""
        return find_method(self.method)

    @property
    def attention(self) -> Unit:
        """What a score of attention covers."""
        return _unit(self.attention_block, self.preset.attention, "attention_block")

    @property
    def feed_forward(self) -> Unit:
        """What a score of feed-forward matrices covers."""
        return _unit(self.feed_forward_block, self.preset.feed_forward, "feed_forward_block")

    def schedule(self, steps: int) -> Schedule:
        """Of a run of ``steps`` optimizer steps.

        Raises:
            UsageError: Warm-up and cool-down leave no step for pruning.
        """
        warm_up, cool_down = steps_of(self.warm_up, steps), steps_of(self.cool_down, steps)
        if warm_up + cool_down >= steps:
            raise UsageError(
                f"{warm_up} steps of warm-up and {cool_down} of cool-down leave none of {steps} for pruning",
                todo="train longer, or lower warm_up and cool_down",
            )
        return Schedule(steps, warm_up, cool_down, self.final_threshold)

    def to_json(self) -> dict[str, Any]:
        """Every setting, under the keys of a recipe."""
        return {_key(name): value for name, value in dataclasses.asdict(self).items()}

    def changed(self, **values: Any) -> PruneConfig:
        """The same with other values; those that are None are left as they are."""
        return dataclasses.replace(self, **{name: value for name, value in values.items() if value is not None})


def steps_of(value: float, steps: int) -> int:
    """A number of steps, or below 1 a share of all."""
    return round(value * steps) if value < 1 else round(value)


def read_recipe(path: Path) -> PruneConfig:
    """The settings in a TOML file; what it does not name has its default.

    Raises:
        UsageError: It cannot be read, names a setting that there is not, or gives one a value of another kind.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path), todo="check the path") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"not TOML: {error}", where=str(path), todo="see examples/recipes") from error
    return from_json(content, where=str(path))


def from_json(content: Mapping[str, Any], *, where: str) -> PruneConfig:
    """The settings in a mapping with the keys of a recipe.

    Raises:
        UsageError: A key or a value does not fit; names ``where``.
    """
    hints = typing.get_type_hints(PruneConfig)
    fields = {_key(field.name): field.name for field in dataclasses.fields(PruneConfig)}
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in fields:
            close = ["lambda"] if key == "strength" else difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"choose from: {', '.join(fields)}"
            raise UsageError(f"there is no setting '{key}'", where=where, todo=hint)
        name = fields[key]
        if not _fits(value, hints[name]):
            raise UsageError(f"'{key}' is {value!r}", where=where, todo=f"expected {_kinds(hints[name])}")
        values[name] = float(value) if _is_float(hints[name]) and value is not None else value
    try:
        return PruneConfig(**values)
    except UsageError as error:
        raise UsageError(error.what, where=where, todo=error.todo) from error


def describe_settings() -> list[tuple[str, Any, str]]:
    """Key, default and help of each setting."""
    return [(_key(field.name), field.default, field.metadata["help"]) for field in dataclasses.fields(PruneConfig)]


def _key(name: str) -> str:
    """The paper's λ has a Greek name in a recipe, which Python keeps for itself."""
    return "lambda" if name == "strength" else name


def _unit(text: str | None, default: Unit, name: str) -> Unit:
    return default if text is None else parse_unit(text, name)


def _fits(value: Any, hint: Any) -> bool:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if typing.get_origin(option) is Literal:
            if value in typing.get_args(option):
                return True
        elif isinstance(value, bool) or option is bool:
            if isinstance(value, bool) and option is bool:
                return True
        elif isinstance(value, option) or (option is float and isinstance(value, int)):
            return True
    return value is None and type(None) in options


def _is_float(hint: Any) -> bool:
    return hint is float or float in typing.get_args(hint)


def _kinds(hint: Any) -> str:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return " or ".join(names[option] for option in options if option in names)

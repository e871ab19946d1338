"""What a caller may choose about how answers are read."""

from __future__ import annotations

import dataclasses

AGGREGATIONS = ("simple", "first", "average", "max", "none")


@dataclasses.dataclass(frozen=True)
class ReadingOptions:
    """The defaults are those of transformers' pipelines; of entities ``simple``, where the pipeline says ``none``.

    Attributes:
        aggregation: How tokens become entities (``aggregation_strategy``): one of ``AGGREGATIONS``.
        answer_tokens: Tokens of the answer to a question, at most (``max_answer_len``).
        no_answer: Whether a question may have no answer (``handle_impossible_answer``).
        fills: Tokens for each mask (``top_k``).

    Raises:
        ValueError: There is no such aggregation, or a number is below one.
    """

    aggregation: str = "simple"
    answer_tokens: int = 15
    no_answer: bool = False
    fills: int = 5

    def __post_init__(self) -> None:
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(f"there is no aggregation '{self.aggregation}'; choose from {', '.join(AGGREGATIONS)}")
        for name in ("answer_tokens", "fills"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")

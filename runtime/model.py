"""An artefact as a function: texts in, answers out.

    model = compactor.runtime.load("OUT_DIR")
    model("a gripping film")                       # Classified(label='positive', score=0.99, ...)
    model(["a gripping film", "", "what a bore"])  # one answer a text, in their order; Refused for the second

Texts of like length share a batch, so that little of it is padding, and a batch holds no more positions than the
machine's caches like. The answers come back in the order of the texts. Needs numpy, tokenizers and ONNX Runtime; an
encoder-decoder needs torch and transformers too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from .answers import Answer, Answers, Refused, Written
from .artefacts import Artefact, Choice
from .bucketing import by_length, restore
from .encoding import Collator, Encoded, TextEncoder
from .errors import ArtefactError
from .image_files import is_image
from .images import IMAGE_TASKS, ImageCollator, ImageEncoder
from .reading import Outputs, Reader, ReadingOptions, answer_type, make_reader
from .remote_graph import RemoteGraph
from .sentences import Prompts, Roles, SentenceSettings
from .sessions import open_session
from .threads import ThreadPlan, explain_threads
from .tokenizer import special_token

if TYPE_CHECKING:
    from .generation import EncoderDecoder

MAX_BATCH = 64
BATCH_TOKENS = 4096

# Their text's vector is the state of the last position, padding or not, of texts that are all of one length.
_FILLED = ("siglip", "siglip_text_model", "siglip2", "siglip2_text_model")
_TYPES: dict[str, type[np.generic]] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class Model:
    """A loaded artefact; made by ``load``. Threads may call it at the same time: they share its sessions.

    Attributes:
        name: The artefact's folder name.
        task: For example ``text-classification``.
        answer_type: The record that an item is answered with.
        labels: The names of its labels, in the order of the logits; empty where the task has none.
        precision: Which graph was chosen, and why.
        threads: How many threads an operator gets, and why.
        max_tokens: Tokens of a text, at most; None where nothing says.
        max_batch: Texts that are run together, at most.
        batch_tokens: Positions of a batch, padding included, at most.
    """

    def __init__(
        self,
        artefact: Artefact,
        choice: Choice,
        threads: ThreadPlan,
        encoder: TextEncoder | ImageEncoder,
        runner: _Graph | _Writer,
        *,
        max_batch: int,
        batch_tokens: int,
    ) -> None:
        self.name = artefact.folder.resolve().name
        self.task, self.labels, self.answer_type = artefact.task, artefact.labels, answer_type(artefact)
        self.precision, self.threads = choice, threads
        self.max_tokens, self.max_batch, self.batch_tokens = encoder.limit, max_batch, batch_tokens
        self._encoder, self._runner = encoder, runner
        self._prompts = Prompts.read(artefact.folder)

    @overload
    def __call__(
        self, items: str, *, role: str | None = ..., prompt_name: str | None = ..., prompt: str | None = ...
    ) -> Answer | Refused: ...
    @overload
    def __call__(
        self, items: Iterable[Any], *, role: str | None = ..., prompt_name: str | None = ..., prompt: str | None = ...
    ) -> list[Answer | Refused]: ...

    def __call__(
        self,
        items: str | Iterable[Any],
        *,
        role: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Answer | Refused | list[Answer | Refused]:
        """Answer a text, or each of many.

        Args:
            items: A text; or a list of texts, of pairs (text-classification), or of questions with their contexts
                (question-answering), these as tuples or as mappings with ``text`` and ``text_pair``, or ``question``
                and ``context``. Of a model of images: an image, or a list of them, each as ``PIL.Image.Image``, array
                of uint8 (H, W, 3), bytes of a file, or path.
            role: ``query`` or ``document``: what the texts are for, where a model of vectors tells them apart
                (``encode_query`` and ``encode_document`` of sentence-transformers).
            prompt_name: The folder's prompt that shall stand before each text; by default the one it names itself.
            prompt: A prompt of one's own.

        Returns:
            For a text its answer, for many one each, in their order. Where an item is no text, empty or too long,
            that is a ``Refused`` with the reason.
        """
        single = is_image(items) if isinstance(self._encoder, ImageEncoder) else isinstance(items, str)
        encoded = self.encode([items] if single else list(items), role=role, prompt_name=prompt_name, prompt=prompt)
        answers = iter(self.answer([item for item in encoded if isinstance(item, Encoded)]))
        found = [item if isinstance(item, Refused) else next(answers) for item in encoded]
        return found[0] if single else found

    def encode(
        self,
        items: Sequence[Any],
        *,
        role: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> list[Encoded | Refused]:
        """The first half of a call: items to tokens, one entry an item; the arguments are those of a call."""
        return self._encoder.encode(items, prompt=self._prompts.choose(role, prompt_name, prompt), role=role)

    def answer(self, items: Sequence[Encoded]) -> Answers:
        """The second half: tokens to answers, one an item."""
        return self._runner.answer(items, max_batch=self.max_batch, batch_tokens=self.batch_tokens)


def load(
    folder: str | Path,
    *,
    precision: str | None = None,
    provider: str | None = None,
    threads: int | None = None,
    truncate: bool = False,
    allow_spinning: bool = True,
    max_batch: int = MAX_BATCH,
    batch_tokens: int = BATCH_TOKENS,
    url: str | None = None,
    aggregation: str = "simple",
    answer_tokens: int = 15,
    no_answer: bool = False,
    fills: int = 5,
) -> Model:
    """Open an artefact of ``compactor export`` to answer texts.

    Args:
        folder: The artefact.
        precision: ``fp32``, ``int8`` or ``fp16``; chosen for this machine when omitted, see ``Model.precision``.
        provider: ``cpu`` or ``cuda``; likewise.
        threads: For one operator; by default one for each core that this process may use, within the container's
            quota.
        truncate: Cut texts that are too long instead of refusing them. Contexts of questions are never too long: they
            are read in windows.
        allow_spinning: Let idle threads wait busily: faster alone, harmful beside other work. An encoder-decoder's
            sessions, which take turns, never do.
        max_batch: Texts that are run together, at most.
        batch_tokens: Positions of a batch, padding included, at most; a longer text has a batch of its own.
        url: Of a server that runs the graph, such as Triton: ``folder`` is then its model repository
            (``compactor export --layout triton``), and only texts and answers are made here.
        aggregation: How tokens become entities, as ``aggregation_strategy`` of transformers' pipeline: ``simple``,
            ``first``, ``average``, ``max``, or ``none``.
        answer_tokens: Tokens of the answer to a question, at most (``max_answer_len`` of the pipeline).
        no_answer: Whether a question may have no answer (``handle_impossible_answer``); then that is an ``Answered``
            with an empty text.
        fills: How many tokens for each mask (``top_k``).

    Raises:
        ArtefactError: The folder is no artefact, is damaged, or answers no texts.
        RemoteGraphError: The server at ``url`` is not there, or has no such model.
        ProviderUnavailableError: The provider is not installed, or does not start.
        ValueError: A number is below one, or there is no such aggregation.
    """
    if max_batch < 1 or batch_tokens < 1:
        raise ValueError(f"expected max_batch and batch_tokens of at least 1, got {max_batch} and {batch_tokens}")
    options = ReadingOptions(aggregation, answer_tokens, no_answer, fills)
    artefact = Artefact.open(folder)
    choice = artefact.choose(precision, provider)
    plan = explain_threads(threads)
    vocabulary = artefact.config.get("vocab_size")
    encoder: TextEncoder | ImageEncoder
    if artefact.task in IMAGE_TASKS:
        encoder = ImageEncoder(artefact.folder, artefact.config)
    else:
        encoder = TextEncoder(
            artefact.folder,
            task=artefact.task,
            limit=artefact.max_tokens,
            truncate=truncate,
            vocabulary=vocabulary if isinstance(vocabulary, int) else None,
            prefix=artefact.prefix,
            roles=Roles.read(artefact.folder, SentenceSettings.read(artefact.folder)),
        )
    runner: _Graph | _Writer
    if url is not None:
        runner = _Graph.ask(artefact, url, choice, encoder, options)
    elif artefact.generates and isinstance(encoder, TextEncoder):
        runner = _Writer.open(artefact, choice, plan.threads, encoder)
    else:
        runner = _Graph.open(artefact, choice, plan.threads, encoder, allow_spinning=allow_spinning, options=options)
    return Model(artefact, choice, plan, encoder, runner, max_batch=max_batch, batch_tokens=batch_tokens)


class _Graph:
    """One graph that answers in one pass."""

    def __init__(self, session: Any, collate: Collator | ImageCollator, reader: Reader) -> None:
        self._session, self._collate, self._reader = session, collate, reader
        self._outputs = [output.name for output in session.get_outputs()]
        # Which outputs have one entry a token: their second axis is as long as the inputs'.
        length = session.get_inputs()[0].shape[1] if isinstance(collate, Collator) else None
        self._by_token = [
            length is not None and len(output.shape) > 1 and output.shape[1] == length
            for output in session.get_outputs()
        ]

    @classmethod
    def open(
        cls,
        artefact: Artefact,
        choice: Choice,
        threads: int,
        encoder: TextEncoder | ImageEncoder,
        *,
        allow_spinning: bool,
        options: ReadingOptions,
    ) -> _Graph:
        path = artefact.folder / artefact.graphs[choice.precision]
        try:
            session = open_session(path, provider=choice.provider, threads=threads, allow_spinning=allow_spinning)
        except FileNotFoundError as error:
            raise ArtefactError("its graph is missing", where=str(path), todo="export the model again") from error
        return cls._of(session, artefact, encoder, options)

    @classmethod
    def ask(
        cls, artefact: Artefact, url: str, choice: Choice, encoder: TextEncoder | ImageEncoder, options: ReadingOptions
    ) -> _Graph:
        """The graph of a Triton repository, run by the server at ``url``."""
        home = Path(artefact.graphs[choice.precision]).parts[0]
        if artefact.generates or not (artefact.folder / home / "config.pbtxt").is_file():
            raise ArtefactError(
                "this is no model repository for Triton, so no server runs its graph",
                where=str(artefact.folder),
                todo="export with --layout triton, or leave the url",
            )
        session = RemoteGraph(url, home, limit=encoder.limit, padding=_padding(artefact))
        return cls._of(session, artefact, encoder, options)

    @classmethod
    def _of(
        cls, session: Any, artefact: Artefact, encoder: TextEncoder | ImageEncoder, options: ReadingOptions
    ) -> _Graph:
        if isinstance(encoder, ImageEncoder):
            pixels = ImageCollator(session.get_inputs(), encoder.steps)
            return cls(session, pixels, make_reader(artefact, encoder, options))
        inputs = {entry.name: _TYPES.get(entry.type, np.int64) for entry in session.get_inputs()}
        types, filled = encoder.settings.token_types, None
        padding = _padding(artefact)
        if str(artefact.config.get("model_type")) in _FILLED:  # what the model reads there is the tokenizer's
            filled = encoder.limit
            found = encoder.tokenizer.token_to_id(special_token(artefact.folder, "pad_token") or "")
            padding = padding if found is None else found
        collate = Collator(inputs, padding, token_types=types, filled=filled)
        return cls(session, collate, make_reader(artefact, encoder, options))

    def answer(self, items: Sequence[Encoded], *, max_batch: int, batch_tokens: int) -> Answers:
        windows = [window for item in items for window in item.windows]
        owners = [number for number, item in enumerate(items) for _ in item.windows]
        batches = by_length([len(window) for window in windows], max_batch, max_positions=batch_tokens)
        answers: dict[int, Answer | Refused] = {}
        waiting: dict[int, dict[int, Outputs]] = {}  # by item: outputs of its windows so far; all at once would be much
        for rows in batches:
            for row, outputs in zip(rows.tolist(), self._run([windows[row] for row in rows]), strict=True):
                owner = owners[row]
                found = waiting.setdefault(owner, {})
                found[row] = outputs
                if len(found) == len(items[owner].windows):
                    answers[owner] = self._reader(items[owner], [found[each] for each in sorted(found)])
                    del waiting[owner]
        return [answers[number] for number in range(len(items))]

    def _run(self, windows: Sequence[Any]) -> list[Outputs]:
        """The outputs of each window, without a batch axis and without padding."""
        arrays: list[NDArray[Any]] = self._session.run(self._outputs, self._collate(windows))
        return [
            {
                name: array[row, : len(window)] if by_token else array[row]
                for name, array, by_token in zip(self._outputs, arrays, self._by_token, strict=True)
            }
            for row, window in enumerate(windows)
        ]


class _Writer:
    """An encoder-decoder, which writes."""

    def __init__(self, model: EncoderDecoder, encoder: TextEncoder, collate: Collator) -> None:
        self._model, self._encoder, self._collate = model, encoder, collate

    @classmethod
    def open(cls, artefact: Artefact, choice: Choice, threads: int, encoder: TextEncoder) -> _Writer:
        try:
            from .generation import EncoderDecoder
        except ImportError as error:
            raise ArtefactError(
                "an encoder-decoder's texts are searched by transformers and torch, which are not installed",
                where=str(artefact.folder),
                todo="pip install torch transformers",
            ) from error
        model = EncoderDecoder.open(
            artefact.folder, precision=choice.precision, provider=choice.provider, threads=threads
        )
        inputs = {"input_ids": np.int64, "attention_mask": np.int64}
        return cls(model, encoder, Collator(inputs, _padding(artefact)))

    def answer(self, items: Sequence[Encoded], *, max_batch: int, batch_tokens: int) -> Answers:
        batches = by_length([item.tokens for item in items], max_batch, max_positions=batch_tokens)
        return restore(batches, (self._write([items[row] for row in rows]) for rows in batches))

    def _write(self, items: Sequence[Encoded]) -> list[Answer]:
        import torch

        feeds = self._collate([item.windows[0] for item in items])
        sequences = self._model.generate(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        texts = self._encoder.tokenizer.decode_batch(sequences.tolist(), skip_special_tokens=True)
        return [Written(text) for text in texts]


def _padding(artefact: Artefact) -> int:
    """The id that stands at padded positions."""
    found = artefact.config.get("pad_token_id")
    return found if isinstance(found, int) else 0

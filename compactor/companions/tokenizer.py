"""The tokenizer of a checkpoint, as its own library opens it; and its files, written so that others do the same.

What a tokenizer does is spread over files and over the defaults of its class: lower-casing may stand in
``tokenizer_config.json``, the mask token in ``special_tokens_map.json``, the side that is cut in neither. So
transformers opens the folder, and an artefact gets what came of that: one ``tokenizer.json`` that does all of it, and
a ``tokenizer_config.json`` that says the rest.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from compactor.companions.files import copy_file, inside, matching, read_object, write_json
from compactor.errors import ModelDirectoryError
from compactor.positions import stated_positions
from compactor.quiet import quiet
from compactor.runtime.folder import MODULES, TRANSFORMER_CONFIGS
from compactor.runtime.tokenizer import CONFIG as TOKENIZER_CONFIG
from compactor.runtime.tokenizer import clean_up, is_limit, special_token
from compactor.tasks import Task

_FAST = "tokenizer.json"
_MAX_FAST_BYTES = 256 * 2**20
_SPECIAL = "special_tokens_map.json"
_VOCABULARIES = (_FAST, "vocab.txt", "vocab.json", "bpe.codes", "*.model", "*.spm")  # the last two: sentencepiece
_FILES = (*_VOCABULARIES, "merges.txt", "added_tokens.json", _SPECIAL)
TOKENIZER_FILES = (*_FILES, TOKENIZER_CONFIG)
"""What an artefact holds of a tokenizer, by name or pattern."""
_FALLBACK_LENGTH = 512
_NEED_OFFSETS = {"token-classification", "question-answering"}


@dataclasses.dataclass(frozen=True)
class SourceTokenizer:
    """A checkpoint's tokenizer.

    Attributes:
        home: The folder that holds its files.
        reference: As transformers opens it, with what sentence-transformers adds to it.
        fast: The whole of it as the content of a ``tokenizer.json``; None where it has no such form.
        limit: Tokens of a sequence, at most, by its own settings; None where they do not say.
    """

    home: Path
    reference: Any
    fast: str | None
    limit: int | None

    def write(self, directory: Path, *, max_tokens: int | None, config: dict[str, Any]) -> list[str]:
        """Write its files.

        Args:
            directory: Where they go.
            max_tokens: How many tokens the model takes; None where nothing limits them.
            config: The content of ``config.json``.

        Returns:
            The names of the files.

        Raises:
            ModelDirectoryError: A file leads out of the model directory, or is damaged.
        """
        own = tuple(name for name in getattr(self.reference, "vocab_files_names", {}).values() if isinstance(name, str))
        names = [name for name in matching(self.home, tuple(dict.fromkeys((*_FILES, *own)))) if name != _FAST]
        for name in names:
            copy_file(self.home, directory, name)
        if self.fast is not None:
            self._write_fast(directory)
            names.append(_FAST)
        write_json(directory / TOKENIZER_CONFIG, self._config(max_tokens or stated_positions(config)))
        return [*names, TOKENIZER_CONFIG]

    def _write_fast(self, directory: Path) -> None:
        """The source's own file, where it says the same."""
        path = self.home / _FAST
        content = json.loads(self.fast or "")
        if path.is_file() and read_object(self.home, _FAST, max_bytes=_MAX_FAST_BYTES) == content:
            copy_file(self.home, directory, _FAST)
        else:
            (directory / _FAST).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")

    def _config(self, max_tokens: int | None) -> dict[str, Any]:
        """The tokenizer's config with a real limit, without pointers to code, and with what its class settles."""
        content = read_object(self.home, TOKENIZER_CONFIG) if (self.home / TOKENIZER_CONFIG).is_file() else {}
        content.pop("auto_map", None)
        limits = [limit for limit in (self.limit, max_tokens) if limit is not None]
        content["model_max_length"] = min(limits, default=_FALLBACK_LENGTH)
        content["padding_side"] = self.reference.padding_side
        content["truncation_side"] = self.reference.truncation_side
        content["model_input_names"] = list(self.reference.model_input_names)
        if content.get("clean_up_tokenization_spaces") and self.fast is not None:
            content["clean_up_tokenization_spaces"] = self._cleans_up()
        for name in ("cls_token", "mask_token", "unk_token"):  # what answers are read by
            token = getattr(self.reference, name, None)
            if token is not None and special_token(self.home, name) != str(token):
                content[name] = str(token)
        return content

    def _cleans_up(self) -> bool:
        """Whether spaces before punctuation really go: transformers 5 leaves those of a BPE tokenizer."""
        backend = self.reference.backend_tokenizer
        texts = (
            (number, backend.decode([number], skip_special_tokens=False)) for number in backend.get_vocab().values()
        )
        changed = next((number for number, text in texts if clean_up(text) != text), None)
        return changed is None or self.reference.decode([changed]) != backend.decode(
            [changed], skip_special_tokens=False
        )


def read_tokenizer(home: Path, task: Task, *, root: Path | None = None) -> SourceTokenizer | None:
    """Open a checkpoint's tokenizer with transformers; None where it has none, and for images.

    Args:
        home: The folder that holds its files.
        task: What the model does.
        root: The folder of sentence-transformers around that, where it is another.

    Raises:
        ModelDirectoryError: It cannot be opened, does not do what the task needs, or leads out of the model directory.
    """
    if task.image or not matching(home, _VOCABULARIES):
        return None
    for name in matching(home, TOKENIZER_FILES):
        inside(home, name)
    reference = _open(home)
    sentences = _sentence_config(home) if ((root or home) / MODULES).is_file() else {}
    backend = getattr(reference, "backend_tokenizer", None)
    if sentences.get("do_lower_case"):
        _lower(backend, home)
    if backend is None and task.name in _NEED_OFFSETS:
        raise ModelDirectoryError(
            f"'{type(reference).__name__}' does not say where in a text a token is, which {task.name} needs",
            where=str(home),
            todo="use a tokenizer that has a tokenizer.json",
        )
    stated = sentences.get("max_seq_length")
    limit: Any = stated if is_limit(stated) else reference.model_max_length
    return SourceTokenizer(
        home, reference, None if backend is None else backend.to_str(), int(limit) if is_limit(limit) else None
    )


def _sentence_config(home: Path) -> dict[str, Any]:
    """The first that is not empty, as sentence-transformers reads them."""
    found = (read_object(home, name) for name in TRANSFORMER_CONFIGS if (home / name).is_file())
    return next((config for config in found if config), {})


def _open(home: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        with quiet():
            try:
                return AutoTokenizer.from_pretrained(str(home), local_files_only=True, trust_remote_code=False)
            except Exception:  # a model type that transformers has no tokenizer for; the file may say all by itself
                if not (home / _FAST).is_file():
                    raise
                return PreTrainedTokenizerFast.from_pretrained(str(home), local_files_only=True)
    except Exception as error:  # transformers raises what it likes for a damaged folder
        line = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ModelDirectoryError(
            f"transformers cannot open the tokenizer: {line}",
            where=str(home),
            todo="repair its files, install what it asks for (such as sentencepiece), or remove them",
        ) from error


def _lower(backend: Any, home: Path) -> None:
    """Lower-case a text first, as ``do_lower_case`` of sentence-transformers does.

    Raises:
        ModelDirectoryError: The tokenizer has no form that could be told to.
    """
    from tokenizers.normalizers import Lowercase, Sequence

    if backend is None:
        raise ModelDirectoryError(
            "'do_lower_case' cannot be honoured: this tokenizer has no tokenizer.json that could say so",
            where=str(home),
            todo="lower-case the texts yourself and set 'do_lower_case' to false, or use another tokenizer",
        )
    before: Any = backend.normalizer
    sequence: Any = Sequence  # it can be iterated, which its types do not say
    steps = list(before) if isinstance(before, sequence) else [] if before is None else [before]
    if not any(isinstance(step, Lowercase) for step in steps):
        backend.normalizer = Sequence([Lowercase(), *steps])

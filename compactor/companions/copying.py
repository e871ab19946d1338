"""The files that travel with a model: its config, tokenizer, processors and sentence-transformers modules.

Only files on the lists below are copied, only from inside the model directory, and never one that holds code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compactor.companions.files import copy_file, matching, write_json
from compactor.companions.image_processor import ImageProcessor
from compactor.companions.sentence_modules import copy_modules
from compactor.companions.tokenizer import TOKENIZER_FILES, SourceTokenizer
from compactor.manifest import MANIFEST_NAME
from compactor.runtime.folder import MODULES

_OTHER_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
)


def copy_companions(
    source: Path,
    directory: Path,
    config: dict[str, Any],
    *,
    model_folder: Path | None = None,
    tokenizer: SourceTokenizer | None = None,
    images: ImageProcessor | None = None,
    max_tokens: int | None = None,
    allow_pickle: bool = False,
) -> tuple[str, ...]:
    """Fill ``directory`` with all that consumers look for beside the models.

    Args:
        source: The model directory.
        directory: Where the files go.
        config: What ``config.json`` shall hold.
        model_folder: The folder inside ``source`` that holds the transformer, where that is not ``source`` itself (old
            sentence-transformers folders). Its files move to the root, and ``modules.json`` follows.
        tokenizer: The checkpoint's.
        images: The checkpoint's image processor.
        max_tokens: How many tokens the model takes; None where nothing limits them.
        allow_pickle: Also copy the weights of sentence-transformers modules that exist only in pickled form.

    Returns:
        The names of the files written, relative to ``directory``.

    Raises:
        ModelDirectoryError: A file is damaged, or leads out of the model directory.
    """
    write_json(directory / "config.json", config)
    names = ["config.json"]

    home = model_folder or source
    for folder in dict.fromkeys((source, home)):
        for name in matching(folder, _OTHER_FILES):
            copy_file(folder, directory, name)
            names.append(name)
    if (source / MANIFEST_NAME).is_file():  # an earlier artefact's files say all already
        for name in matching(source, TOKENIZER_FILES):
            copy_file(source, directory, name)
            names.append(name)
    if images is not None:
        names.extend(images.write(directory))
    if tokenizer is not None:
        names.extend(tokenizer.write(directory, max_tokens=max_tokens, config=config))
    if (source / MODULES).is_file():
        names.extend(copy_modules(source, home, directory, allow_pickle=allow_pickle))
    return tuple(dict.fromkeys(names))

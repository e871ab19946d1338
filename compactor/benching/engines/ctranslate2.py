"""CTranslate2: a dense encoder that ``ct2-transformers-converter`` has converted.

It runs the encoder alone: no task head, so its output is ``last_hidden_state`` and its times leave the head out.
Padding is told by lengths, so it has to be on the right.

Options: ``compute_type``, CTranslate2's own; the variant's precision when left out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.benching.engines.feeding import check_options, choose_inputs
from compactor.benching.plan import Variant
from compactor.errors import ModelDirectoryError, UsageError
from compactor.runtime.errors import ProviderUnavailableError

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_COMPUTE_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}


class CTranslate2Engine:
    """An encoder in CTranslate2; see ``Engine``."""

    def __init__(self, variant: Variant, *, threads: int) -> None:
        check_options(variant.options, ("compute_type",), where=variant.name)
        if importlib.util.find_spec("ctranslate2") is None:
            raise ProviderUnavailableError("CTranslate2 is not installed", todo="pip install 'compactor[peers]'")
        import ctranslate2

        self._where = str(variant.path)
        try:
            self._encoder = ctranslate2.Encoder(
                self._where,
                variant.provider,
                compute_type=variant.options.get("compute_type", _COMPUTE_TYPES[variant.precision]),
                inter_threads=1,
                intra_threads=threads,
            )
        except (RuntimeError, ValueError) as error:
            raise ModelDirectoryError(f"CTranslate2 cannot open the model: {error}", where=self._where) from error
        self.environment: dict[str, Any] = {
            "ctranslate2": ctranslate2.__version__,
            "providers": [self._encoder.device],
            "compute_type": self._encoder.compute_type,
            "threads": threads,
            "task_head": "not run",
        }

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any], list[list[int]]]:
        """Token ids (batch, length), lengths (batch,) and token types.

        Raises:
            UsageError: A row is padded elsewhere than on the right.
        """
        chosen = choose_inputs(feeds, dict.fromkeys(_INPUTS, np.int32), where=self._where)
        ids, mask, types = (chosen[name] for name in _INPUTS)
        lengths = mask.sum(axis=1, dtype=np.int32)
        if not np.array_equal(mask != 0, np.arange(mask.shape[1]) < lengths[:, None]):
            raise UsageError("CTranslate2 takes padding on the right alone", where=self._where)
        return ids, lengths, types.tolist()

    def run(self, prepared: tuple[NDArray[Any], NDArray[Any], list[list[int]]]) -> dict[str, NDArray[Any]]:
        """The encoder's last hidden state, in float32."""
        import ctranslate2

        ids, lengths, types = prepared
        view = ctranslate2.StorageView.from_array
        output = self._encoder.forward_batch(view(ids), view(lengths), token_type_ids=types)
        state = output.last_hidden_state.to(ctranslate2.DataType.float32).to_device(ctranslate2.Device.cpu)
        return {"last_hidden_state": np.array(state)}

"""Open a checkpoint's weight files: shapes first, bytes only when asked.

``open_weights`` reads headers and checks names, types and completeness; ``Weights.load`` maps the tensors. The
mapping is private (copy on write), so a tensor may be changed in place without touching the file, and a page that
nobody changes costs no memory of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from compactor.checkpoint.config import MAX_INDEX_BYTES, read_json_object
from compactor.checkpoint.foreign import describe_missing_weights, refuse_foreign_tensors
from compactor.errors import ModelDirectoryError

_SAFETENSORS, _SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLE, _PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U8", "BOOL"})
# Integer tensors that are tables of indexes, not weights: position_ids, relative_position_index, ...
_INDEX_BUFFER = re.compile(r"(_ids|_index|_tracked|_mask|_buckets?)$")
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SAVE_AGAIN = "download the whole checkpoint again, or save it again: index and shards do not belong together"
_FINITE_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file of the source that was read, pinned by its SHA-256."""

    name: str
    sha256: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint, not yet loaded.

    Attributes:
        shapes: Shape of every tensor, by name.
        dtypes: Name of the stored type of every tensor: ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"integer"``.
        paths: The files, in reading order (an index first).
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    paths: tuple[Path, ...]
    _shards: Mapping[Path, tuple[str, ...]]
    _pickled: Mapping[str, torch.Tensor] | None = None
    _names: Mapping[str, str] | None = None  # by stored name

    def load(self) -> dict[str, torch.Tensor]:
        """Map every tensor into memory, in its stored type; refuses NaN and infinities."""
        tensors = dict(self._pickled) if self._pickled is not None else _load_safetensors(self._shards)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not _is_finite(tensor):
                raise ModelDirectoryError(
                    f"tensor '{name}' holds NaN or infinity", todo="the training run diverged or the file is damaged"
                )
        names = self._names
        return tensors if names is None else {names[name]: tensor for name, tensor in tensors.items()}

    def renamed(self, names: Mapping[str, str]) -> Weights:
        """The same weights under other names: ``names`` maps each of these to its own."""
        stored = self._names or {name: name for name in self.shapes}
        return dataclasses.replace(
            self,
            shapes={names[name]: shape for name, shape in self.shapes.items()},
            dtypes={names[name]: dtype for name, dtype in self.dtypes.items()},
            _names={given: names[name] for given, name in stored.items()},
        )


def open_weights(folder: Path, *, allow_pickle: bool = False) -> Weights:
    """Find the weights in ``folder`` and check their headers; names are as they are stored.

    Args:
        folder: The folder that holds the weights.
        allow_pickle: Also accept ``pytorch_model.bin``, opened with ``weights_only``.

    Raises:
        ModelDirectoryError: No weights, damaged, incomplete, pickled without leave, of a type not supported, or with
            tensors that change others (adapters, norms of weights, quantized ones).
    """
    if (path := folder / _SAFETENSORS).is_file():
        return _open_safetensors((path,), {path: None})
    if (index := folder / _SAFETENSORS_INDEX).is_file():
        shards = _read_index(index, suffix=".safetensors")
        return _open_safetensors((index, *shards), shards)
    pickles = [name for name in (_PICKLE, _PICKLE_INDEX) if (folder / name).is_file()]
    if not pickles:
        raise describe_missing_weights(folder)
    if not allow_pickle:
        raise ModelDirectoryError(
            f"the weights are pickled ({pickles[0]}), and a pickle can run code",
            where=str(folder),
            todo="pass --allow-pickle if you trust their author, or save the model as safetensors",
        )
    if pickles[0] == _PICKLE:
        return _open_pickles((folder / _PICKLE,), {folder / _PICKLE: None})
    shards = _read_index(folder / _PICKLE_INDEX, suffix=".bin")
    return _open_pickles((folder / _PICKLE_INDEX, *shards), shards)


def hash_file(path: Path) -> SourceFile:
    """The name, SHA-256 and size of a file, read as a stream."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return SourceFile(path.name, digest, file.tell())
    except OSError as error:
        raise ModelDirectoryError(f"{path.name} cannot be read: {error.strerror}", where=str(path)) from error


def _read_index(path: Path, *, suffix: str) -> dict[Path, tuple[str, ...] | None]:
    """Shards that an index names, each with the tensors it should hold."""
    weight_map = read_json_object(path, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelDirectoryError("the index has no 'weight_map'", where=str(path))
    listed: dict[Path, list[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name) or not name.endswith(suffix):
            raise ModelDirectoryError(
                f"the index names {str(name)[:80]!r}, which is no shard beside it", where=str(path)
            )
        listed.setdefault(path.parent / name, []).append(tensor)
    for shard in listed:
        if not shard.is_file():
            raise ModelDirectoryError(
                f"the shard {shard.name} is missing", where=str(path), todo="download the whole checkpoint"
            )
    return {shard: tuple(listed[shard]) for shard in sorted(listed)}


def _open_safetensors(paths: tuple[Path, ...], shards: Mapping[Path, tuple[str, ...] | None]) -> Weights:
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    held: dict[Path, tuple[str, ...]] = {}
    for path, listed in shards.items():
        try:
            with safe_open(path, framework="pt") as file:
                held[path] = tuple(file.keys())
                refuse_foreign_tensors(held[path], path)
                _check_shard(path, held[path], listed, taken=shapes)
                for name in held[path]:
                    header = file.get_slice(name)
                    shapes[name] = tuple(header.get_shape())
                    dtypes[name] = _check_dtype(name, str(header.get_dtype()), path)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
    return Weights(shapes, dtypes, paths, held)


def _load_safetensors(shards: Mapping[Path, tuple[str, ...]]) -> dict[str, torch.Tensor]:
    tensors = {}
    for path, names in shards.items():
        try:
            with safe_open(path, framework="pt") as file:
                tensors.update({name: file.get_tensor(name) for name in names})
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
    return tensors


def _open_pickles(paths: tuple[Path, ...], shards: Mapping[Path, tuple[str, ...] | None]) -> Weights:
    tensors: dict[str, torch.Tensor] = {}
    dtypes: dict[str, str] = {}
    for path, listed in shards.items():
        state = _unpickle(path)
        refuse_foreign_tensors(state, path)
        _check_shard(path, tuple(state), listed, taken=tensors)
        for name, tensor in state.items():
            code = _TORCH_CODES.get(tensor.dtype, str(tensor.dtype))
            dtypes[name] = _check_dtype(name, code, path)
        tensors.update(state)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return Weights(shapes, dtypes, paths, {}, tensors)


_TORCH_CODES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def _unpickle(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a pickle that may hold nothing but tensors."""
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # torch raises many types here, and each means the file is not a plain state dict
        raise _damaged(path, error) from error
    if not isinstance(state, dict) or not state:
        raise ModelDirectoryError(f"{path.name} is not a state dict", where=str(path))
    if nested := [str(key) for key, value in state.items() if isinstance(value, dict)]:
        raise ModelDirectoryError(
            f"{path.name} is no state dict: it holds {nested[0][:80]!r}, as training checkpoints do",
            where=str(path),
            todo="save the model alone, with save_pretrained",
        )
    size = path.stat().st_size
    for name, tensor in state.items():
        plain = isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        # A view with stride 0 can claim any shape; what is larger than its file is one.
        if not plain or tensor.is_meta or tensor.numel() * tensor.element_size() > size:
            raise ModelDirectoryError(
                f"{path.name} holds {str(name)[:80]!r}, which is no plain tensor", where=str(path)
            )
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_shard(
    path: Path, held: tuple[str, ...], listed: tuple[str, ...] | None, *, taken: Mapping[str, object]
) -> None:
    """Refuse a shard that lacks a tensor the index lists under it, holds another, or repeats one of an earlier shard.

    One that is not listed is loaded by transformers 5 and left out by 4.
    """
    if missing := sorted(set(listed or ()) - set(held)):
        raise ModelDirectoryError(
            f"{path.name} lacks {len(missing)} tensors that the index lists, '{missing[0]}' among them",
            where=str(path),
            todo=_SAVE_AGAIN,
        )
    if repeated := sorted(set(held) & set(taken)):
        raise ModelDirectoryError(f"tensor '{repeated[0]}' is in two shards", where=str(path), todo=_SAVE_AGAIN)
    if listed is not None and (unlisted := sorted(set(held) - set(listed))):
        raise ModelDirectoryError(
            f"{path.name} holds {len(unlisted)} tensors that the index does not list, '{unlisted[0]}' among them",
            where=str(path),
            todo=_SAVE_AGAIN,
        )


def _check_dtype(name: str, code: str, path: Path) -> str:
    if code in _FLOATS:
        return _FLOATS[code]
    if code in _INTEGERS and _INDEX_BUFFER.search(name):
        return "integer"
    raise ModelDirectoryError(
        f"tensor '{name}' is stored as {code}; weights must be fp32, fp16 or bf16",
        where=str(path),
        todo="start from unquantized weights; compactor quantizes by itself"
        if code != "F64"
        else "save the model in float32",
    )


def _damaged(path: Path, error: Exception) -> ModelDirectoryError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
    return ModelDirectoryError(
        f"{path.name} is damaged or cut short: {reason}", where=str(path), todo="copy or download the file again"
    )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite, looking at a few million at a time."""
    return all(bool(torch.isfinite(chunk).all()) for chunk in torch.split(tensor.reshape(-1), _FINITE_CHUNK))

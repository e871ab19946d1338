from __future__ import annotations

import hashlib
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from compactor.checkpoint import read_checkpoint
from compactor.checkpoint.weights import hash_file, open_weights
from compactor.errors import ModelDirectoryError
from tests.compactor.checkpoints import config, tensors, write


def shard(folder, weights, *, suffix="safetensors", name="model", weight_map=None):
    """Write ``weights`` in two shards and their index."""
    names = sorted(weights)
    halves = {f"{name}-0000{part + 1}-of-00002.{suffix}": names[part::2] for part in range(2)}
    for file, members in halves.items():
        part = {member: weights[member] for member in members}
        torch.save(part, folder / file) if suffix == "bin" else save_file(part, folder / file)
    listed = {member: file for file, members in halves.items() for member in members}
    index = {"metadata": {}, "weight_map": listed if weight_map is None else weight_map}
    (folder / f"{name}.{suffix}.index.json").write_text(json.dumps(index))
    return list(halves)


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name].dtype == expected[name].dtype and torch.equal(got[name], expected[name]), name


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config()))
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reads_safetensors_in_the_stored_type(folder, dtype):
    weights = tensors(dtype=dtype)
    save_file(weights, folder / "model.safetensors")
    checkpoint = read_checkpoint(folder)
    assert checkpoint.format == "plain"
    assert_same(checkpoint.tensors, weights)
    assert checkpoint.config == config()
    stored = str(dtype).removeprefix("torch.")
    expected = () if dtype == torch.float32 else (f"weights stored in {stored}, computed in float32",)
    assert checkpoint.notes == expected


def test_reads_shards_and_hashes_every_file(folder):
    weights = tensors()
    shards = shard(folder, weights)
    checkpoint = read_checkpoint(folder)
    assert_same(checkpoint.tensors, weights)
    assert [file.name for file in checkpoint.files] == ["config.json", "model.safetensors.index.json", *shards]
    for file in checkpoint.files:
        content = (folder / file.name).read_bytes()
        assert file.sha256 == hashlib.sha256(content).hexdigest() and file.bytes == len(content)


def test_one_file_is_preferred_to_shards_and_safetensors_to_pickles(folder):
    weights = tensors(seed=1)
    save_file(weights, folder / "model.safetensors")
    shard(folder, tensors(seed=2))
    torch.save(tensors(seed=3), folder / "pytorch_model.bin")
    assert_same(read_checkpoint(folder, allow_pickle=True).tensors, weights)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_reads_pickles_only_when_allowed(folder, zipped):
    weights = tensors()
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelDirectoryError, match="--allow-pickle"):
        read_checkpoint(folder)
    assert_same(read_checkpoint(folder, allow_pickle=True).tensors, weights)


def test_reads_pickled_shards(folder):
    weights = tensors()
    shard(folder, weights, suffix="bin", name="pytorch_model")
    with pytest.raises(ModelDirectoryError, match="--allow-pickle"):
        read_checkpoint(folder)
    assert_same(read_checkpoint(folder, allow_pickle=True).tensors, weights)


class _Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_a_pickle_that_would_run_code_is_refused_unrun(folder):
    marker = folder / "ran"
    torch.save({"bert.x.weight": _Payload(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelDirectoryError, match="damaged"):
        read_checkpoint(folder, allow_pickle=True)
    assert not marker.exists()


@pytest.mark.parametrize(
    "state",
    [
        [torch.ones(2)],
        {},
        {"a.weight": 3},
        {"a.weight": torch.ones(1).expand(1 << 40)},
        {"a.weight": torch.ones(2, 2).to_sparse()},
        {"model": {"a.weight": torch.ones(2)}},
    ],
    ids=["list", "empty", "number", "expanded", "sparse", "nested"],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_pickle_of_anything_but_plain_tensors_is_refused(folder, state):
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ModelDirectoryError):
        read_checkpoint(folder, allow_pickle=True)


def test_a_bare_pickle_is_refused(folder):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelDirectoryError):
        read_checkpoint(folder, allow_pickle=True)


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, 0.999])
def test_a_cut_file_is_refused(folder, keep):
    save_file(tensors(), folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(ModelDirectoryError, match="damaged or cut short") as error:
        read_checkpoint(folder)
    assert str(error.value).count("\n") == 2


def test_a_header_of_nonsense_is_refused(folder):
    (folder / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}" * 50)
    with pytest.raises(ModelDirectoryError, match="damaged"):
        read_checkpoint(folder)


def test_a_folder_without_weights_is_refused(folder):
    with pytest.raises(ModelDirectoryError, match="no weights"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "a\\b.safetensors", 3, "x.bin"]
)
def test_an_index_may_only_name_files_beside_it(folder, name):
    save_file(tensors(), folder.parent / "secret.safetensors")
    shard(folder, tensors(), weight_map={"bert.x.weight": name})
    with pytest.raises(ModelDirectoryError, match="no shard beside it"):
        read_checkpoint(folder)


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": []}])
def test_an_index_without_a_map_is_refused(folder, content):
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(ModelDirectoryError, match="no 'weight_map'"):
        read_checkpoint(folder)


def test_a_missing_shard_is_named(folder):
    first, _ = shard(folder, tensors())
    (folder / first).unlink()
    with pytest.raises(ModelDirectoryError, match=f"{first} is missing"):
        read_checkpoint(folder)


def test_a_listed_tensor_must_be_in_its_shard(folder):
    _, second = shard(folder, tensors())
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["bert.extra.weight"] = second
    index.write_text(json.dumps(content))
    with pytest.raises(ModelDirectoryError, match=r"lacks 1 tensors .* 'bert\.extra\.weight'"):
        read_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(folder):
    weights = tensors()
    _, second = shard(folder, weights)
    twice = sorted(weights)[0]
    save_file({name: weights[name] for name in [*sorted(weights)[1::2], twice]}, folder / second)
    with pytest.raises(ModelDirectoryError, match="in two shards"):
        read_checkpoint(folder)


def test_a_tensor_that_the_index_does_not_list_is_refused(folder):
    _, second = shard(folder, tensors())
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    unlisted = next(name for name, file in content["weight_map"].items() if file == second)
    del content["weight_map"][unlisted]
    index.write_text(json.dumps(content))
    with pytest.raises(ModelDirectoryError, match=f"holds 1 tensors that the index does not list, '{unlisted}'"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("dtype", "code"),
    [(torch.int8, "I8"), (torch.float64, "F64"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.uint8, "U8")],
)
def test_other_types_are_refused_by_name(folder, dtype, code):
    weights = tensors()
    weights["bert.pooler.dense.weight"] = torch.zeros(16, 16, dtype=dtype)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelDirectoryError, match=f"'bert.pooler.dense.weight' is stored as {code}"):
        read_checkpoint(folder)


def test_tables_of_indexes_are_allowed(folder):
    weights = {**tensors(), "bert.embeddings.position_ids": torch.arange(20).unsqueeze(0)}
    save_file(weights, folder / "model.safetensors")
    assert_same(read_checkpoint(folder).tensors, weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(folder, value):
    weights = tensors()
    weights["classifier.weight"][1, 3] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelDirectoryError, match=r"'classifier\.weight' holds NaN or infinity"):
        read_checkpoint(folder)


def test_a_module_prefix_before_every_name_is_dropped(folder):
    weights = tensors()
    save_file({f"module.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    assert_same(read_checkpoint(folder).tensors, weights)


def test_a_module_prefix_before_some_names_stays(folder):
    weights = {"module.x": torch.ones(1), "y": torch.ones(1)}
    save_file(weights, folder / "model.safetensors")
    assert open_weights(folder).shapes.keys() == weights.keys()


@pytest.mark.parametrize("pickled", [False, True])
def test_changing_a_tensor_leaves_the_file_alone(folder, pickled):
    if pickled:
        torch.save(tensors(), path := folder / "pytorch_model.bin")
    else:
        save_file(tensors(), path := folder / "model.safetensors")
    before = hash_file(path)
    loaded = open_weights(folder, allow_pickle=pickled).load()
    for tensor in loaded.values():
        tensor.zero_()
    assert hash_file(path) == before
    assert all(tensor.any() for tensor in open_weights(folder, allow_pickle=pickled).load().values())


def test_headers_are_read_before_weights(folder):
    """The sizes are refused although the tensors themselves would be refused too."""
    weights = tensors()
    weights["classifier.weight"][:] = float("nan")
    write(folder, weights, config(vocab_size=31))
    with pytest.raises(ModelDirectoryError, match="word_embeddings"):
        read_checkpoint(folder)

from __future__ import annotations

import json
import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from compactor.checkpoint import read_checkpoint
from compactor.checkpoint.masks import fold_masks
from compactor.checkpoint.sparse_args import read_sparse_args
from compactor.errors import ModelDirectoryError
from tests.compactor.checkpoints import (
    HEADS,
    LAYERS,
    NEURONS,
    WIDTH,
    config,
    hybrid_scores,
    modules,
    scores_name,
    sparse_args,
    tensors,
    write,
)

QUERY, KEY, VALUE, OUTPUT, FIRST, SECOND = modules()


def arguments(tmp_path, **changes):
    path = tmp_path / "sparse_args.json"
    path.write_text(json.dumps(sparse_args(**changes)))
    return read_sparse_args(path)


def element_scores(scores, axis, block, shape):
    """The score of every block of a matrix, as nested lists, from nn_pruning's stored form."""
    rows, cols = shape[0] // block[0], shape[1] // block[1]
    if scores.dim() == 2:
        return [[scores[r, c].item() for c in range(cols)] for r in range(rows)]
    return [[scores[(r, c)[axis]].item() for c in range(cols)] for r in range(rows)]


def live_blocks(grid, method, threshold, floor):
    """The rules in the docstring of masks.py, one score at a time."""
    flat = [score for row in grid for score in row]
    count = len(flat)
    if method == "topK":
        order = sorted(range(count), key=lambda at: -flat[at])  # sorted() is stable
        chosen = set(order[: int(threshold * count)])
    else:
        passing = {
            "threshold": lambda score: score > threshold,
            "sigmoied_threshold": lambda score: 1 / (1 + math.exp(-score)) > threshold,
        }[method]
        chosen = {at for at in range(count) if passing(flat[at])}
        least = int(floor * count) + 1 if floor else 0
        if len(chosen) < least:
            bar = sorted(flat)[max(count - least, 1) - 1]
            chosen = {at for at in range(count) if flat[at] > bar}
    width = len(grid[0])
    return [[row * width + col in chosen for col in range(width)] for row in range(len(grid))]


def expected_fold(weight, bias, scores, axis, block, method, threshold, floor, bias_mask):
    live = live_blocks(element_scores(scores, axis, block, weight.shape), method, threshold, floor)
    weight, bias = weight.clone(), bias.clone()
    for row in range(weight.shape[0]):
        mask = [live[row // block[0]][col // block[1]] for col in range(weight.shape[1])]
        for col, keep in enumerate(mask):
            if not keep:
                weight[row, col] = 0
        if bias_mask and not any(mask):
            bias[row] = 0
    return weight, bias


def assert_folded(result, original, scores, module, axis, block, method, threshold, floor=0.005, bias_mask=True):
    weight, bias = expected_fold(
        original[f"{module}.weight"],
        original[f"{module}.bias"],
        scores[scores_name(module, axis)],
        axis,
        block,
        method,
        threshold,
        floor,
        bias_mask,
    )
    assert torch.equal(result[f"{module}.weight"], weight), module
    assert torch.equal(result[f"{module}.bias"], bias), module


@pytest.mark.parametrize("bias_mask", [True, False, None], ids=["bias", "no-bias", "older"])
@pytest.mark.parametrize(
    ("method", "threshold"), [("sigmoied_threshold", 0.1), ("threshold", -2.0), ("topK", 0.3), ("topK", 0.0)]
)
def test_folds_blocks_and_neurons(tmp_path, method, threshold, bias_mask):
    scores, original = hybrid_scores(), tensors()
    args = sparse_args(
        attention_pruning_method=method,
        dense_pruning_method=f"{method}:1d_alt",
        final_threshold=threshold,
        bias_mask=bias_mask,
    )
    checkpoint = read_checkpoint(write(tmp_path, original | scores, masks=args))

    assert checkpoint.format == "nn_pruning"
    assert checkpoint.tensors.keys() == original.keys(), "no scores are left"
    assert checkpoint.notes == (f"masks of {6 * LAYERS} matrices folded into their weights",)
    assert [file.name for file in checkpoint.files] == ["config.json", "model.safetensors", "sparse_args.json"]
    for layer in range(LAYERS):
        *attention, first, second = modules("bert", layer)
        rules = dict(method=method, threshold=threshold, bias_mask=bool(bias_mask))
        for module in attention:
            assert_folded(checkpoint.tensors, original, scores, module, 0, (4, 4), **rules)
        assert_folded(checkpoint.tensors, original, scores, first, 0, (1, 1), **rules)
        assert_folded(checkpoint.tensors, original, scores, second, 1, (1, 1), **rules)
    untouched = original.keys() - {
        f"{m}.{p}" for i in range(LAYERS) for m in modules("bert", i) for p in ("weight", "bias")
    }
    assert all(torch.equal(checkpoint.tensors[name], original[name]) for name in untouched)


def test_something_lives_and_something_dies_in_these_scores(tmp_path):
    """Guards the tests above against scores that decide nothing."""
    checkpoint = read_checkpoint(write(tmp_path, tensors() | hybrid_scores(), masks=sparse_args()))
    for module in modules():
        weight = checkpoint.tensors[f"{module}.weight"]
        assert weight.any() and not weight.all()
    assert not checkpoint.tensors[f"{FIRST}.bias"].all(), "a dead neuron lost its bias"
    assert checkpoint.tensors[f"{SECOND}.bias"].all(), "every row of the second matrix has a live column"


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=40)
def test_folds_any_block_size_as_defined(tmp_path_factory, data):
    rows, cols = data.draw(st.sampled_from([(1, 1), (2, 4), (8, 2), (16, 16), (1, 16)]))
    method = data.draw(st.sampled_from(["sigmoied_threshold", "threshold", "topK"]))
    threshold = data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.9]))
    floor = data.draw(st.sampled_from([0.0, 0.005, 0.2, 1.0]))
    values = st.sampled_from([-4.0, -1.0, 0.0, 0.25, 3.0])  # few values: ties matter
    grid = (WIDTH // rows, WIDTH // cols)
    flat = data.draw(st.lists(values, min_size=grid[0] * grid[1], max_size=grid[0] * grid[1]))
    folder = tmp_path_factory.mktemp("args")
    args = arguments(
        folder,
        attention_pruning_method=method,
        dense_pruning_method="disabled",
        attention_block_rows=rows,
        attention_block_cols=cols,
        final_threshold=threshold,
        linear_min_parameters=floor,
    )
    scores = {}
    for layer in range(LAYERS):
        *inputs, output = modules("bert", layer)[:4]
        scores |= {scores_name(module): torch.tensor(flat).reshape(grid) for module in inputs}
        scores[scores_name(output)] = torch.tensor(flat).reshape(WIDTH // cols, WIDTH // rows)
    original = tensors()
    folded = {name: tensor.clone() for name, tensor in (original | scores).items()}
    fold_masks(folded, args)
    rules = dict(method=method, threshold=threshold, floor=floor)
    assert_folded(folded, original, scores, QUERY, 0, (rows, cols), **rules)
    # the attention output exchanges block rows and columns
    assert_folded(folded, original, scores, OUTPUT, 0, (cols, rows), **rules)
    assert torch.equal(folded[f"{FIRST}.weight"], original[f"{FIRST}.weight"])


def only_query(tmp_path, row_scores, **changes):
    """Fold scores of whole rows (16 of them) into every attention matrix; returns the live rows of the query."""
    args = arguments(
        tmp_path,
        attention_pruning_method=changes.pop("method", "threshold") + ":1d_alt",
        dense_pruning_method="disabled",
        attention_block_rows=1,
        attention_block_cols=1,
        **changes,
    )
    folded = tensors()
    for layer in range(LAYERS):
        folded |= {scores_name(module): torch.tensor(row_scores) for module in modules("bert", layer)[:4]}
    fold_masks(folded, args)
    return folded[f"{QUERY}.weight"].any(dim=1).tolist(), folded[f"{QUERY}.weight"]


def test_one_score_a_row_prunes_rows_of_attention_too(tmp_path):
    scores = [float(value) for value in range(16)]
    live, weight = only_query(tmp_path, scores, final_threshold=9.5)
    assert live == [False] * 10 + [True] * 6
    assert weight[10:].all()


def test_the_floor_counts_elements_where_a_score_stands_for_a_row(tmp_path):
    """16 rows of 16, f = 0.2: at least int(51.2) + 1 = 52 elements; the 204th smallest is in row 12, so 3 rows stay."""
    live, _ = only_query(tmp_path, [float(value) for value in range(16)], final_threshold=99, linear_min_parameters=0.2)
    assert live == [False] * 13 + [True] * 3


def test_the_floor_keeps_nothing_when_all_scores_tie(tmp_path):
    live, _ = only_query(tmp_path, [1.0] * 16, final_threshold=99, linear_min_parameters=0.2)
    assert not any(live)


def test_without_a_floor_everything_may_die(tmp_path):
    live, _ = only_query(tmp_path, [float(value) for value in range(16)], final_threshold=99, linear_min_parameters=0.0)
    assert not any(live)


def test_top_k_cuts_inside_a_row_where_its_fraction_ends(tmp_path):
    live, weight = only_query(
        tmp_path, [float(value) for value in range(16)], final_threshold=20 / 256 + 1e-9, method="topK"
    )
    assert live == [False] * 14 + [True] * 2
    assert (weight[14] != 0).tolist() == [True] * 4 + [False] * 12


def test_the_attention_output_may_use_the_feed_forward_settings(tmp_path):
    original, scores = tensors(), hybrid_scores()
    for layer in range(LAYERS):
        output = modules("bert", layer)[3]
        del scores[scores_name(output)]
        scores[scores_name(output, 1)] = torch.linspace(-6, 2, WIDTH)
    folder = write(tmp_path, original | scores, masks=sparse_args(attention_output_with_dense=True))
    assert_folded(read_checkpoint(folder).tensors, original, scores, OUTPUT, 1, (1, 1), "sigmoied_threshold", 0.1)


@pytest.mark.parametrize("missing", [0, 1], ids=["first", "second"])
def test_a_shared_score_vector_may_be_stored_once(tmp_path, missing):
    weights = tensors() | hybrid_scores()
    both = read_checkpoint(write(tmp_path / "both", weights, masks=sparse_args()))
    for layer in range(LAYERS):
        first, second = modules("bert", layer)[4:]
        del weights[(scores_name(first, 0), scores_name(second, 1))[missing]]
    once = read_checkpoint(write(tmp_path / "once", weights, masks=sparse_args()))
    assert all(torch.equal(once.tensors[name], both.tensors[name]) for name in both.tensors)


@pytest.mark.parametrize("kind", ["attention", "dense"])
def test_scores_of_a_disabled_method_are_ignored_and_said_so(tmp_path, kind):
    original = tensors()
    folder = write(tmp_path, original | hybrid_scores(), masks=sparse_args(**{f"{kind}_pruning_method": "disabled"}))
    checkpoint = read_checkpoint(folder)
    idle, busy = (QUERY, FIRST) if kind == "attention" else (FIRST, QUERY)
    assert torch.equal(checkpoint.tensors[f"{idle}.weight"], original[f"{idle}.weight"])
    assert not torch.equal(checkpoint.tensors[f"{busy}.weight"], original[f"{busy}.weight"])
    ignored = LAYERS * (4 if kind == "attention" else 2)
    assert f"scores of {ignored} matrices ignored: their pruning method is disabled" in checkpoint.notes


@pytest.mark.parametrize("bias_mask", [True, False])
def test_magnitude_keeps_the_largest_weights_whatever_the_scores(tmp_path, bias_mask):
    original = tensors()
    original[f"{QUERY}.weight"][3] *= 1e-3  # a row that dies as a whole
    args = sparse_args(
        attention_pruning_method="magnitude", dense_pruning_method="disabled", final_threshold=0.3, bias_mask=bias_mask
    )
    checkpoint = read_checkpoint(write(tmp_path, original | hybrid_scores(), masks=args))

    weight, folded = original[f"{QUERY}.weight"], checkpoint.tensors[f"{QUERY}.weight"]
    bar = weight.abs().flatten().sort(descending=True).values[int(0.3 * weight.numel()) - 1]
    assert torch.equal(folded, torch.where(weight.abs() >= bar, weight, 0))
    assert bool(checkpoint.tensors[f"{QUERY}.bias"][3]) is not bias_mask
    assert f"scores of {4 * LAYERS} matrices ignored: magnitude looks at the weights alone" in checkpoint.notes


def test_l0_scales_what_it_keeps(tmp_path):
    original, scores = tensors(), hybrid_scores()
    args = sparse_args(attention_pruning_method="l0", dense_pruning_method="l0:1d_alt")
    checkpoint = read_checkpoint(write(tmp_path, original | scores, masks=args))

    factor = (torch.sigmoid(scores[scores_name(QUERY)]) * 1.2 - 0.1).clamp(0, 1)
    factor = factor.repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert 0 in factor and ((factor > 0) & (factor < 1)).any()
    torch.testing.assert_close(checkpoint.tensors[f"{QUERY}.weight"], original[f"{QUERY}.weight"] * factor)
    neurons = (torch.sigmoid(scores[scores_name(FIRST)]) * 1.2 - 0.1).clamp(0, 1)
    torch.testing.assert_close(checkpoint.tensors[f"{FIRST}.bias"] != 0, neurons > 0)


def joint_scores(own):
    scores = hybrid_scores()
    for layer in range(LAYERS):
        query, *others = modules("bert", layer)[:4]
        for module in others:
            scores[scores_name(module)] = scores[scores_name(query)].clone()
        if not own:
            del scores[scores_name(others[-1])]
            scores[scores_name(others[-1], 1)] = torch.linspace(-6, 2, WIDTH)
    return scores


@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("own", [True, False], ids=["output-too", "output-with-dense"])
def test_an_attention_may_share_one_grid_of_scores(tmp_path, own, kept):
    original, scores = tensors(), joint_scores(own)
    args = sparse_args(attention_pruning_method="sigmoied_threshold:joint", attention_output_with_dense=not own)
    stored = dict(scores)
    for layer in range(LAYERS):  # writers of safetensors may keep one copy
        members = modules("bert", layer)[: 4 if own else 3]
        for at, module in enumerate(members):
            if at != kept:
                del stored[scores_name(module)]
    checkpoint = read_checkpoint(write(tmp_path, original | stored, masks=args))

    for module in (QUERY, KEY, VALUE, *((OUTPUT,) if own else ())):
        assert_folded(checkpoint.tensors, original, scores, module, 0, (4, 4), "sigmoied_threshold", 0.1)


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize(("method", "threshold"), [("threshold", 0.2), ("topK", 0.4)])
def test_rows_and_columns_may_both_have_scores(tmp_path, method, threshold, once):
    original, scores = tensors(), hybrid_scores()
    for layer in range(LAYERS):
        *_, output, first, second = modules("bert", layer)
        lines = [
            torch.linspace(low, 1, size) for low, size in ((-1, WIDTH), (-0.8, WIDTH), (-1, NEURONS), (0.1, WIDTH))
        ]
        for module, (rows, cols) in zip((output, first, second), ((1, 0), (2, 1), (3, 2)), strict=True):
            scores |= {scores_name(module): lines[rows], scores_name(module, 1): lines[cols].clone()}
    stored = dict(scores)
    for layer in range(LAYERS) if once else ():
        *_, first, second = modules("bert", layer)
        del stored[scores_name(first, 1)], stored[scores_name(second, 1)]
    args = sparse_args(
        attention_pruning_method="disabled",
        dense_pruning_method=f"{method}:1d",
        attention_output_with_dense=True,
        final_threshold=threshold,
    )
    checkpoint = read_checkpoint(write(tmp_path, original | stored, masks=args))

    for module in (OUTPUT, FIRST, SECOND):
        grid = torch.outer(scores[scores_name(module)], scores[scores_name(module, 1)])
        live = torch.tensor(live_blocks(grid.tolist(), method, threshold, 0.005))
        assert live.any() and not live.all()
        weight = torch.where(live, original[f"{module}.weight"], 0)
        assert torch.equal(checkpoint.tensors[f"{module}.weight"], weight)
        bias = torch.where(live.any(dim=1), original[f"{module}.bias"], 0)
        assert torch.equal(checkpoint.tensors[f"{module}.bias"], bias)


def test_half_precision_weights_are_folded_in_place_of_type(tmp_path):
    folder = write(tmp_path, tensors(dtype=torch.float16) | hybrid_scores(), masks=sparse_args())
    checkpoint = read_checkpoint(folder)
    reference = read_checkpoint(write(tmp_path / "fp32", tensors() | hybrid_scores(), masks=sparse_args()))
    weight = checkpoint.tensors[f"{QUERY}.weight"]
    assert weight.dtype == torch.float16
    assert torch.equal(weight != 0, reference.tensors[f"{QUERY}.weight"] != 0)
    assert checkpoint.notes[0] == "weights stored in float16, computed in float32"


def test_folding_leaves_the_files_alone(tmp_path):
    folder = write(tmp_path, tensors() | hybrid_scores(), masks=sparse_args())
    before = (folder / "model.safetensors").read_bytes()
    read_checkpoint(folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_gelu_turned_into_relu_reaches_the_config(tmp_path):
    folder = write(tmp_path, tensors() | hybrid_scores(), config(hidden_act="gelu"), masks=sparse_args(gelu_patch=True))
    checkpoint = read_checkpoint(folder)
    assert checkpoint.config["hidden_act"] == "relu"
    assert any("relu" in note for note in checkpoint.notes)


def test_sparse_args_without_scores_are_ignored_and_said_so(tmp_path):
    checkpoint = read_checkpoint(write(tmp_path, masks=sparse_args()))
    assert checkpoint.format == "plain"
    assert checkpoint.notes == ("sparse_args.json ignored: the weights hold no mask scores",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_pruning_method": "sage"}, "method 'sage' .'attention_pruning_method'. is not supported"),
        ({"dense_pruning_method": "topK:1d_only"}, "sub-method '1d_only'"),
        ({"dense_pruning_method": "topK:1d"}, "do not tile the matrix"),
        ({"attention_pruning_method": "topK:joint"}, "should share their scores, but theirs differ"),
        ({"attention_pruning_method": None}, "'attention_pruning_method' is missing"),
        ({"ampere_pruning_method": "annealing"}, r"ampere pruning \('annealing'\)"),
        ({"layer_norm_patch": True}, "no 'layer_norm_eps'"),
        ({"qat": True}, "quantization-aware"),
        ({"rewind_model_name_or_path": "other"}, "another model"),
        ({"gelu_patch": True, "eval_with_current_patch_params": True}, "eval_with_current_patch_params"),
        ({"final_threshold": None}, "'final_threshold' must be a number"),
        ({"final_threshold": "0.1"}, "'final_threshold' must be a number"),
        ({"final_threshold": float("nan")}, "'final_threshold' must be a number"),
        ({"linear_min_parameters": 2}, "'linear_min_parameters' must lie between 0 and 1"),
        ({"bias_mask": "yes"}, "'bias_mask' must be true or false"),
        ({"attention_block_rows": 0}, "'attention_block_rows' must be a positive"),
        ({"attention_block_rows": 3}, "do not tile the matrix"),
        ({"attention_block_rows": 8}, r"mask scores \(4, 4\) do not tile the matrix: expected \(2, 4\)"),
        ({"attention_pruning_method": "threshold:1d_alt"}, "do not tile the matrix"),
        ({"dense_pruning_method": "threshold"}, "do not tile the matrix"),
        ({"attention_pruning_method": "topK", "dense_pruning_method": "disabled", "final_threshold": 2}, "no fraction"),
    ],
)
def test_settings_that_do_not_define_the_masks_are_refused(tmp_path, changes, message):
    folder = write(tmp_path, tensors() | hybrid_scores(), masks=sparse_args(**changes))
    with pytest.raises(ModelDirectoryError, match=message) as error:
        read_checkpoint(folder)
    assert str(error.value).count("\n") <= 2


def test_scores_without_sparse_args_are_refused(tmp_path):
    with pytest.raises(ModelDirectoryError, match=r"sparse_args\.json is missing"):
        read_checkpoint(write(tmp_path, tensors() | hybrid_scores()))


def test_scores_that_are_nan_are_refused(tmp_path):
    scores = hybrid_scores()
    scores[scores_name(KEY)][0, 0] = float("nan")
    with pytest.raises(ModelDirectoryError, match="mask_scores' holds NaN"):
        read_checkpoint(write(tmp_path, tensors() | scores, masks=sparse_args()))


def test_a_matrix_without_its_scores_is_named(tmp_path):
    scores = hybrid_scores()
    del scores[scores_name(VALUE)]
    with pytest.raises(ModelDirectoryError, match=f"'{VALUE}' has no mask scores"):
        read_checkpoint(write(tmp_path, tensors() | scores, masks=sparse_args()))


def test_shared_scores_that_differ_are_refused(tmp_path):
    scores = hybrid_scores()
    scores[scores_name(SECOND, 1)][3] += 1
    with pytest.raises(ModelDirectoryError, match="theirs differ"):
        read_checkpoint(write(tmp_path, tensors() | scores, masks=sparse_args()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (scores_name("bert.pooler.dense"), "is no matrix of a known layer"),
        (f"{QUERY}.ampere_module.context_module.mask_scores", "not of a supported kind"),
        (f"{QUERY}.mask_module.context_modules.2.mask_scores", "not of a supported kind"),
    ],
)
def test_scores_in_unknown_places_are_refused(tmp_path, name, message):
    weights = tensors() | hybrid_scores() | {name: torch.zeros(HEADS, HEADS)}
    with pytest.raises(ModelDirectoryError, match=message):
        read_checkpoint(write(tmp_path, weights, masks=sparse_args()))


def test_a_refusal_comes_before_the_first_edit(tmp_path):
    weights = tensors() | hybrid_scores()
    last = modules("bert", LAYERS - 1)[-1]
    weights[scores_name(last, 1)] = torch.zeros(NEURONS - 1)
    del weights[scores_name(modules("bert", LAYERS - 1)[4], 0)]
    folded = {name: tensor.clone() for name, tensor in weights.items()}
    with pytest.raises(ModelDirectoryError):
        fold_masks(folded, arguments(tmp_path))
    assert all(torch.equal(folded[name], tensor) for name, tensor in tensors().items())

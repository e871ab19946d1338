#!/usr/bin/env bash
# torch 2.13.0, transformers 5.23.0, onnxscript 0.7.2, onnx 1.23.2; Python 3.11.
#
# chunk_size_feed_forward of a config saves memory and changes no number. torch.onnx.export(dynamo=True) is asked for a
# dynamic batch and a dynamic length, each by a torch.export.Dim of its own. Without chunks both stay dynamic. With
# chunks the length of the example is written into the graph as a constant; no error is raised, and the exported file
# takes texts of that one length.
#
# Seen: the axes of input_ids
#   0 ['batch', 'length']
#   4 ['batch', 16]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 onnxscript==0.7.2 onnx==1.23.2
"$work/venv/bin/python" - 2> /dev/null <<'PY' | grep '^[04] ' | tee "$work/seen"
import torch
from transformers import BertConfig, BertModel

for chunk in (0, 4):
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, chunk_size_feed_forward=chunk,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    ids = torch.ones(2, 16, dtype=torch.long)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    program = torch.onnx.export(
        model, (ids,), kwargs={"attention_mask": torch.ones_like(ids)}, dynamo=True, verbose=False,
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
    )
    shape = program.model_proto.graph.input[0].type.tensor_type.shape.dim
    print(chunk, [axis.dim_param or axis.dim_value for axis in shape])
PY
diff "$work/seen" - << 'SEEN'
0 ['batch', 'length']
4 ['batch', 16]
SEEN

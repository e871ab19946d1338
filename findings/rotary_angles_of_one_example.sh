#!/usr/bin/env bash
# torch 2.13.0, transformers 5.23.0, onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.31.1; Python 3.11.
#
# A stock ModernBERT is exported with torch.onnx.export(dynamo=True), batch and length both dynamic. At opset 23 the
# exporter writes its rotary embeddings as the operator RotaryEmbedding, with cosines and sines of shape (1, length, d/2)
# in place of the position_ids and tables that the operator also takes. The export reports no problem, the axes are
# named, and the graph passes the checker; ONNX Runtime then runs it for one example and refuses two. At opset 22 the
# same model is spelled out in Mul and Concat, which broadcast, and runs for both.
#
# Seen: opset, operators RotaryEmbedding, and what batches of 1 and 2 gave
#   22 0 ok ok
#   23 4 ok InvalidArgument
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet \
    torch==2.13.0 transformers==5.23.0 onnxscript==0.7.2 onnx==1.23.2 onnxruntime==1.31.1
"$work/venv/bin/python" - 2> /dev/null <<'PY' | grep '^2[23] ' | tee "$work/seen"
import numpy as np
import onnx
import onnxruntime
import torch
from transformers import ModernBertConfig, ModernBertModel

config = ModernBertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
)
torch.manual_seed(0)
model = ModernBertModel(config).eval()
ids = torch.ones(2, 9, dtype=torch.long)
axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
for opset in (22, 23):
    program = torch.onnx.export(
        model, (ids,), kwargs={"attention_mask": torch.ones_like(ids)}, dynamo=True, verbose=False,
        opset_version=opset, dynamic_shapes={"input_ids": axes, "attention_mask": axes},
    )
    proto = program.model_proto
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    given = []
    for batch in (1, 2):
        tokens = np.ones((batch, 9), dtype=np.int64)
        try:
            session.run(None, {"input_ids": tokens, "attention_mask": tokens})
            given.append("ok")
        except Exception as error:
            given.append(type(error).__name__)
    print(opset, sum(node.op_type == "RotaryEmbedding" for node in proto.graph.node), *given)
PY
diff "$work/seen" - << 'SEEN'
22 0 ok ok
23 4 ok InvalidArgument
SEEN

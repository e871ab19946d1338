#!/usr/bin/env bash
# sentence-transformers 6.2.0, transformers 5.23.0, torch 2.13.0; Python 3.11.
#
# A Dense module saves its activation by the path of its class alone. An activation that was made with arguments comes
# back with that class's defaults: LeakyReLU(0.5) as LeakyReLU(0.01), GELU(approximate="tanh") as the exact GELU,
# Softplus(beta=3) as Softplus(beta=1). Saved and loaded, the model gives other vectors, and nothing says so.
#
# Seen: the vectors after saving and loading
#   LeakyReLU(negative_slope=0.5) changed
#   GELU(approximate='tanh') changed
#   Softplus(beta=3.0, threshold=20.0) changed
#   Tanh() the same
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0
"$work/venv/bin/python" - "$work" 2> /dev/null <<'PY' | tee "$work/seen"
import os
import sys

import torch
from sentence_transformers.sentence_transformer.modules import Dense
from torch import nn

torch.manual_seed(0)
vectors = torch.randn(8, 6)
for activation in (nn.LeakyReLU(0.5), nn.GELU(approximate="tanh"), nn.Softplus(beta=3.0), nn.Tanh()):
    made = Dense(6, 4, activation_function=activation)
    folder = f"{sys.argv[1]}/{type(activation).__name__}"
    os.makedirs(folder)
    made.save(folder)
    with torch.no_grad():
        before = made({"sentence_embedding": vectors})["sentence_embedding"]
        after = Dense.load(folder)({"sentence_embedding": vectors})["sentence_embedding"]
    print(activation, "the same" if torch.equal(before, after) else "changed")
PY
diff "$work/seen" - << 'SEEN'
LeakyReLU(negative_slope=0.5) changed
GELU(approximate='tanh') changed
Softplus(beta=3.0, threshold=20.0) changed
Tanh() the same
SEEN

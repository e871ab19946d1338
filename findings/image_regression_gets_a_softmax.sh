#!/usr/bin/env bash
# transformers 4.57.6 and 5.23.0, torch 2.13.0, pillow 13.0.0; Python 3.11.
#
# A ViTForImageClassification with problem_type "regression" and three outputs. The image-classification pipeline of
# 4.57 puts a softmax over the three numbers (the text-classification pipeline of the same version does not); that of
# 5.23 gives them as they are.
#
# Seen: the sum of the three scores is 1
#   4.57.6 True
#   5.23.0 False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/show.py" <<'PY'
import numpy as np
import torch
import transformers
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

torch.manual_seed(0)
config = ViTConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8,
    num_labels=3, problem_type="regression",
)
processor = ViTImageProcessor(size={"height": 16, "width": 16})
image = Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
scores = pipeline("image-classification", ViTForImageClassification(config), image_processor=processor)(image)
print(transformers.__version__, abs(sum(each["score"] for each in scores) - 1) < 1e-5)
PY
for version in 4.57.6 5.23.0; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/python" -m pip install --quiet torch==2.13.0 pillow==13.0.0 "transformers==$version"
    "$work/$version/bin/python" "$work/show.py" 2> /dev/null
done | tee "$work/seen"
diff "$work/seen" - << 'SEEN'
4.57.6 True
5.23.0 False
SEEN

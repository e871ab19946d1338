#!/usr/bin/env bash
# transformers 4.57.6 and 5.23.0, torch 2.13.0; Python 3.11.
#
# A Gemma 3 text config that looks both ways (use_bidirectional_attention, as EmbeddingGemma's does) is made with a
# sliding window of 512, saved and read, three times over. With 4.57.6 the constructor halves the window, save_pretrained
# writes the halved one, and from_pretrained constructs again and halves it again: a model that is fine-tuned and saved
# looks half as far each time. 5.23.0 halves it once. The first config that is read back therefore differs from the one
# that was saved in the same process, with no message.
#
# Seen: version, the window when made, and after each reading
#   4.57.6 257 129 65 33
#   5.23.0 257 257 257 257
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 4.57.6 5.23.0; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/python" -m pip install --quiet torch==2.13.0 "transformers==$version"
    "$work/$version/bin/python" - "$work/folder" 2> /dev/null <<'PY' | tee -a "$work/seen"
import sys

import transformers
from transformers import Gemma3TextConfig

config = Gemma3TextConfig(use_bidirectional_attention=True, sliding_window=512)
windows = [config.sliding_window]
for _ in range(3):
    config.save_pretrained(sys.argv[1])
    config = Gemma3TextConfig.from_pretrained(sys.argv[1])
    windows.append(config.sliding_window)
print(transformers.__version__, *windows)
PY
done
diff "$work/seen" - << 'SEEN'
4.57.6 257 129 65 33
5.23.0 257 257 257 257
SEEN

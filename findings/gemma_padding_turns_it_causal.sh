#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0; Python 3.11.
#
# GemmaConfig, Gemma2Config and Gemma3TextConfig document use_bidirectional_attention. Small random models are asked
# whether the state of a text's first token changes with its last word: with a mask of ones, and with one padding token
# behind the text, which the mask hides. Gemma 3 looks both ways in both. Gemma looks both ways as long as no text of the
# batch is padded, and is causal as soon as one is: the same text has other states alone and in a padded batch. Gemma 2
# takes the setting and is causal in both.
#
# Seen: class, whether the first token depends on the last: unpadded, padded; whether the text's states are the same
#   GemmaModel True False False
#   Gemma2Model False False True
#   Gemma3TextModel True True True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0
"$work/venv/bin/python" - 2> /dev/null <<'PY' | tee "$work/seen"
import torch
import transformers

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 48, "pad_token_id": 0,
}
for name in ("GemmaModel", "Gemma2Model", "Gemma3TextModel"):
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**SIZES, use_bidirectional_attention=True)).eval()

    def states(last, padding):
        ids = torch.tensor([[5, 6, 7, 8, last] + [0] * padding])
        mask = torch.tensor([[1] * 5 + [0] * padding])
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask).last_hidden_state[0, :5]

    looks = [bool((states(9, padding)[0] - states(10, padding)[0]).abs().max() > 1e-5) for padding in (0, 1)]
    print(name, *looks, bool(torch.allclose(states(9, 0), states(9, 1), atol=1e-5)))
PY
diff "$work/seen" - << 'SEEN'
GemmaModel True False False
Gemma2Model False False True
Gemma3TextModel True True True
SEEN

#!/usr/bin/env bash
# transformers 4.57.6 and 5.23.0, tokenizers as they bring it; Python 3.11.
#
# A folder whose tokenizer_config.json says "tokenizer_class": "PreTrainedTokenizerFast" and no model_input_names (what
# people save who train a tokenizer with the tokenizers library). Its tokenizer.json marks the second text of a pair with
# type 1. 4.57 hands those types to the model; 5.23 (TokenizersBackend) gives input_ids and attention_mask alone, so that
# a BERT-like model sees type 0 everywhere and a pair classifier answers something else, without a warning.
#
# Seen:
#   4.57.6 PreTrainedTokenizerFast [0, 0, 0, 1, 1]
#   5.23.0 TokenizersBackend None
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/show.py" <<'PY'
import json, pathlib, sys
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
made.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
)
folder = pathlib.Path(sys.argv[1]) / f"{transformers.__version__}-folder"
folder.mkdir()
made.save(str(folder / "tokenizer.json"))
(folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
special = {f"{key}_token": word for key, word in zip(("pad", "unk", "cls", "sep", "mask"), words)}
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))
tokenizer = AutoTokenizer.from_pretrained(folder)
print(transformers.__version__, type(tokenizer).__name__, tokenizer("a", "b").get("token_type_ids"))
PY
for version in 4.57.6 5.23.0; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/python" -m pip install --quiet "transformers==$version"
    "$work/$version/bin/python" "$work/show.py" "$work" 2> /dev/null
done | tee "$work/seen"
diff "$work/seen" - << 'SEEN'
4.57.6 PreTrainedTokenizerFast [0, 0, 0, 1, 1]
5.23.0 TokenizersBackend None
SEEN

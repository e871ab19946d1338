#!/usr/bin/env bash
# transformers 4.57.6 and 5.23.0, tokenizers as they bring it; Python 3.11.
#
# A tokenizer.json whose normalizer does more than BERT's own (here a Replace before BertNormalizer), in a folder whose
# tokenizer_config.json says "tokenizer_class": "BertTokenizer". AutoTokenizer of 4.57 follows the file. That of 5.23
# builds BERT's normalizer anew from the config's do_lower_case and the like, and drops the rest of the file's without a
# warning: the same folder gives other tokens. With "PreTrainedTokenizerFast" as class both follow the file.
#
# Seen:
#   4.57.6 BertTokenizer ['a', 'story']
#   4.57.6 PreTrainedTokenizerFast ['a', 'story']
#   5.23.0 BertTokenizer ['a', 'film']
#   5.23.0 PreTrainedTokenizerFast ['a', 'story']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/show.py" <<'PY'
import json, pathlib, sys
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "story"]
made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
replace = normalizers.Replace("film", "story")
made.normalizer = normalizers.Sequence([replace, normalizers.BertNormalizer(lowercase=True)])
made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
for name in ("BertTokenizer", "PreTrainedTokenizerFast"):
    folder = pathlib.Path(sys.argv[1]) / f"{transformers.__version__}-{name}"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    special = {f"{key}_token": word for key, word in zip(("pad", "unk", "cls", "sep", "mask"), words)}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **special}))
    print(transformers.__version__, name, AutoTokenizer.from_pretrained(folder).tokenize("a film"))
PY
for version in 4.57.6 5.23.0; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/python" -m pip install --quiet "transformers==$version"
    "$work/$version/bin/python" "$work/show.py" "$work" 2> /dev/null
done | tee "$work/seen"
diff "$work/seen" - << 'SEEN'
4.57.6 BertTokenizer ['a', 'story']
4.57.6 PreTrainedTokenizerFast ['a', 'story']
5.23.0 BertTokenizer ['a', 'film']
5.23.0 PreTrainedTokenizerFast ['a', 'story']
SEEN

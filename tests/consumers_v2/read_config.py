"""Print the ``config.pbtxt`` of a folder as JSON, parsed by protobuf with Triton's published ``model_config.proto``.

Runs in the environment of ``make test-v2``, where tritonclient holds that proto: a field that it does not know is an
error. MLServer cannot read it itself, because its own messages have the same names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc.model_config_pb2 import ModelConfig

text = Path(sys.argv[1], "config.pbtxt").read_text(encoding="utf-8")
config = text_format.Parse(text, ModelConfig())
print(json.dumps(MessageToDict(config, preserving_proto_field_name=True)))

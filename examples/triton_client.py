"""Ask a Triton server, or any other that speaks the V2 protocol, for the answers of an exported model.

    compactor export examples/sst2-small repository --layout triton
    tritonserver --model-repository=$PWD/repository
    python examples/triton_client.py repository "a charming and often affecting journey ."

Texts become tokens, and outputs answers, by the code that does it when the graph runs here: only the graph runs there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from compactor.runtime import load
from compactor.runtime.errors import RuntimeSetupError


def main() -> None:
    """Print the answer to each text, a line of JSON each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("repository", type=Path, help="what 'compactor export --layout triton' wrote")
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="to answer")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        answers = load(arguments.repository, url=arguments.url)(arguments.texts)
    except RuntimeSetupError as error:
        sys.exit(f"error: {error}")
    for answer in answers:
        print(json.dumps(answer.to_json(), ensure_ascii=False))


if __name__ == "__main__":
    main()

"""Prepare a graph for OpenVINO: convert it, or quantize it statically with NNCF. Runs in OpenVINO's own environment.

python benchmarks/_openvino.py MODEL.onnx OUT.xml [--calibration BATCHES.npz ...]
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np


def main() -> int:
    """Write ``OUT.xml`` and its weights beside it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--calibration", type=Path, nargs="*", default=[], help="batches of inputs; none: only convert")
    args = parser.parse_args()

    import openvino

    model = openvino.Core().read_model(str(args.model))
    if args.calibration:
        import nncf

        nncf.set_log_level(logging.ERROR)
        inputs = {port.get_any_name() for port in model.inputs}
        batches = [{k: v for k, v in np.load(file).items() if k in inputs} for file in args.calibration]
        model = nncf.quantize(
            model,
            nncf.Dataset(batches),
            model_type=nncf.ModelType.TRANSFORMER,  # keeps attention in the form OpenVINO runs best
            subset_size=len(batches),
        )
    openvino.save_model(model, str(args.out), compress_to_fp16=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())

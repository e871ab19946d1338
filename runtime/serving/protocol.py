"""Requests to texts and answers to replies: the Open Inference Protocol (KServe V2), and a plain JSON route.

https://github.com/kserve/open-inference-protocol, REST. Texts are BYTES tensors in JSON; pairs and questions have two
of one shape. Binary tensors are not taken. An image is its file in base64: never a path, or a client would name which
of the server's files are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..answers import Answer, Answered, Classified, Embedded, Filled, Refused, Sparse, Tagged, TokenVectors, Written
from ..encoding import QUESTIONS
from ..image_files import from_base64
from ..images import IMAGE_TASKS

VERSION = "1"


class BadRequest(Exception):
    """A request that cannot be answered; its message goes to the client.

    Attributes:
        status: 4xx.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        self.status = status
        super().__init__(message)


def parse(body: bytes) -> Any:
    """The JSON of a body.

    Raises:
        BadRequest: It is none.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error


def input_names(task: str) -> tuple[str, ...]:
    """The tensors of a request; the last may be missing where pairs are optional."""
    if task == QUESTIONS:
        return ("question", "context")
    if task in IMAGE_TASKS:
        return ("image",)
    return ("text", "text_pair") if task == "text-classification" else ("text",)


def read_inference(
    body: Any, task: str, kind: type[Answer], most: int
) -> tuple[list[Any], str | None, list[str] | None]:
    """The items of a V2 request, its id, and the outputs that it asks for, None for all.

    Args:
        body: The request.
        task: What the model does.
        kind: What it answers with.
        most: Items, at most.

    Raises:
        BadRequest: It is no request of the protocol, or not one for this task.
    """
    if not isinstance(body, Mapping):
        raise BadRequest("expected a JSON object")
    request_id = body.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise BadRequest("'id' must be a string")
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise BadRequest("'inputs' must be a list of at least one tensor")
    tensors: dict[str, list[Any]] = {}
    for tensor in inputs:
        name, data = _read_tensor(tensor, input_names(task), most)
        if name in tensors:
            raise BadRequest(f"input '{name}' is given twice")
        tensors[name] = data
    first, *others = input_names(task)
    needed = (first, *others) if task == QUESTIONS else (first,)
    for name in needed:
        if name not in tensors:
            raise BadRequest(f"input '{name}' is missing")
    if len({len(data) for data in tensors.values()}) > 1:
        raise BadRequest("the inputs differ in shape")
    items = list(zip(*(tensors[name] for name in input_names(task) if name in tensors), strict=True))
    outputs = _read_outputs(body.get("outputs"), output_types(kind))
    return _decoded([item[0] if len(item) == 1 else item for item in items], task), request_id, outputs


def write_inference(
    name: str, kind: type[Answer], answers: Sequence[Answer], request_id: str | None, wanted: Sequence[str] | None
) -> dict[str, Any]:
    """The V2 reply: the answers as tensors whose first axis is the request's."""
    columns = [_columns(answer) for answer in answers]
    outputs = []
    for output, datatype in output_types(kind).items():
        data = [column[output] for column in columns]
        shape = [len(data)]
        if data and isinstance(data[0], list):
            shape.append(len(data[0]))
            data = [value for row in data for value in row]
        if wanted is None or output in wanted:
            outputs.append({"name": output, "datatype": datatype, "shape": shape, "data": data})
    reply: dict[str, Any] = {"model_name": name, "model_version": VERSION, "outputs": outputs}
    return reply if request_id is None else {**reply, "id": request_id}


def describe_model(name: str, task: str, kind: type[Answer], labels: Sequence[str]) -> dict[str, Any]:
    """The V2 metadata of the model."""
    wide = {"scores": len(labels) or -1, "vector": -1}
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "compactor_onnxruntime",
        "inputs": [{"name": each, "datatype": "BYTES", "shape": [-1]} for each in input_names(task)],
        "outputs": [
            {"name": each, "datatype": datatype, "shape": [-1, wide[each]] if each in wide else [-1]}
            for each, datatype in output_types(kind).items()
        ],
    }


_OUTPUTS: Mapping[type[Answer], Mapping[str, str]] = {
    Classified: {"label": "BYTES", "score": "FP32", "scores": "FP32"},
    Tagged: {"entities": "BYTES"},
    Answered: {"answer": "BYTES", "score": "FP32", "start": "INT64", "end": "INT64"},
    Filled: {"fills": "BYTES"},
    Embedded: {"vector": "FP32"},
    Sparse: {"indices": "BYTES", "weights": "BYTES"},  # as long as the text has it: no tensor of a batch
    TokenVectors: {"vectors": "BYTES"},
    Written: {"text": "BYTES"},
}
_PARAMETERS = ("role", "prompt_name", "prompt")


def output_types(kind: type[Answer]) -> Mapping[str, str]:
    """Name and type of the V2 outputs of what a model answers with."""
    return _OUTPUTS[kind]


def read_parameters(body: Any) -> dict[str, str]:
    """What a request says of all its texts (``parameters``): ``role``, ``prompt_name``, ``prompt``.

    Raises:
        BadRequest: There is no such parameter, or it is no text.
    """
    stated = body.get("parameters") if isinstance(body, Mapping) else None
    if stated is None:
        return {}
    if not isinstance(stated, Mapping):
        raise BadRequest("'parameters' must be an object")
    for name, value in stated.items():
        if name not in _PARAMETERS:
            raise BadRequest(f"there is no parameter {json.dumps(name)[:80]}; choose from {', '.join(_PARAMETERS)}")
        if not isinstance(value, str):
            raise BadRequest(f"the parameter '{name}' must be a string")
    return dict(stated)


def read_plain(body: Any, most: int, task: str = "") -> list[Any]:
    """The items of a request to the plain route: ``{"inputs": "text"}``, or a list of texts, pairs or questions.

    Of a model of images each is a text of base64.

    Raises:
        BadRequest: There is nothing to answer, or too much.
    """
    if not isinstance(body, Mapping) or "inputs" not in body:
        raise BadRequest("expected a JSON object with 'inputs'", 422)
    inputs = body["inputs"]
    items = list(inputs) if isinstance(inputs, list) else [inputs]
    if not items:
        raise BadRequest("'inputs' is empty", 422)
    if len(items) > most:
        raise BadRequest(f"a request holds {most} texts at most, this one {len(items)}", 413)
    return _decoded(items, task)


def _decoded(items: list[Any], task: str) -> list[Any]:
    """Of images their bytes; what is no base64 is refused in its place."""
    return [from_base64(item) for item in items] if task in IMAGE_TASKS else items


def _read_tensor(tensor: Any, known: Sequence[str], most: int) -> tuple[str, list[Any]]:
    if not isinstance(tensor, Mapping):
        raise BadRequest("an input must be an object")
    name, shape, data = tensor.get("name"), tensor.get("shape"), tensor.get("data")
    if name not in known:
        raise BadRequest(f"there is no input {json.dumps(name)[:80]}; expected {' and '.join(known)}")
    if tensor.get("datatype") != "BYTES":
        raise BadRequest(f"input '{name}' must have the datatype BYTES")
    if not isinstance(data, list):
        raise BadRequest(f"'data' of input '{name}' must be a list of strings; binary data are not taken")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise BadRequest(f"'shape' of input '{name}' must be a list of whole numbers")
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1) or shape[0] != len(data):
        raise BadRequest(f"'shape' of input '{name}' is {shape}, and it holds {len(data)} texts")
    if not data:
        raise BadRequest(f"input '{name}' is empty")
    if len(data) > most:
        raise BadRequest(f"a request holds {most} texts at most, this one {len(data)}", 413)
    if not all(isinstance(text, str) for text in data):
        raise BadRequest(f"'data' of input '{name}' must be a list of strings")
    return str(name), data


def _read_outputs(outputs: Any, known: Mapping[str, str]) -> list[str] | None:
    if outputs is None:
        return None
    if not isinstance(outputs, list) or not all(isinstance(output, Mapping) for output in outputs):
        raise BadRequest("'outputs' must be a list of objects")
    names = [output.get("name") for output in outputs]
    foreign = [name for name in names if name not in known]
    if foreign:
        raise BadRequest(f"there is no output {json.dumps(foreign[0])[:80]}; choose from {', '.join(known)}")
    return [str(name) for name in names] or None


def _columns(answer: Answer) -> dict[str, Any]:
    """An answer's values by output."""
    if isinstance(answer, Classified):
        return {"label": answer.label, "score": answer.score, "scores": [float(score) for score in answer.scores]}
    if isinstance(answer, Answered):
        return {"answer": answer.text, "score": answer.score, "start": answer.start, "end": answer.end}
    if isinstance(answer, Embedded):
        return {"vector": answer.vector.tolist()}
    if isinstance(answer, Written):
        return {"text": answer.text}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in answer.to_json().items()}


def first_refusal(answers: Sequence[Answer | Refused]) -> str | None:
    """What is wrong with the first item that has no answer."""
    for index, answer in enumerate(answers):
        if isinstance(answer, Refused):
            return f"item {index}: {answer.reason}" if len(answers) > 1 else answer.reason
    return None

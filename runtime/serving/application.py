"""The deployment: one replica is one loaded artefact behind HTTP routes.

``build`` makes the application from plain values; a cluster's config names it as ``import_path``. Requests pass Ray's
proxy and arrive at a replica, which tokenizes, batches, runs and answers: there is no further hop.
"""

# No postponed annotations here: FastAPI reads them from a class that Ray has pickled, where names no longer resolve.
import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from ray import serve
from starlette.requests import ClientDisconnect

from ..answers import Answer, Refused
from ..encoding import Encoded
from ..model import Model, load
from . import protocol
from .lanes import Job, Lanes, bucket
from .protocol import BadRequest
from .settings import ServeSettings
from .telemetry import Telemetry, logger

APPLICATION = "compactor"
DEPLOYMENT = "Texts"

_TARGET_ONGOING = 8.0  # requests in a replica: more, and another is started while there are cores
_UPSCALE_S, _DOWNSCALE_S = 5.0, 120.0
_SHUTDOWN_S = 30.0

api = FastAPI(
    title="compactor",
    description="Texts in, answers out: a plain route, and the Open Inference Protocol (KServe V2).",
    version="1",
)


def build(args: dict[str, Any]) -> serve.Application:
    """The application of an artefact, from the fields of ``ServeSettings``.

    Raises:
        RuntimeSetupError: A setting is unknown or out of range.
    """
    settings = ServeSettings.from_args(args)
    deployment = cast(serve.Deployment, Texts).options(
        num_replicas="auto",
        autoscaling_config=scaling(settings),
        ray_actor_options={"num_cpus": settings.replica_threads, "num_gpus": int(settings.provider == "cuda")},
        max_ongoing_requests=settings.max_ongoing,
        max_queued_requests=settings.max_queued,
        backpressure_config={"status_code": 503, "retry_after_s": 1},
        logging_config={"encoding": "JSON", "enable_access_log": False},  # ``telemetry`` writes a line a request
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
        graceful_shutdown_wait_loop_s=0.5,
    )
    return deployment.bind(settings.to_args())


def scaling(settings: ServeSettings) -> dict[str, Any]:
    """How many replicas run, as Ray Serve's ``autoscaling_config``."""
    return {
        "min_replicas": settings.min_replicas,
        "max_replicas": settings.most_replicas,
        "target_ongoing_requests": min(_TARGET_ONGOING, settings.max_ongoing),
        "upscale_delay_s": _UPSCALE_S,
        "downscale_delay_s": _DOWNSCALE_S,
    }


def _described(inputs: dict[str, Any], example: Any) -> dict[str, Any]:
    """What the OpenAPI page says of a route's body, which is read without a model of FastAPI's."""
    schema = {"type": "object", "required": ["inputs"], "properties": {"inputs": inputs}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}},
    }


_PLAIN_BODY = _described(
    {
        "description": "A text; or a list of texts, of pairs (text, text_pair), of questions (question, context), "
        "or of images in base64. Beside it 'parameters' may say role, prompt_name or prompt.",
        "oneOf": [{"type": "string"}, {"type": "object"}, {"type": "array", "items": {}}],
    },
    {"inputs": ["a gripping film", "what a bore"]},
)
_V2_BODY = _described(
    {"type": "array", "items": {"type": "object"}},
    {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a gripping film"]}]},
)


@serve.deployment(name=DEPLOYMENT, health_check_period_s=5, health_check_timeout_s=20)
@serve.ingress(api)
class Texts:
    """One replica."""

    def __init__(self, args: dict[str, Any]) -> None:
        self.settings = settings = ServeSettings.from_args(args)
        self.model: Model = load(
            settings.artefact,
            precision=settings.precision,
            provider=settings.provider,
            threads=settings.replica_threads,
            truncate=settings.truncate,
            allow_spinning=False,  # beside Ray's own processes and other replicas
            max_batch=settings.max_batch,
            batch_tokens=settings.batch_tokens,
            aggregation=settings.aggregation,
            answer_tokens=settings.answer_tokens,
            no_answer=settings.no_answer,
            fills=settings.fills,
        )
        self.name, self.task = settings.model_name, self.model.task
        self.telemetry = Telemetry(self.name)
        self.lanes: Lanes[Encoded, Answer | Refused] = Lanes(
            self.model.answer,
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="model"),
            max_batch=settings.max_batch,
            batch_tokens=settings.batch_tokens,
            observe=self.telemetry.batch,
        )
        self._queues: dict[int, Any] = {}

    # The plain route

    @api.post("/predict", summary="Answer texts", openapi_extra=_PLAIN_BODY)
    async def predict(self, request: Request) -> Response:
        """One answer a text, in their order; ``{"error"}`` in place of what could not be answered."""

        async def answer(body: Any) -> tuple[Any, int]:
            items = protocol.read_plain(body, self.settings.max_texts, self.task)
            answers = await self._answer(items, protocol.read_parameters(body))
            if all(isinstance(found, Refused) for found in answers):
                raise BadRequest(protocol.first_refusal(answers) or "", 422)
            return {"model": self.name, "outputs": [found.to_json() for found in answers]}, len(items)

        return await self._reply(request, "/predict", answer)

    # The Open Inference Protocol

    @api.get("/v2", summary="The server")
    async def server(self) -> dict[str, Any]:
        """Name, version and extensions: none."""
        return {"name": "compactor", "version": protocol.VERSION, "extensions": []}

    @api.get("/v2/health/live", summary="Is the server alive?")
    async def live(self) -> dict[str, bool]:
        """It is, if it answers."""
        return {"live": True}

    @api.get("/v2/health/ready", summary="Can it answer?")
    async def ready(self) -> dict[str, bool]:
        """A replica that runs has loaded its model."""
        return {"ready": True}

    @api.get("/v2/models/{name}", summary="The model")
    @api.get("/v2/models/{name}/versions/{version}", include_in_schema=False)
    async def metadata(self, name: str, version: str = protocol.VERSION) -> Response:
        """Its inputs and outputs."""
        if (unknown := self._unknown(name, version)) is not None:
            return unknown
        return JSONResponse(protocol.describe_model(self.name, self.task, self.model.answer_type, self.model.labels))

    @api.get("/v2/models/{name}/ready", summary="Can the model answer?")
    @api.get("/v2/models/{name}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(self, name: str, version: str = protocol.VERSION) -> Response:
        """It can, if it is this one."""
        return self._unknown(name, version) or JSONResponse({"name": self.name, "ready": True})

    @api.post("/v2/models/{name}/infer", summary="Answer texts by the protocol", openapi_extra=_V2_BODY)
    @api.post("/v2/models/{name}/versions/{version}/infer", include_in_schema=False)
    async def infer(self, name: str, request: Request, version: str = protocol.VERSION) -> Response:
        """Tensors in, tensors out. One bad text fails the request: the protocol knows no error of an item."""
        if (unknown := self._unknown(name, version)) is not None:
            return unknown

        async def answer(body: Any) -> tuple[Any, int]:
            items, request_id, wanted = protocol.read_inference(
                body, self.task, self.model.answer_type, self.settings.max_texts
            )
            answers = await self._answer(items, protocol.read_parameters(body))
            refusal = protocol.first_refusal(answers)
            if refusal is not None:
                raise BadRequest(refusal)
            found: list[Any] = list(answers)
            return protocol.write_inference(self.name, self.model.answer_type, found, request_id, wanted), len(items)

        return await self._reply(request, "/v2/models/{name}/infer", answer)

    # What both share

    async def _reply(self, request: Request, route: str, answer: Any) -> Response:
        """Read the body within its limit, answer it within its time, and count what happened."""
        started, status, texts = time.perf_counter(), 200, 0
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                body = protocol.parse(await self._read(request))
                content, texts = await answer(body)
        except BadRequest as error:
            status, content = error.status, {"error": str(error)}
        except TimeoutError:
            status, content = 504, {"error": f"not answered within {self.settings.timeout_s:g} s"}
        except ClientDisconnect:
            status, content = 499, {"error": "the client has gone"}
        except Exception as error:
            logger.exception("the model failed")
            status, content = 500, {"error": f"the model failed: {type(error).__name__}; the server's log says more"}
        self.telemetry.request(route, status, started, texts)
        return JSONResponse(content, status)

    async def _read(self, request: Request) -> bytes:
        """The body. Raises BadRequest with 413 before more than the limit is held."""
        limit = self.settings.max_body_bytes
        too_large = BadRequest(f"a request has {limit} bytes at most", 413)
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > limit:
            raise too_large
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
        return bytes(body)

    async def _answer(self, items: Sequence[Any], parameters: Mapping[str, str]) -> list[Answer | Refused]:
        """Tokenize, and wait for what the lanes answer. Whoever stops waiting frees their place."""
        try:
            encoded = self.model.encode(items, **parameters)
        except ValueError as error:  # there is no such prompt or role
            raise BadRequest(str(error)) from error
        jobs = [Job(item, item.tokens) for item in encoded if isinstance(item, Encoded)]
        for job in jobs:
            self.telemetry.text(job.tokens)
        try:
            answers = iter(await asyncio.gather(*(self._queue(job.tokens)(job) for job in jobs)))
        finally:
            for job in jobs:
                job.wanted = False
        found = [item if isinstance(item, Refused) else next(answers) for item in encoded]
        failed = next((answer for answer in found if isinstance(answer, BaseException)), None)
        if failed is not None:
            raise failed
        return [answer for answer in found if not isinstance(answer, BaseException)]

    def _queue(self, tokens: int) -> Any:
        """The ``@serve.batch`` queue of the bucket for texts of ``tokens``."""
        longest = bucket(tokens)
        if longest not in self._queues:

            @serve.batch(
                max_batch_size=self.settings.max_batch,
                batch_wait_timeout_s=self.settings.batch_wait_ms / 1e3,
                max_concurrent_batches=self.settings.max_ongoing * self.settings.max_texts,  # the lanes wait, not this
            )
            async def collect(jobs: list[Job[Encoded]]) -> list[Answer | Refused | BaseException]:
                return await self.lanes.answer(jobs)

            self._queues[longest] = collect
        return self._queues[longest]

    def _unknown(self, name: str, version: str) -> Response | None:
        if name == self.name and version == protocol.VERSION:
            return None
        what = f"no model '{name[:80]}'" if name != self.name else f"no version '{version[:20]}' of it"
        return JSONResponse({"error": f"there is {what}; this server has {self.name}, version {protocol.VERSION}"}, 404)

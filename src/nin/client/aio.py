"""The client for asyncio."""

import asyncio
import importlib
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from nin.client.connection import (
    RETRIES,
    TIMEOUT_S,
    URLS,
    Protocol,
    check_url,
    connection_options,
    pause_after,
    retry_pauses,
)
from nin.client.messages import Prediction, make_request, read_arrays, read_predictions
from nin.client.served import (
    OF_FILES,
    PROBABILITIES,
    Known,
    Served,
    as_json,
    join_pixels,
    only_classifier,
    read_classifiers,
)
from nin.contract import Outputs
from nin.images import encoded

IN_FLIGHT = 4  # batches of one asynchronous call: enough for every instance of a model, twice

_Read = TypeVar("_Read")


class AsyncClient:
    """The same for asyncio; calls may overlap, which is how requests meet in a dynamic batch."""

    def __init__(
        self,
        url: str | None = None,
        *,
        protocol: Protocol = "http",
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
    ) -> None:
        self.url = check_url(URLS[protocol] if url is None else url)
        self._library = importlib.import_module(f"tritonclient.{protocol}.aio")
        self._retries = retries
        options, self._timeouts = connection_options(
            protocol, self.url, ("conn_timeout",), timeout_s
        )
        self._client = self._library.InferenceServerClient(self.url, **options)
        self._known = Known()

    async def classify(
        self, pixels: NDArray[np.uint8], *, top: int = 1, model: str | None = None
    ) -> list[list[Prediction]]:
        """As Client.classify; a few batches are sent at the same time."""
        return await self._classify(model, "", pixels, top)

    async def classify_files(
        self, files: Sequence[bytes], *, top: int = 1, model: str | None = None
    ) -> list[list[Prediction]]:
        """As Client.classify_files; a few batches are sent at the same time."""
        array = encoded(files)
        with self._known.until_error():
            decoder = await self._decoder_of(model)
            if decoder is None:
                return await self._classify(model, OF_FILES, array, top)
            decode = partial(self.infer, decoder.name)
            parts = await _few_at_once(decode, decoder.requests(array))
        return await self._classify(model, "", join_pixels(decoder, parts), top)

    async def classifier(self) -> str:
        """As Client.classifier."""
        read = read_classifiers
        return only_classifier(
            await self._described("get_inference_statistics", "", read=read), self.url
        )

    async def infer(
        self, model: str, inputs: dict[str, NDArray[Any]], *, version: str = ""
    ) -> Outputs:
        """One request as it is: arrays by input name to arrays by output name."""
        return await self._infer(read_arrays, model, inputs, version=version)

    async def close(self) -> None:
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        await self.close()

    async def _classify(
        self, model: str | None, suffix: str, array: NDArray[Any], top: int
    ) -> list[list[Prediction]]:
        with self._known.until_error():
            model = model or await self._only_classifier()
            served = await self._suited(f"{model}{suffix}", array, top)
            return await self._classify_batches(served, array, top)

    async def _classify_batches(
        self, served: Served, array: NDArray[Any], top: int
    ) -> list[list[Prediction]]:
        read = partial(read_predictions, output=PROBABILITIES)
        ask = partial(self._infer, read, served.name, classes_of=PROBABILITIES, top=top)
        results = await _few_at_once(ask, served.requests(array))
        return [prediction for predictions in results for prediction in predictions]

    async def _only_classifier(self) -> str:
        self._known.classifier = self._known.classifier or await self.classifier()
        return self._known.classifier

    async def _decoder_of(self, model: str | None) -> Served | None:
        if model is None:
            return None
        served = self._known.models.get(model) or await self._served(model)
        name = served.decoder
        return (self._known.models.get(name) or await self._served(name)) if name else None

    async def _suited(self, name: str, array: NDArray[Any], top: int) -> Served:
        served = self._known.models.get(name)
        if served is None or served.refusal(array, top):  # another may have taken its place
            served = await self._served(name)
        return served.checked(array, top)

    async def _served(self, name: str) -> Served:
        served = await self._described("get_model_config", name, read=Served.read)
        self._known.models[name] = served
        return served

    async def _infer(
        self, read: Callable[[Any], _Read], model: str, inputs: dict[str, NDArray[Any]], *,
        version: str = "", classes_of: str = "", top: int = 0,
    ) -> _Read:  # fmt: skip
        request = make_request(self._library, inputs, classes_of, top)
        options = {"model_version": version, **request, **self._timeouts}
        return await self._call(partial(self._client.infer, model, **options), read)

    async def _described(self, method: str, model: str, *, read: Callable[[Any], _Read]) -> _Read:
        options = {**as_json(self._library), **self._timeouts}
        return await self._call(partial(getattr(self._client, method), model, **options), read)

    async def _call(self, ask: Callable[[], Any], read: Callable[[Any], _Read]) -> _Read:
        pauses = retry_pauses(self._retries)
        while True:
            try:
                return read(await ask())
            except Exception as error:
                await asyncio.sleep(pause_after(error, self.url, pauses))


async def _few_at_once(
    ask: Callable[[dict[str, NDArray[Any]]], Coroutine[Any, Any, _Read]],
    requests: Sequence[dict[str, NDArray[Any]]],
) -> list[_Read]:
    """The answers in order; where one request fails, the others are given up."""
    free = asyncio.Semaphore(IN_FLIGHT)

    async def ask_in_turn(inputs: dict[str, NDArray[Any]]) -> _Read:
        async with free:  # its time runs from here, not while it waits for the others
            return await ask(inputs)

    tasks = [asyncio.create_task(ask_in_turn(inputs)) for inputs in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # one has failed: the server shan't work on the rest for nobody
            task.cancel()

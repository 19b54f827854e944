"""Stands in for Triton's python backend, as far as nin.decoder uses it."""

import importlib.util
import itertools
import json
import sys
from typing import Any

from nin.serve.backends import python_api
from nin.serve.backends.batching import Answer, BackendError, Inputs, Instance, check

_numbers = itertools.count()


class PythonModel:
    def __init__(self, instance: Instance) -> None:
        self._config = instance.config
        path = instance.file("model.py")
        sys.modules.setdefault("triton_python_backend_utils", python_api)
        # a module of its own for every instance, as each has a process in the official backend
        specification = importlib.util.spec_from_file_location(f"model_{next(_numbers)}", path)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        self._model = module.TritonPythonModel()
        if hasattr(self._model, "initialize"):
            self._model.initialize({"model_config": json.dumps(instance.config)})

    def execute(self, requests: list[Inputs]) -> list[Answer]:
        """One that isn't whole is refused alone: Triton's core lets some through."""
        refusals = [check(request, self._config) for request in requests]
        whole = [r for r, refusal in zip(requests, refusals, strict=True) if refusal is None]
        answers = iter(self._execute(whole) if whole else [])
        return [next(answers) if refusal is None else refusal for refusal in refusals]

    def _execute(self, requests: list[Inputs]) -> list[Answer]:
        responses = self._model.execute([python_api.InferenceRequest(r) for r in requests])
        return [_answer(response) for response in responses]


load = PythonModel


def _answer(response: Any) -> Answer:
    if response.error is not None:
        return BackendError(response.error.message, response.error.code)
    return {tensor.name: tensor.array for tensor in response.output_tensors}

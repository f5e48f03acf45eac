"""Triton's backend "onnxruntime" in Python, for a server that comes without the one in C++.

Triton runs it in an interpreter of its own for every model whose config names this backend.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class TritonPythonModel:
    """One instance of a model; Triton looks for this name."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        return config

    def initialize(self, args: dict[str, str]) -> None:
        import onnxruntime

        config = json.loads(args["model_config"])
        file = Path(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            file / "model.onnx" if file.is_dir() else file,
            options,
            providers=["CPUExecutionProvider"],
        )
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        import triton_python_backend_utils as backend  # only this interpreter has it

        responses = []
        for request in requests:
            feed = {
                name: backend.get_input_tensor_by_name(request, name).as_numpy()
                for name in self._inputs
            }
            asked = [name for name in self._outputs if name in request.requested_output_names()]
            tensors = map(backend.Tensor, asked, self._session.run(asked, feed))
            responses.append(backend.InferenceResponse(list(tensors)))
        return responses

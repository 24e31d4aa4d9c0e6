"""Stands for the server's ONNX Runtime backend: model.onnx of a model's version folder, run by the Python library."""

import os

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        responses = []
        for request in requests:
            names = [output.name for output in self.session.get_outputs()]
            arrays = self.session.run(names, {each.name(): each.as_numpy() for each in request.inputs()})
            tensors = [pb_utils.Tensor(name, array) for name, array in zip(names, arrays, strict=True)]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses

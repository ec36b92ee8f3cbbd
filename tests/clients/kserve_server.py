"""A server of the Open Inference Protocol: KServe's own, whose model `halves` halves its inputs. It says READY, and ends with its
standard input.

usage: kserve_server.py HTTP_PORT GRPC_PORT
"""

import os
import sys
import threading

GRPC_PORT, HTTP_PORT = int(sys.argv.pop()), int(sys.argv.pop())
# The server reads the arguments of whoever imports it.
from kserve import InferOutput, InferResponse, Model, ModelServer


class Halves(Model):
    def __init__(self):
        super().__init__("halves")
        self.ready = True

    async def get_input_types(self):
        return [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]

    async def get_output_types(self):
        return [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]

    def predict(self, payload, headers=None):
        halves = payload.inputs[0].as_numpy() / 2
        output = InferOutput("y", list(halves.shape), "FP32")
        output.set_data_from_numpy(halves, binary_data=True)
        return InferResponse(response_id=payload.id, model_name="halves", infer_outputs=[output])


def end_with_input():
    sys.stdin.read()
    os._exit(0)


threading.Thread(target=end_with_input, daemon=True).start()
ModelServer(http_port=HTTP_PORT, grpc_port=GRPC_PORT, workers=1).start([Halves()])

"""A server of the Open Inference Protocol over gRPC: KServe's own, on the loopback address, whose model `halves` halves its inputs. It
ends with its standard input.

usage: kserve_server.py PORT
"""

import asyncio
import os
import sys
import threading

PORT = sys.argv.pop()
# The server reads the arguments of whoever imports it.
import grpc
from kserve import InferOutput, InferResponse, Model
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension


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


async def main():
    models = ModelRepository()
    models.update(Halves())
    # What KServe's ModelServer starts, too, which would listen on all addresses.
    server = grpc.aio.server(interceptors=[ExceptionToStatusInterceptor()])
    servicer = InferenceServicer(DataPlane(model_registry=models), ModelRepositoryExtension(models))
    grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{PORT}")
    await server.start()
    await server.wait_for_termination()


threading.Thread(target=end_with_input, daemon=True).start()
asyncio.run(main())

"""The Open Inference Protocol, and V1, through KServe's own client; a line for each check, and a failure at the first difference. The
endpoint `classes` serves the model of onnx_models.py.

usage: kserve_protocol.py HOST:PORT
"""

import asyncio
import sys

ADDRESS = sys.argv.pop()
# The client reads the arguments of whoever imports it.
import numpy
from kserve import InferInput, InferRequest, InferenceGRPCClient, InferenceRESTClient, RESTConfig


def check(what, found, expected):
    if found != expected:
        print(f"DIFFERENT {what}: {found!r}, expected {expected!r}")
        sys.exit(1)
    print(f"ok {what}")


def request(binary):
    values = numpy.arange(8, dtype=numpy.float32).reshape(2, 4)
    entry = InferInput("x", [2, 4], "FP32")
    entry.set_data_from_numpy(values, binary_data=binary)
    return InferRequest(model_name="classes", infer_inputs=[entry])


async def over_rest():
    client = InferenceRESTClient(config=RESTConfig(protocol="v2", retries=0, timeout=30))
    url = f"http://{ADDRESS}"
    check("the server lives", await client.is_server_live(url), True)
    check("and is ready", await client.is_server_ready(url), True)
    check("a model is ready", await client.is_model_ready(url, "classes"), True)
    check("one that is not there", await client.is_model_ready(url, "none"), False)
    answers = []
    for binary in [False, True]:
        response = await client.infer(url, model_name="classes", data=request(binary))
        check("the answer's model", response.model_name, "classes")
        answers.append(response.outputs[0].as_numpy())
    check("binary and JSON agree", numpy.allclose(*answers), True)
    v1 = InferenceRESTClient(config=RESTConfig(protocol="v1", retries=0, timeout=30))
    check("the server lives for V1", await v1.is_server_live(url), True)
    check("a model is ready for V1", await v1.is_model_ready(url, "classes"), True)
    answer = await v1.infer(url, model_name="classes", data={"instances": [[0, 1, 2, 3], [4, 5, 6, 7]]})
    check("V1 gives the same", numpy.allclose(answer["predictions"], answers[0]), True)
    return answers[0]


async def over_grpc(expected):
    client = InferenceGRPCClient(ADDRESS, retries=0, timeout=30)
    check("the server lives over gRPC", await client.is_server_live(), True)
    check("a model is ready over gRPC", await client.is_model_ready("classes"), True)
    response = await client.infer(request(True))
    check("gRPC gives the same", numpy.allclose(response.outputs[0].as_numpy(), expected), True)


async def main():
    await over_grpc(await over_rest())


asyncio.run(main())

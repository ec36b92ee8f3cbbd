"""The Open Inference Protocol with Triton's extensions through tritonclient, over HTTP and gRPC, blocking and with asyncio; a line for
each check, and a failure at the first difference. The endpoints `identity` and `classes` serve the models of onnx_models.py.

usage: triton_protocol.py HOST:PORT
"""

import asyncio
import queue
import sys

import ml_dtypes
import numpy
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

ADDRESS = sys.argv[1]
VALUES = {
    "BOOL": [True, False, False, True],
    "UINT8": [0, 255, 7, 1],
    "UINT16": [0, 65535, 7, 1],
    "UINT32": [0, 2**32 - 1, 7, 1],
    "UINT64": [0, 2**64 - 1, 7, 1],
    "INT8": [-128, 127, 7, 1],
    "INT16": [-(2**15), 2**15 - 1, 7, 1],
    "INT32": [-(2**31), 2**31 - 1, 7, 1],
    "INT64": [-(2**63), 2**63 - 1, 7, 1],
    "FP16": [0.5, -65504.0, 2.0**-24, 1.0],
    "BF16": [0.5, -3.0e38, 2.0**-100, 1.0],
    "FP32": [0.1, -3.4e38, 1e-45, 1.0],
    "FP64": [0.1, -1.7e308, 5e-324, 1 / 3],
    "BYTES": ["", "ä and 漢", 'a "b"', "\n"],
}


def check(what, found, expected):
    if found != expected:
        print(f"DIFFERENT {what}: {found!r}, expected {expected!r}")
        sys.exit(1)
    print(f"ok {what}")


def refused(what, text, call):
    try:
        call()
    except InferenceServerException as error:
        if text not in str(error):
            check(f"{what}: the message", str(error), text)
        print(f"ok {what}")
        return
    check(what, "accepted", "refused")


def array(datatype):
    if datatype == "BYTES":
        return numpy.array([text.encode() for text in VALUES[datatype]], dtype=numpy.object_).reshape(2, 2)
    kind = ml_dtypes.bfloat16 if datatype == "BF16" else triton_to_np_dtype(datatype)
    return numpy.array(VALUES[datatype], dtype=kind).reshape(2, 2)


def all_inputs(kind, binary):
    """One input of every datatype; `binary`: behind the JSON, which only HTTP can tell apart."""
    inputs = []
    for datatype in VALUES:
        entry = kind.InferInput(f"in_{datatype}", [2, 2], datatype)
        if binary is None:
            entry.set_data_from_numpy(array(datatype))
        else:
            # The client has no JSON for floats of two bytes.
            entry.set_data_from_numpy(array(datatype), binary_data=binary or datatype in ("FP16", "BF16"))
        inputs.append(entry)
    return inputs


def check_identity(way, result):
    for datatype in VALUES:
        found, expected = result.as_numpy(f"out_{datatype}"), array(datatype)
        if datatype == "BYTES":
            found = numpy.array([item if isinstance(item, bytes) else item.encode() for item in found.reshape(-1)], dtype=numpy.object_)
            expected = expected.reshape(-1)
        check(f"{datatype} over {way}", (found == expected).all().item(), True)


def rows(kind, count=2, binary=None):
    values = numpy.arange(count * 4, dtype=numpy.float32).reshape(count, 4) / 10
    entry = kind.InferInput("x", [count, 4], "FP32")
    entry.set_data_from_numpy(values, **({} if binary is None else {"binary_data": binary}))
    return [entry]


def over_http(client):
    kind = tritonclient.http
    metadata = client.get_server_metadata()
    check("the server's name", metadata["name"], "modelyard")
    check("its extensions", {"classification", "statistics", "model_repository", "model_configuration"} <= set(metadata["extensions"]), True)
    check_identity("HTTP, binary", client.infer("identity", all_inputs(kind, True)))
    wanted = [kind.InferRequestedOutput(f"out_{datatype}", binary_data=datatype in ("FP16", "BF16")) for datatype in VALUES]
    check_identity("HTTP, JSON", client.infer("identity", all_inputs(kind, False), outputs=wanted))
    for algorithm in ["gzip", "deflate"]:
        result = client.infer(
            "classes", rows(kind, 400), request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
        )
        check(f"compressed with {algorithm}", result.as_numpy("shares").shape, (400, 3))
    plain = client.infer("classes", rows(kind)).as_numpy("shares")
    top = client.infer("classes", rows(kind), outputs=[kind.InferRequestedOutput("shares", class_count=2)]).as_numpy("shares")
    best = [int(text.decode().split(":")[1]) for text in top[:, 0]]
    check("the best classes", (top.shape, best), ((2, 2), plain.argmax(axis=1).tolist()))
    config = client.get_model_config("classes")
    check("the configuration", (config["max_batch_size"] > 0, config["input"][0]["dims"]), (True, [4]))
    before = client.get_inference_statistics("classes")["model_stats"][0]
    client.infer("classes", rows(kind, 5))
    after = client.get_inference_statistics("classes")["model_stats"][0]
    check("rows are counted", after["inference_count"] - before["inference_count"], 5)
    check("runs are counted", after["execution_count"] - before["execution_count"], 1)
    check("the index", {(model["name"], model["state"]) for model in client.get_model_repository_index()}, {("identity", "READY"), ("classes", "READY")})
    client.unload_model("classes")
    check("an unloaded model", client.is_model_ready("classes"), False)
    refused("and its predictions", "unloaded by hand", lambda: client.infer("classes", rows(kind)))
    client.load_model("classes")
    check("a loaded model", client.is_model_ready("classes"), True)
    refused("a sequence", "sequences", lambda: client.infer("classes", rows(kind), sequence_id=5, sequence_start=True))
    refused("no such model", "no endpoint `none`", lambda: client.infer("none", rows(kind)))
    refused("no such output", "no output `z`", lambda: client.infer("classes", rows(kind), outputs=[kind.InferRequestedOutput("z")]))
    refused("a load with files", "not offered", lambda: client.load_model("classes", config="{}"))


def over_grpc(client):
    kind = tritonclient.grpc
    check_identity("gRPC", client.infer("identity", all_inputs(kind, None)))
    for algorithm in ["gzip", "deflate"]:
        result = client.infer("classes", rows(kind, 400), compression_algorithm=algorithm)
        check(f"gRPC with {algorithm}", result.as_numpy("shares").shape, (400, 3))
    config = client.get_model_config("classes", as_json=True)["config"]
    check("the configuration over gRPC", (config["input"][0]["dims"], config["input"][0]["data_type"]), (["4"], "TYPE_FP32"))
    statistics = client.get_inference_statistics("classes", as_json=True)["model_stats"][0]
    check("statistics over gRPC", int(statistics["inference_count"]) > 0, True)
    check("the index over gRPC", len(client.get_model_repository_index().models), 2)
    client.unload_model("classes")
    check("an unloaded model over gRPC", client.is_model_ready("classes"), False)
    client.load_model("classes")
    top = client.infer("classes", rows(kind), outputs=[kind.InferRequestedOutput("shares", class_count=1)]).as_numpy("shares")
    check("the best class over gRPC", top.shape, (2, 1))
    refused("a wrong shape", "shape", lambda: client.infer("classes", [short_input(kind)]))

    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for index in range(20):
        client.async_stream_infer("classes", rows(kind, index + 1), request_id=str(index))
    client.async_stream_infer("classes", [short_input(kind)], request_id="wrong")
    client.async_stream_infer("classes", rows(kind), request_id="last", enable_empty_final_response=True)
    found = [answers.get(timeout=30) for _ in range(22)]
    client.stop_stream()
    good = [result for result, error in found if error is None]
    check("a stream's answers", [result.get_response().id for result in good], [*map(str, range(20)), "last"])
    check("each with its rows", [result.as_numpy("shares").shape[0] for result in good], [*range(1, 21), 2])
    check("the wrong one", sum("shape" in str(error) for _, error in found if error is not None), 1)
    check("the last says so", good[-1].get_response().parameters["triton_final_response"].bool_param, True)


def short_input(kind):
    entry = kind.InferInput("x", [1, 3], "FP32")
    entry.set_data_from_numpy(numpy.zeros((1, 3), dtype=numpy.float32))
    return entry


async def with_asyncio():
    async with tritonclient.http.aio.InferenceServerClient(ADDRESS) as client:
        check_identity("HTTP with asyncio", await client.infer("identity", all_inputs(tritonclient.http, True)))
        # aiohttp says that it takes gzip, and the client unpacks nothing but predictions.
        check("metadata with asyncio", (await client.get_model_metadata("identity"))["name"], "identity")
        result = await client.infer("classes", rows(tritonclient.http, 400), response_compression_algorithm="gzip")
        check("compressed with asyncio", result.as_numpy("shares").shape, (400, 3))
        many = await asyncio.gather(*(client.infer("classes", rows(tritonclient.http, 1 + index % 3)) for index in range(60)))
        check("many at once", [len(result.as_numpy("shares")) for result in many], [1 + index % 3 for index in range(60)])
    async with tritonclient.grpc.aio.InferenceServerClient(ADDRESS) as client:
        check_identity("gRPC with asyncio", await client.infer("identity", all_inputs(tritonclient.grpc, None)))

        async def requests():
            for index in range(5):
                yield {"model_name": "classes", "inputs": rows(tritonclient.grpc, index + 1), "request_id": str(index)}

        found = []
        async for result, error in client.stream_infer(requests()):
            found.append((result.get_response().id, error))
        check("a stream with asyncio", found, [(str(index), None) for index in range(5)])


over_http(tritonclient.http.InferenceServerClient(ADDRESS))
over_grpc(tritonclient.grpc.InferenceServerClient(ADDRESS))
asyncio.run(with_asyncio())

"""One request through tritonclient over HTTP (binary tensors) and over gRPC; prints the answers as JSON.

usage: triton.py HOST:PORT REQUEST.json
"""

import json
import sys

import numpy
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import triton_to_np_dtype

MODEL = "flight-delay"


def inputs_of(client, request, datatypes):
    inputs = []
    for tensor in request["inputs"]:
        datatype = datatypes[tensor["name"]]
        dtype = numpy.object_ if datatype == "BYTES" else triton_to_np_dtype(datatype)
        values = numpy.array(tensor["data"], dtype=dtype).reshape(tensor["shape"])
        entry = client.InferInput(tensor["name"], list(values.shape), datatype)
        entry.set_data_from_numpy(values)
        inputs.append(entry)
    return inputs


def plain(array):
    return [item.decode() if isinstance(item, bytes) else item for item in array.reshape(-1).tolist()]


def main():
    address, path = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        request = json.load(file)
    answers = {}

    http = tritonclient.http.InferenceServerClient(address)
    assert http.is_server_live() and http.is_server_ready() and http.is_model_ready(MODEL)
    metadata = http.get_model_metadata(MODEL)
    datatypes = {tensor["name"]: tensor["datatype"] for tensor in metadata["inputs"]}
    names = [tensor["name"] for tensor in metadata["outputs"]]
    result = http.infer(MODEL, inputs_of(tritonclient.http, request, datatypes), request_id="triton-http")
    answer = result.get_response()
    assert answer["id"] == "triton-http", answer
    answers["http"] = {
        "version": answer["model_version"],
        "outputs": {name: plain(result.as_numpy(name)) for name in names},
    }

    grpc = tritonclient.grpc.InferenceServerClient(address)
    assert grpc.is_server_live() and grpc.is_server_ready() and grpc.is_model_ready(MODEL)
    described = grpc.get_model_metadata(MODEL, as_json=True)
    assert [tensor["name"] for tensor in described["inputs"]] == list(datatypes), described
    result = grpc.infer(MODEL, inputs_of(tritonclient.grpc, request, datatypes), request_id="triton-grpc")
    answer = result.get_response()
    assert answer.id == "triton-grpc", answer
    answers["grpc"] = {
        "version": answer.model_version,
        "outputs": {name: plain(result.as_numpy(name)) for name in names},
    }
    print(json.dumps(answers))


main()

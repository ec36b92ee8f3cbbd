"""Asks the endpoint `flight-delay` about one flight, with Triton's own client.

usage: predict.py [HOST:PORT]      (127.0.0.1:7070 without it)
"""

import sys

import numpy
import tritonclient.http
from tritonclient.utils import triton_to_np_dtype

ENDPOINT = "flight-delay"
FLIGHT = {
    "carrier": "UA",
    "origin": "EWR",
    "dest": "IAH",
    "hour": 17,
    "weekday": 4,
    "distance": 1400,
    "temp": 39.02,
    "humid": 64.43,
    "wind_speed": 12.66,
    "precip": 0.0,
    "pressure": float("nan"),  # missing
    "visib": 10.0,
}

address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070"
client = tritonclient.http.InferenceServerClient(address)

inputs = []
for tensor in client.get_model_metadata(ENDPOINT)["inputs"]:
    datatype = tensor["datatype"]
    dtype = numpy.object_ if datatype == "BYTES" else triton_to_np_dtype(datatype)
    shape = [max(size, 1) for size in tensor["shape"]]
    entry = tritonclient.http.InferInput(tensor["name"], shape, datatype)
    entry.set_data_from_numpy(numpy.array([FLIGHT[tensor["name"]]], dtype=dtype).reshape(shape))
    inputs.append(entry)

answer = client.infer(ENDPOINT, inputs)
probabilities = answer.as_numpy("probabilities").reshape(-1)
print(f"version {answer.get_response()['model_version']}: late with probability {probabilities[1]:.3f}")

"""A stream outlives the token that it was opened with; what comes on it does not. A line for each check, and a failure at the first
difference.

usage: triton_stream.py HOST:PORT TOKEN_OF_AN_ADMIN
"""

import json
import queue
import sys
import time
import urllib.request

import numpy
import tritonclient.grpc as grpc

ADDRESS, ADMIN = sys.argv[1:]
PATIENCE_SECONDS = 30


def ask(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{ADDRESS}/api/v1/{path}", data, headers, method=method)
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        content = answer.read()
    return json.loads(content) if content else None


def check(what, found):
    if not found:
        print(f"DIFFERENT {what}")
        sys.exit(1)
    print(f"ok {what}")


made = ask("POST", "tokens", {"name": "stream"})
answers = queue.Queue()
client = grpc.InferenceServerClient(ADDRESS)
# There is no such endpoint, which only those are told who may know.
client.start_stream(lambda result, error: answers.put(str(error)), headers={"authorization": f"Bearer {made['token']}"})
given = grpc.InferInput("x", [1, 1], "FP32")
given.set_data_from_numpy(numpy.zeros((1, 1), numpy.float32))


def send():
    client.async_stream_infer("absent", [given])
    return answers.get(timeout=PATIENCE_SECONDS)


check("the owner of the token is answered", "there is no endpoint `absent`" in send())
ask("DELETE", f"tokens/{made['id']}")
until = time.monotonic() + PATIENCE_SECONDS
while "there is no endpoint" in (said := send()) and time.monotonic() < until:
    time.sleep(0.05)
print(said)
check("once it is revoked, it counts for nothing on the open stream", "there is no endpoint" not in said)
client.stop_stream()

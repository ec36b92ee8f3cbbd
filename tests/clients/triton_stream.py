"""Streams end with the token that they were opened with. A line for each check, and a failure at the first difference.

usage: triton_stream.py HOST:PORT TOKEN_OF_AN_ADMIN ID_OF_THE_TOKEN TOKEN
"""

import queue
import sys
import time
import urllib.request

import numpy
import tritonclient.grpc as grpc

ADDRESS, ADMIN, ID, TOKEN = sys.argv[1:]
# A change is on the disk before it is answered, and disks are slow at times.
PATIENCE_SECONDS = 60


def revoke():
    url = f"http://{ADDRESS}/api/v1/tokens/{ID}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {ADMIN}"}, method="DELETE")
    urllib.request.urlopen(request, timeout=PATIENCE_SECONDS).close()


def check(what, found):
    if not found:
        print(f"DIFFERENT {what}")
        sys.exit(1)
    print(f"ok {what}")


class Stream:
    def __init__(self):
        self.answers = queue.Queue()
        self.client = grpc.InferenceServerClient(ADDRESS)
        # Python does not end before its streams.
        self.client.start_stream(
            lambda result, error: self.answers.put(str(error)),
            stream_timeout=4 * PATIENCE_SECONDS,
            headers={"authorization": f"Bearer {TOKEN}"},
        )

    def send(self):
        # There is no such endpoint, which only those are told who may know.
        self.client.async_stream_infer("absent", [given])
        return self.receive()

    def receive(self):
        return self.answers.get(timeout=PATIENCE_SECONDS)

    def stop(self):
        self.client.stop_stream(cancel_requests=True)


given = grpc.InferInput("x", [1, 1], "FP32")
given.set_data_from_numpy(numpy.zeros((1, 1), numpy.float32))
busy, idle = Stream(), Stream()
try:
    for stream in (busy, idle):
        said = stream.send()
        check(f"the owner of the token is answered: {said}", "there is no endpoint `absent`" in said)
    revoke()
    until = time.monotonic() + PATIENCE_SECONDS
    while "there is no endpoint" in (said := busy.send()) and time.monotonic() < until:
        time.sleep(0.05)
    check(f"once it is revoked, the open stream ends: {said}", "UNAUTHENTICATED" in said)
    said = idle.receive()
    check(f"so does one on which nothing is sent any more: {said}", "UNAUTHENTICATED" in said)
finally:
    busy.stop()
    idle.stop()

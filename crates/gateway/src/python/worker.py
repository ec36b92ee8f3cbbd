"""Runs one model that MLflow saved, for the gateway that started this process. Standard input is a socket.

A message is the length of its head as four bytes and of its body as eight, little endian; the head, JSON; and the body, the raw
contents of the tensors that the head lists, as the Open Inference Protocol writes them. This process speaks first: what the model
takes and gives, found out by a trial. After that each request is answered by one message. It ends with the socket.

usage: worker.py FOLDER MEMORY_BYTES PROCESSORS (0: as much as there is)
"""

import json
import os
import resource
import select
import socket
import struct
import sys
import threading
import traceback

LENGTHS = struct.Struct("<IQ")
LENGTH = struct.Struct("<I")
# What an output is called that has no name.
UNNAMED = "predictions"
COLUMN_TYPES = {
    "boolean": "BOOL",
    "integer": "INT32",
    "long": "INT64",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    "datetime": "BYTES",
}
TYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
NAMES = {numpy_name: name for name, numpy_name in TYPES.items()}


class Refused(Exception):
    """What cannot be served, in words for whoever logged the model."""


def limit(memory_bytes, processors):
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    if processors:
        allowed = sorted(os.sched_getaffinity(0))
        # Workers do not all begin with the same processor.
        start = os.getpid() % len(allowed)
        turned = allowed[start:] + allowed[:start]
        os.sched_setaffinity(0, turned[:processors])


def end_with(connection):
    """Ends this process when the gateway is gone, whatever it is busy with."""
    poll = select.poll()
    poll.register(connection, select.POLLHUP | select.POLLRDHUP)
    poll.poll()
    os._exit(0)


def receive_exactly(connection, count):
    content = bytearray(count)
    view = memoryview(content)
    while count:
        received = connection.recv_into(view[-count:], count)
        if not received:
            # The gateway is gone, or does not want this worker any more.
            os._exit(0)
        count -= received
    return content


def receive(connection):
    head_bytes, body_bytes = LENGTHS.unpack(receive_exactly(connection, LENGTHS.size))
    head = json.loads(receive_exactly(connection, head_bytes))
    return head, receive_exactly(connection, body_bytes)


def send(connection, head, parts=()):
    head = json.dumps(head).encode()
    body_bytes = sum(len(part) for part in parts)
    connection.sendall(LENGTHS.pack(len(head), body_bytes) + head)
    for part in parts:
        connection.sendall(part)


def read_texts(content):
    texts, start = [], 0
    while start < len(content):
        (count,) = LENGTH.unpack_from(content, start)
        start += LENGTH.size
        texts.append(content[start : start + count].decode())
        start += count
    return texts


def write_texts(values):
    each = (str(value).encode() for value in values)
    return b"".join(LENGTH.pack(len(text)) + text for text in each)


def read_tensors(head, body):
    import numpy

    tensors, start = {}, 0
    for tensor in head["tensors"]:
        content = memoryview(body)[start : start + tensor["bytes"]]
        start += tensor["bytes"]
        if tensor["datatype"] == "BYTES":
            values = numpy.array(read_texts(content.tobytes()), dtype=object)
        else:
            values = numpy.frombuffer(content, dtype=TYPES[tensor["datatype"]])
        tensors[tensor["name"]] = values.reshape(tensor["shape"])
    return tensors


class Model:
    """A loaded model, and how tensors become what it takes."""

    def __init__(self, folder):
        import mlflow.pyfunc

        self.model = mlflow.pyfunc.load_model(folder)
        signature = self.model.metadata.signature
        if signature is None or signature.inputs is None:
            raise Refused("it was logged without a signature: log it with `input_example` or `signature=infer_signature(..)`")
        self.is_tensor_based = signature.inputs.is_tensor_spec()
        self.inputs = [self.read_input(index, spec) for index, spec in enumerate(signature.inputs.inputs)]
        self.names = [] if signature.outputs is None else [spec.name for spec in signature.outputs.inputs]
        self.example = self.read_example(folder)

    def read_input(self, index, spec):
        if self.is_tensor_based:
            datatype = "BYTES" if spec.type.kind in "OSU" else NAMES.get(spec.type.name)
            shape = [int(size) for size in spec.shape]
        else:
            datatype = COLUMN_TYPES.get(getattr(spec.type, "name", None))
            shape = [-1, 1]
        name = spec.name if spec.name is not None else f"input-{index}"
        if datatype is None:
            raise Refused(f"its input `{name}` is of type {spec.type}, which no tensor can carry")
        is_time = not self.is_tensor_based and spec.type.name == "datetime"
        return {"name": str(name), "key": spec.name, "datatype": datatype, "shape": shape, "is_time": is_time}

    def read_example(self, folder):
        """The example that was logged with the model, as tensors; none where there is none that fits."""
        import numpy

        try:
            example = self.model.metadata.load_input_example(folder)
            if example is None:
                return None
            if self.is_tensor_based:
                by_name = example if isinstance(example, dict) else {self.inputs[0]["name"]: example}
                return {one["name"]: self.typed(one, numpy.asarray(by_name[one["name"]])) for one in self.inputs}
            columns = [example[one["key"]] if one["key"] is not None else example.iloc[:, index] for index, one in enumerate(self.inputs)]
            return {one["name"]: self.typed(one, column.to_numpy().reshape(-1, 1)) for one, column in zip(self.inputs, columns)}
        except Exception:
            traceback.print_exc()
            return None

    @staticmethod
    def typed(spec, values):
        return values.astype(object if spec["datatype"] == "BYTES" else TYPES[spec["datatype"]])

    def zeros(self):
        import numpy

        def of(spec):
            shape = [1 if size < 0 else size for size in spec["shape"]]
            if spec["datatype"] == "BYTES":
                return numpy.full(shape, "", dtype=object)
            return numpy.zeros(shape, dtype=TYPES[spec["datatype"]])

        return {spec["name"]: of(spec) for spec in self.inputs}

    def predict(self, tensors):
        import pandas

        if not self.is_tensor_based:
            columns = {}
            for index, spec in enumerate(self.inputs):
                column = tensors[spec["name"]].reshape(-1)
                key = spec["key"] if spec["key"] is not None else index
                columns[key] = pandas.to_datetime(column) if spec["is_time"] else column
            given = pandas.DataFrame(columns)
        elif len(self.inputs) == 1 and self.inputs[0]["key"] is None:
            given = tensors[self.inputs[0]["name"]]
        else:
            given = {spec["key"]: tensors[spec["name"]] for spec in self.inputs}
        return self.outputs(self.model.predict(given))

    def outputs(self, answer):
        """The answer as arrays by name, whatever the flavour gives."""
        import numpy
        import pandas

        if isinstance(answer, pandas.DataFrame):
            named = {str(name): answer[name].to_numpy() for name in answer.columns}
        elif isinstance(answer, dict):
            named = {str(name): numpy.asarray(values) for name, values in answer.items()}
        else:
            if hasattr(answer, "toarray"):
                answer = answer.toarray()
            elif hasattr(answer, "detach"):
                answer = answer.detach().cpu().numpy()
            name = self.names[0] if len(self.names) == 1 and self.names[0] is not None else UNNAMED
            named = {str(name): numpy.asarray(answer)}
        return [self.write(name, values) for name, values in named.items()]

    @staticmethod
    def write(name, values):
        import numpy

        if values.ndim == 0:
            values = values.reshape(1)
        datatype = NAMES.get(values.dtype.name, "BYTES")
        content = write_texts(values.reshape(-1)) if datatype == "BYTES" else numpy.ascontiguousarray(values).tobytes()
        return {"name": name, "datatype": datatype, "shape": list(values.shape), "bytes": len(content)}, content

    def describe(self):
        """What the model takes and gives, found out by the example, else by zeros; and that."""
        example = self.example or self.zeros()
        try:
            outputs = self.predict(example)
        except Exception as error:
            traceback.print_exc()
            raise Refused(
                f"a trial failed ({type(error).__name__}: {error}): log it with an `input_example` that it takes"
            ) from error
        # Each is written as what the input takes: an array of texts is one of objects.
        given = [self.write(spec["name"], example[spec["name"]]) for spec in self.inputs]
        description = {
            "inputs": [{key: spec[key] for key in ("name", "datatype", "shape")} for spec in self.inputs],
            "outputs": [
                {"name": head["name"], "datatype": head["datatype"], "shape": [-1, *head["shape"][1:]]}
                for head, _ in outputs
            ],
            "tensors": [head for head, _ in given],
        }
        return description, [content for _, content in given]


def is_of_inputs(error):
    """Whether MLflow blames the inputs: they do not fit the signature."""
    return getattr(error, "error_code", None) in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def answer(model, head, body):
    try:
        tensors = read_tensors(head, body)
    except UnicodeDecodeError as error:
        return {"error": f"a text is not UTF-8 ({error})", "inputs_at_fault": True}, []
    try:
        outputs = model.predict(tensors)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}", "inputs_at_fault": is_of_inputs(error)}, []
    return {"tensors": [head for head, _ in outputs]}, [content for _, content in outputs]


def main():
    folder, memory_bytes, processors = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    connection = socket.socket(fileno=os.dup(0))
    # What models print is for the log, and none of them reads the socket.
    os.dup2(2, 1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=end_with, args=[connection], daemon=True).start()
    limit(memory_bytes, processors)
    try:
        model = Model(folder)
        description, example = model.describe()
    except Refused as refused:
        send(connection, {"error": str(refused)})
        return
    except Exception as error:
        traceback.print_exc()
        send(connection, {"error": f"it cannot be loaded ({type(error).__name__}: {error})"})
        return
    send(connection, description, example)
    while True:
        send(connection, *answer(model, *receive(connection)))


if __name__ == "__main__":
    main()

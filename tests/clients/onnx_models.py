"""Writes the ONNX models that the other scripts call.

usage: onnx_models.py FOLDER

identity.onnx: each input comes out again, one of every datatype, two elements a row. classes.onnx: four numbers a row, and a share for
each of three classes. product.onnx: three numbers a row are multiplied by a matrix, and doubled.onnx: three numbers a row become twice as
large, which the stand-in for a device can do. Versions of one model, which takes two numbers a row: good.onnx and better.onnx answer,
unhurried.onnx and slow.onnx take their time, and failing.onnx fails on whatever comes.
"""

import os
import sys

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

DATATYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def save(folder, name, nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(nodes, name, inputs, outputs, initializer=list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, os.path.join(folder, f"{name}.onnx"))


def identity(folder):
    nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in DATATYPES]
    values = lambda way: [helper.make_tensor_value_info(f"{way}_{name}", kind, ["rows", 2]) for name, kind in DATATYPES.items()]
    save(folder, "identity", nodes, values("in"), values("out"))


def classes(folder):
    random = numpy.random.default_rng(7)
    weights = [
        numpy_helper.from_array(random.normal(size=(4, 3)).astype(numpy.float32), "w"),
        numpy_helper.from_array(random.normal(size=3).astype(numpy.float32), "b"),
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["shares"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])]
    outputs = [helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["rows", 3])]
    save(folder, "classes", nodes, inputs, outputs, weights)


def on_a_device(folder):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])]
    weights = [numpy_helper.from_array(numpy.array([[1, 0], [0, 10], [1, 100]], numpy.float32), "w")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])]
    save(folder, "product", [helper.make_node("MatMul", ["x", "w"], ["y"])], inputs, outputs, weights)
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])]
    save(folder, "doubled", [helper.make_node("Add", ["x", "x"], ["y"])], inputs, outputs)


def slow(folder, name, steps, inputs, outputs):
    """A row becomes wide, is multiplied again and again by a matrix that changes nothing, and becomes narrow again: a loop loads at once."""
    width = 256
    wide = numpy.zeros((2, width), numpy.float32)
    wide[0, 0] = wide[1, 1] = 1
    weights = [
        numpy_helper.from_array(numpy.array(steps, numpy.int64), "steps"),
        numpy_helper.from_array(wide, "wide"),
        numpy_helper.from_array(numpy.eye(width, dtype=numpy.float32), "same"),
        numpy_helper.from_array(wide.T.copy(), "narrow"),
    ]
    rows = ["rows", width]
    body = helper.make_graph(
        [helper.make_node("MatMul", ["before", "same"], ["after"]), helper.make_node("Identity", ["going"], ["on"])],
        "step",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, rows),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, rows),
        ],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "wide"], ["first"]),
        helper.make_node("Loop", ["steps", "", "first"], ["last"], body=body),
        helper.make_node("MatMul", ["last", "narrow"], ["y"]),
    ]
    save(folder, name, nodes, inputs, outputs, weights)


def versions(folder):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])]
    for name, factor in [("good", 1), ("better", 2)]:
        weights = [numpy_helper.from_array(numpy.array([factor], numpy.float32), "factor")]
        save(folder, name, [helper.make_node("Mul", ["x", "factor"], ["y"])], inputs, outputs, weights)
    slow(folder, "unhurried", 2_000, inputs, outputs)
    slow(folder, "slow", 30_000, inputs, outputs)
    # Seven does not divide what comes.
    weights = [numpy_helper.from_array(numpy.array([7, -1], numpy.int64), "shape")]
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["folded"]), helper.make_node("Identity", ["folded"], ["y"])]
    save(folder, "failing", nodes, inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["sevens", "rest"])], weights)


identity(sys.argv[1])
classes(sys.argv[1])
on_a_device(sys.argv[1])
versions(sys.argv[1])

"""Models of Python that MLflow saved, logged by its client and served; a line for each check, and a failure at the first difference.

usage: MLFLOW_TRACKING_URI=http://HOST:PORT mlflow_pyfunc.py log | check
"""

import os
import sys
import urllib.request

import json
import mlflow
import numpy
import pandas
import tritonclient.grpc
import tritonclient.http
from mlflow import MlflowClient
from mlflow.models import infer_signature
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier

URL = os.environ["MLFLOW_TRACKING_URI"]
ADDRESS = URL.removeprefix("http://")
ROWS, LABELS = load_breast_cancer(return_X_y=True)


def check(what, found, expected):
    if found != expected:
        print(f"DIFFERENT {what}: {found!r}, expected {expected!r}")
        sys.exit(1)
    print(f"ok {what}")


class Orders(mlflow.pyfunc.PythonModel):
    """Columns of several types; a quantity below zero ends the process, one of 1,000 or more fails, the name `huge` takes 8 GiB, `stuck`
    takes for ever, and `who` is told which process answers."""

    def predict(self, context, model_input, params=None):
        import os
        import time

        import numpy

        if (model_input["quantity"] < 0).any():
            os._exit(7)
        if (model_input["quantity"] >= 1000).any():
            raise ValueError("nobody orders so many")
        if (model_input["name"] == "huge").any():
            numpy.ones(1 << 30)
        if (model_input["name"] == "stuck").any():
            time.sleep(3600)
        print("what a model prints is no answer")
        total = model_input["price"] * model_input["quantity"]
        names = model_input["name"].replace("who", str(os.getpid()))
        return pandas.DataFrame({"total": total, "label": names + "!"})


def forest():
    return RandomForestClassifier(n_estimators=5, max_depth=3, random_state=1).fit(ROWS, LABELS)


def log():
    client = MlflowClient()
    example = pandas.DataFrame({"price": [1.5, 2.0], "quantity": [1, 2], "name": ["a", "b"]})
    answer = pandas.DataFrame({"total": [1.5, 4.0], "label": ["a!", "b!"]})
    # Nothing but what Python has to have for it: the environment is made in seconds.
    needs = [f"mlflow-skinny=={mlflow.__version__}", f"pandas=={pandas.__version__}", f"numpy=={numpy.__version__}"]
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="model",
            python_model=Orders(),
            signature=infer_signature(example, answer),
            input_example=example,
            pip_requirements=needs,
            registered_model_name="orders",
        )
        mlflow.pyfunc.log_model(
            name="impossible",
            python_model=Orders(),
            signature=infer_signature(example, answer),
            pip_requirements=["modelyard-has-no-such-package==1"],
            registered_model_name="impossible",
        )
        pickled = {"serialization_format": "cloudpickle"}
        mlflow.sklearn.log_model(forest(), name="forest", input_example=ROWS[:2], registered_model_name="forest", **pickled)
        mlflow.sklearn.log_model(forest(), name="bare", registered_model_name="bare", **pickled)
    for name in ["orders", "forest"]:
        client.set_registered_model_alias(name, "champion", "1")
    bare = client.get_model_version("bare", "1")
    check("why a model without a signature is not served", "has no signature" in bare.status_message, True)


def invoke(endpoint, body, content_type="application/json"):
    request = urllib.request.Request(
        f"{URL}/endpoints/{endpoint}/invocations", body.encode(), {"Content-Type": content_type}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def frame(rows):
    return json.dumps({"dataframe_split": {"columns": ["price", "quantity", "name"], "data": rows}})


def check_orders():
    status, answer = invoke("orders", frame([[2.5, 4, "tea"], [1.0, 3, "milk"]]))
    check("rows of several types", (status, answer), (200, {"predictions": [{"total": 10.0, "label": "tea!"}, {"total": 3.0, "label": "milk!"}]}))
    status, answer = invoke("orders", "price,quantity,name\n2.5,4,tea\n", "text/csv")
    check("the same as CSV", (status, answer["predictions"][0]["total"]), (200, 10.0))
    status, answer = invoke("orders", frame([["much", 4, "tea"]]))
    check("a text for a number is the client's fault", (status, "price" in json.dumps(answer)), (400, True))
    status, answer = invoke("orders", frame([[1.0, 1000, "tea"]]))
    check("a failure of the model is none of the client's", (status, "the server's log" in json.dumps(answer)), (500, True))
    status, answer = invoke("orders", frame([[1.0, 1, "huge"]]))
    check("more memory than a worker may have", (status, "the server's log" in json.dumps(answer)), (500, True))
    status, answer = invoke("orders", frame([[1.0, -1, "tea"]]))
    check("a worker that ends is told of", (status, "exit code 7" in json.dumps(answer)), (503, True))
    status, answer = invoke("forest", json.dumps({"inputs": ROWS[:1].tolist()}))
    check("others go on meanwhile", status, 200)
    status, answer = invoke("orders", frame([[2.5, 4, "tea"]]))
    check("and it is back", (status, answer["predictions"][0]["total"]), (200, 10.0))


def check_forest():
    expected = forest().predict(ROWS).tolist()
    metadata = tritonclient.http.InferenceServerClient(ADDRESS).get_model_metadata("forest")
    check("what it takes", [(entry["datatype"], entry["shape"]) for entry in metadata["inputs"]], [("FP64", [-1, 30])])
    check("what runs it", metadata["platform"], "mlflow_pyfunc")
    name, output = metadata["inputs"][0]["name"], metadata["outputs"][0]["name"]
    for protocol in [tritonclient.http, tritonclient.grpc]:
        client = protocol.InferenceServerClient(ADDRESS)
        given = protocol.InferInput(name, list(ROWS.shape), "FP64")
        given.set_data_from_numpy(ROWS)
        answer = client.infer("forest", [given]).as_numpy(output)
        check(f"tensors over {protocol.__name__}", answer.tolist(), expected)
    config = tritonclient.http.InferenceServerClient(ADDRESS).get_model_config("forest")
    check("its rows are merged", config["max_batch_size"] > 1, True)


if sys.argv[1] == "log":
    log()
else:
    check_forest()
    check_orders()

"""Experiments and runs through MLflow's own client. MLFLOW_TRACKING_URI names the server; a line for each check."""

import json
import math
import sys

import mlflow
from mlflow import MlflowClient
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunStatus, RunTag, ViewType
from mlflow.exceptions import MlflowException


def check(what, found, expected):
    if found != expected:
        sys.exit(f"{what}: {found!r} instead of {expected!r}")
    print(f"ok  {what}")


def refused(what, code, action, *words):
    try:
        action()
    except MlflowException as error:
        if error.error_code != code or not all(word in error.message for word in words):
            sys.exit(f"{what}: {error.error_code} {error.message!r} instead of {code} with {words}")
        print(f"ok  {what}")
        return
    sys.exit(f"{what}: it was not refused")


client = MlflowClient()

# Experiments.
number = client.create_experiment("delays", tags={"team": "ops"})
check("an experiment has a decimal id", number.isdecimal(), True)
experiment = client.get_experiment(number)
check("its name", experiment.name, "delays")
check("its tags", experiment.tags, {"team": "ops"})
check("it is active", experiment.lifecycle_stage, "active")
check("its artifacts go through the server", experiment.artifact_location.startswith("mlflow-artifacts:/"), True)
check("it is found by its name", client.get_experiment_by_name("delays").experiment_id, number)
check("a name without an experiment", client.get_experiment_by_name("none"), None)
refused("a name is taken once", "RESOURCE_ALREADY_EXISTS", lambda: client.create_experiment("delays"), "already exists")
refused("an id without an experiment", "RESOURCE_DOES_NOT_EXIST", lambda: client.get_experiment("4711"), "4711")
refused("an id that is no number", "INVALID_PARAMETER_VALUE", lambda: client.get_experiment("abc"))
client.set_experiment_tag(number, "stage", "lab")
if hasattr(client, "delete_experiment_tag"):
    client.delete_experiment_tag(number, "team")
    check("a deleted tag of an experiment", "team" in client.get_experiment(number).tags, False)
check("a tag that was set", client.get_experiment(number).tags["stage"], "lab")
client.rename_experiment(number, "late flights")
check("another name", client.get_experiment(number).name, "late flights")
check("the first experiment is Default", client.get_experiment("0").name, "Default")

# Runs.
run = client.create_run(number, start_time=1700000000000, tags={"source": "notebook"}, run_name="first")
run_id = run.info.run_id
check("a run is running", run.info.status, "RUNNING")
check("its start", run.info.start_time, 1700000000000)
check("its name", run.info.run_name, "first")
check("its artifacts", run.info.artifact_uri, f"mlflow-artifacts:/{number}/{run_id}/artifacts")
check("the name is a tag, too", run.data.tags["mlflow.runName"], "first")
check("a run without a name gets one", bool(client.create_run(number).info.run_name), True)
refused("a run in an experiment that is not there", "RESOURCE_DOES_NOT_EXIST", lambda: client.create_run("4711"))
refused("a run that is not there", "RESOURCE_DOES_NOT_EXIST", lambda: client.get_run("0" * 32), "not found")

client.log_param(run_id, "depth", 6)
client.log_param(run_id, "depth", 6)
refused("params do not change", "INVALID_PARAMETER_VALUE", lambda: client.log_param(run_id, "depth", 7), "Changing param values is not allowed")
client.log_param(run_id, "long", "x" * 7000)
client.set_tag(run_id, "note", "ü" * 5000)
client.log_metric(run_id, "loss", 0.5, timestamp=1000, step=1)
client.log_metric(run_id, "loss", 0.25, timestamp=2000, step=2)
client.log_metric(run_id, "loss", 9.0, timestamp=500, step=0)
client.log_metric(run_id, "odd", math.nan, timestamp=1, step=0)
client.log_metric(run_id, "huge", math.inf, timestamp=1, step=0)
client.log_metric(run_id, "tiny", -math.inf, timestamp=1, step=0)
run = client.get_run(run_id)
check("params", run.data.params["depth"], "6")
check("a long param is cut", len(run.data.params["long"]), 6000)
check("a long tag is cut at a character", run.data.tags["note"], "ü" * 4000)
check("the latest metric is of the last step", run.data.metrics["loss"], 0.25)
check("NaN", math.isnan(run.data.metrics["odd"]), True)
check("infinities are the largest numbers", (run.data.metrics["huge"], run.data.metrics["tiny"]), (sys.float_info.max, -sys.float_info.max))
history = client.get_metric_history(run_id, "loss")
check("the history is by time", [(point.timestamp, point.step, point.value) for point in history], [(500, 0, 9.0), (1000, 1, 0.5), (2000, 2, 0.25)])
check("the history of nothing", client.get_metric_history(run_id, "none"), [])

client.log_batch(
    run_id,
    metrics=[Metric("accuracy", 0.01 * step, 1000 + step, step) for step in range(900)],
    params=[Param(f"p{index}", str(index)) for index in range(50)],
    tags=[RunTag(f"t{index}", str(index)) for index in range(50)],
)
check("a batch", len(client.get_metric_history(run_id, "accuracy")), 900)
refused(
    "a batch with a changed param",
    "INVALID_PARAMETER_VALUE",
    lambda: client.log_batch(run_id, metrics=[Metric("lost", 1, 1, 1)], params=[Param("depth", "9")]),
    "Changing param values is not allowed",
)
check("and nothing of it is there", "lost" in client.get_run(run_id).data.metrics, False)
client.delete_tag(run_id, "t0")
check("a deleted tag", "t0" in client.get_run(run_id).data.tags, False)
refused("a tag that is not there", "RESOURCE_DOES_NOT_EXIST", lambda: client.delete_tag(run_id, "t0"), "No tag with name: t0")
client.update_run(run_id, name="renamed")
check("a renamed run", client.get_run(run_id).info.run_name, "renamed")
client.set_tag(run_id, "mlflow.runName", "by tag")
check("renamed by its tag", client.get_run(run_id).info.run_name, "by tag")
client.set_terminated(run_id, "FAILED", end_time=1700000001000)
run = client.get_run(run_id)
check("a run that ended", (run.info.status, run.info.end_time), ("FAILED", 1700000001000))
client.log_metric(run_id, "late", 1.0)
check("an ended run takes more", client.get_run(run_id).data.metrics["late"], 1.0)

client.delete_run(run_id)
check("a deleted run is there", client.get_run(run_id).info.lifecycle_stage, "deleted")
refused("and takes nothing", "INVALID_PARAMETER_VALUE", lambda: client.log_metric(run_id, "x", 1), "must be in the 'active' state")
client.restore_run(run_id)
check("a restored run", client.get_run(run_id).info.lifecycle_stage, "active")

# The fluent face.
mlflow.set_experiment("fluent")
with mlflow.start_run(run_name="parent") as parent:
    mlflow.log_params({"a": 1, "b": "two"})
    mlflow.log_metrics({"m": 1.5}, step=3)
    dataset = MetaDataset(HTTPDatasetSource("https://data.example/flights.csv"), name="flights")
    mlflow.log_input(dataset, context="training")
    with mlflow.start_run(run_name="child", nested=True) as child:
        mlflow.log_metric("m", 2.5)
found = client.get_run(parent.info.run_id)
check("a fluent run", (found.info.status, found.data.params, found.data.metrics), ("FINISHED", {"a": "1", "b": "two"}, {"m": 1.5}))
source = found.inputs.dataset_inputs[0]
check("its dataset", (source.dataset.name, source.tags[0].key, source.tags[0].value), ("flights", "mlflow.data.context", "training"))
client.log_inputs(child.info.run_id, [DatasetInput(source.dataset, [InputTag("foo", "baz"), InputTag("mlflow.data.context", "test")])])
tags = client.get_run(child.info.run_id).inputs.dataset_inputs[0].tags
check("the tags of a dataset, its context last", [(tag.key, tag.value) for tag in tags], [("foo", "baz"), ("mlflow.data.context", "test")])
check("its source", json.loads(source.dataset.source)["url"], "https://data.example/flights.csv")
check("a nested run", client.get_run(child.info.run_id).data.tags["mlflow.parentRunId"], parent.info.run_id)

client.delete_experiment(number)
check("a deleted experiment", client.get_experiment(number).lifecycle_stage, "deleted")
check("its runs are deleted with it", client.get_run(run_id).info.lifecycle_stage, "deleted")
refused("deleting it again", "RESOURCE_DOES_NOT_EXIST", lambda: client.delete_experiment(number))
refused("it takes no runs", "INVALID_PARAMETER_VALUE", lambda: client.create_run(number), "must be in the 'active' state")
refused("its name stays taken", "RESOURCE_ALREADY_EXISTS", lambda: client.create_experiment("late flights"))
client.restore_experiment(number)
check("and its runs come back", client.get_run(run_id).info.lifecycle_stage, "active")
print("all is as MLflow has it")

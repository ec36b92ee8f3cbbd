"""Logged models, and charts of metrics, through MLflow's own client; a line for each check, and a failure at the first difference.

usage: MLFLOW_TRACKING_URI=http://HOST:PORT mlflow_logged_models.py
"""

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelParameter, Metric
from mlflow.exceptions import MlflowException, RestException

URL = os.environ["MLFLOW_TRACKING_URI"]
MARK = uuid.uuid4().hex[:8]


def check(what, found, expected):
    if found != expected:
        print(f"DIFFERENT {what}: {found!r}, expected {expected!r}")
        sys.exit(1)
    print(f"ok {what}")


def refused(what, code, text, call):
    try:
        call()
    except (RestException, MlflowException) as error:
        check(f"{what}: the code", error.error_code, code)
        check(f"{what}: the message says {text}", text in str(error), True)
        return
    check(what, "accepted", "refused")


def names(models):
    return [model.name for model in models]


def ask(path, **parameters):
    """A GET as the console of MLflow sends it: the status and the answer."""
    query = urllib.parse.urlencode(parameters, doseq=True)
    try:
        with urllib.request.urlopen(f"{URL}/ajax-api/2.0/mlflow/{path}?{query}", timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def life(client, experiment):
    run = client.create_run(experiment).info.run_id
    model = client.create_logged_model(
        experiment, name="first", source_run_id=run, tags={"stage": "new"}, params={"depth": "6"}, model_type="tree"
    )
    check("a new model", (model.name, model.model_type, model.source_run_id, str(model.status)), ("first", "tree", run, "PENDING"))
    check("its params and tags", (model.params, model.tags["stage"]), ({"depth": "6"}, "new"))
    client.log_model_params(model.model_id, {"rate": "0.1"})
    client.set_logged_model_tags(model.model_id, {"stage": "old", "owner": "ann"})
    client.delete_logged_model_tag(model.model_id, "stage")
    refused("a tag that is not there", "RESOURCE_DOES_NOT_EXIST", "No tag with key", lambda: client.delete_logged_model_tag(model.model_id, "stage"))
    client.finalize_logged_model(model.model_id, "READY")
    model = client.get_logged_model(model.model_id)
    check("it is ready", (str(model.status), model.params, model.tags.get("stage"), model.tags["owner"]), ("READY", {"depth": "6", "rate": "0.1"}, None, "ann"))
    client.log_outputs(run, [LoggedModelOutput(model.model_id, 3)])
    outputs = client.get_run(run).outputs.model_outputs
    check("it is an output of its run", [(output.model_id, output.step) for output in outputs], [(model.model_id, 3)])
    client.log_metric(run, "loss", 0.5, step=1, model_id=model.model_id)
    client.log_batch(run, metrics=[Metric("loss", 0.25, 2, 2, model_id=model.model_id, run_id=run)])
    measured = client.get_logged_model(model.model_id).metrics
    check("its metrics", sorted((metric.step, metric.value) for metric in measured if metric.key == "loss")[-1], (2, 0.25))
    client.delete_logged_model(model.model_id)
    refused("a deleted model", "RESOURCE_DOES_NOT_EXIST", model.model_id, lambda: client.get_logged_model(model.model_id))
    check("and it is not found", names(client.search_logged_models([experiment])), [])


def search(client, experiment):
    run = client.create_run(experiment).info.run_id
    made = {}
    for name, kind in [("a", "tree"), ("b", "tree"), ("c", "net")]:
        made[name] = client.create_logged_model(experiment, name=name, model_type=kind, params={"kind": kind}, tags={"mark": name})

    def measure(name, value, dataset):
        client.log_metric(run, "score", value, dataset_name=dataset, dataset_digest="1", model_id=made[name].model_id)

    measure("a", 0.9, "train")
    measure("a", 0.5, "test")
    measure("b", 0.7, "test")

    def find(**more):
        return names(client.search_logged_models([experiment], **more))

    check("newest first", find(), ["c", "b", "a"])
    for text, expected in [
        ("name = 'a'", ["a"]),
        ("model_type = 'tree'", ["b", "a"]),
        ("params.kind = 'net'", ["c"]),
        ("tags.mark = 'b'", ["b"]),
        ("metrics.score > 0.6", ["b", "a"]),
        ("metrics.score > 0.6 AND params.kind = 'tree' AND name != 'b'", ["a"]),
    ]:
        check(f"found by {text}", find(filter_string=text), expected)
    test, train = {"dataset_name": "test"}, {"dataset_name": "train", "dataset_digest": "1"}
    check("measured on a dataset", find(datasets=[test]), ["b", "a"])
    check("with a digest", find(datasets=[train]), ["a"])
    check("with another digest", find(datasets=[{"dataset_name": "train", "dataset_digest": "2"}]), [])
    check("on either of two", find(datasets=[train, test]), ["b", "a"])
    check("with a filter of something else", find(datasets=[test], filter_string="name = 'a'"), ["a"])
    check("with a filter of a metric on it", find(datasets=[test], filter_string="metrics.score > 0.6"), ["b"])
    refused("a dataset without a name", "INVALID_PARAMETER_VALUE", "`dataset_name` in the `datasets` clause must be specified", lambda: find(datasets=[{"dataset_name": "", "dataset_digest": "1"}]))
    by_name = [{"field_name": "name", "ascending": True}]
    check("by name", find(order_by=by_name), ["a", "b", "c"])
    by_score = [{"field_name": "metrics.score", "ascending": True, "dataset_name": "test", "dataset_digest": "1"}]
    check("by a metric on a dataset, what lacks it last", find(order_by=by_score), ["a", "b", "c"])
    pages, token = [], None
    while True:
        page = client.search_logged_models([experiment], max_results=2, page_token=token)
        pages.append(names(page))
        token = page.token
        if not token:
            break
    check("page by page", pages, [["c", "b"], ["a"]])


def charts(client, experiment):
    run = client.create_run(experiment).info.run_id
    other = client.create_run(experiment).info.run_id

    def log(run, steps, timestamp=1):
        client.log_batch(run, metrics=[Metric("m", step * 0.5, timestamp, step) for step in steps])

    def chart(limit, *runs, **more):
        status, answer = ask("metrics/get-history-bulk-interval", run_ids=runs, metric_key="m", max_results=limit, **more)
        check(f"a chart of {limit} points", status, 200)
        return [(point["run_id"] == run, point["step"], point["timestamp"]) for point in answer.get("metrics", [])]

    log(run, range(10))
    log(other, range(20))
    check("points spread by their number", chart(5, run), [(True, step, 1) for step in [0, 2, 4, 6, 9]])
    check("between two steps", chart(5, run, start_step=2, end_step=4), [(True, step, 1) for step in [2, 3, 4]])
    check("one point: the last", chart(1, run), [(True, 9, 1)])
    of_both = [(True, step, 1) for step in [0, 2, 4, 6, 9]] + [(False, step, 1) for step in [0, 4, 8, 12, 19]]
    check("each run by itself", chart(5, run, other), of_both)
    log(run, range(10), timestamp=2)
    check("two points at each step", chart(5, run), [(True, 0, 1), (True, 2, 1), (True, 4, 1), (True, 6, 1), (True, 9, 2)])
    log(other, [1_000_000])
    check("no point is lost where all have room", len(chart(320, other)), 21)

    answer = ask("metrics/get-history-bulk", run_id=[run, other], metric_key="m", max_results=25)[1]
    found = [(point["run_id"] == run, point["timestamp"], point["step"]) for point in answer["metrics"]]
    by_time = [(True, time, step) for time in [1, 2] for step in range(10)]
    both = sorted([(True, by_time), (False, [(False, 1, step) for step in range(20)])], key=lambda pair: run if pair[0] else other)
    check("whole histories of two runs, as many points as are wanted", found, (both[0][1] + both[1][1])[:25])

    first = ask("metrics/get-history", run_id=other, metric_key="m", max_results=8)[1]
    status, rest = ask("metrics/get-history", run_id=other, metric_key="m", page_token=first["next_page_token"])
    steps = [point["step"] for point in first["metrics"] + rest["metrics"]]
    check("the rest after a page", (status, steps), (200, [*range(20), 1_000_000]))
    status, answer = ask("metrics/get-history", run_id=other, metric_key="m", page_token="invalid_token")
    check("a token that is none", (status, answer["error_code"]), (400, "INVALID_PARAMETER_VALUE"))


client = MlflowClient()
life(client, client.create_experiment(f"life {MARK}"))
search(client, client.create_experiment(f"search {MARK}"))
charts(client, client.create_experiment(f"charts {MARK}"))

"""Lineage, and what an alias meant at a time: MLflow's own client makes things, and plain requests walk what leads from one to
another.

usage: MLFLOW_TRACKING_URI=http://HOST:PORT mlflow_lineage.py
"""

import os
import sys
import tempfile
import uuid
from datetime import datetime, timedelta

import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, LoggedModelOutput

URL = os.environ["MLFLOW_TRACKING_URI"].rstrip("/")
API = f"{URL}/api/v1/projects/default"
# Each run of the script has names of its own, so that it can be repeated on one server.
MARK = uuid.uuid4().hex[:8]


def check(what, found, expected):
    if found != expected:
        print(f"DIFFERENT {what}: {found!r}, expected {expected!r}")
        sys.exit(1)
    print(f"ok {what}")


def get(path, status=200, **query):
    answer = requests.get(f"{API}/{path}", params=query, timeout=60)
    check(f"{path} {query.get('of', '')}: the status", answer.status_code, status)
    return answer.json()


def walk(of, direction, **query):
    """What is on one way from an object: the addresses, and the edges."""
    answer = get("lineage", of=of, direction=direction, **query)
    check("the node that was asked for comes first", answer["nodes"][0]["id"], answer["of"])
    return {node["id"] for node in answer["nodes"]}, {(edge["from"], edge["relation"], edge["to"]) for edge in answer["edges"]}


class Chain:
    """A dataset, a run within another, a logged model, a version, its copy, and an endpoint on that."""

    def __init__(self, client):
        self.experiment = client.create_experiment(f"lineage {MARK}")
        parent = client.create_run(self.experiment).info.run_id
        run = client.create_run(self.experiment, tags={"mlflow.parentRunId": parent}).info.run_id
        self.dataset = f"data/{MARK}"
        data = Dataset(self.dataset, "0123abcd", "code", "{}")
        client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
        logged = client.create_logged_model(self.experiment, name="net", source_run_id=run)
        client.log_outputs(run, [LoggedModelOutput(logged.model_id, step=1)])
        client.finalize_logged_model(logged.model_id, "READY")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.txt")
            with open(path, "w", encoding="utf-8") as file:
                file.write("a model")
            client.log_model_artifacts(logged.model_id, folder)
        judge = client.create_run(self.experiment).info.run_id
        client.log_inputs(judge, models=[LoggedModelInput(logged.model_id)])
        client.log_metric(judge, "auc", 0.7, model_id=logged.model_id, dataset_name=self.dataset, dataset_digest="0123abcd")
        self.name, self.other = f"first {MARK}", f"second-{MARK}"
        client.create_registered_model(self.name)
        made = client.create_model_version(self.name, f"models:/{logged.model_id}", model_id=logged.model_id)
        copy = client.copy_model_version(f"models:/{self.name}/{made.version}", self.other)
        client.set_registered_model_alias(self.other, "champion", copy.version)
        self.endpoint = f"serving-{MARK}"
        answer = requests.put(
            f"{API}/endpoints/{self.endpoint}", json={"routes": [{"model": f"{self.other}@champion"}]}, timeout=60
        )
        check("the endpoint is declared", answer.status_code in (200, 201), True)
        self.ids = {
            "experiment": f"experiment/{self.experiment}",
            "parent": f"run/{parent}",
            "run": f"run/{run}",
            "judge": f"run/{judge}",
            "data": f"dataset-input/{self.dataset}/0123abcd",
            "logged": f"logged-model/{logged.model_id}",
            "version": f"model/{self.name}/1",
            "copy": f"model/{self.other}/1",
            "endpoint": f"endpoint/{self.endpoint}",
        }

    def named(self, *names):
        return {self.ids[name] for name in names}


def lineage(chain):
    ids = chain.ids
    before = ("experiment", "parent", "run", "data", "logged", "version", "copy", "endpoint")
    found, edges = walk(ids["endpoint"], "upstream")
    check("all that an endpoint comes from", found, chain.named(*before))
    expected = {
        (ids["copy"], "serves", ids["endpoint"]),
        (ids["version"], "copied_from", ids["copy"]),
        (ids["logged"], "registered_from", ids["version"]),
        (ids["run"], "produced_by", ids["logged"]),
        (ids["data"], "trained_on", ids["run"]),
        (ids["data"], "evaluated_on", ids["logged"]),
        (ids["parent"], "nested_in", ids["run"]),
        (ids["experiment"], "part_of", ids["run"]),
    }
    check("each by its own relation", expected - edges, set())
    found, _ = walk(ids["data"], "downstream")
    check("all that came from a dataset", found, chain.named("data", "run", "judge", "logged", "version", "copy", "endpoint"))
    check("an alias is the version that it points at", walk(f"model/{chain.other}@champion", "downstream")[0],
          chain.named("copy", "endpoint"))
    prediction = f"prediction/{chain.endpoint}/{chain.other}/1"
    found, _ = walk(prediction, "upstream")
    check("all that a prediction comes from", found, chain.named(*before) | {prediction})
    names = list(ids)
    below = {name: walk(ids[name], "downstream")[0] for name in names}
    above = {name: walk(ids[name], "upstream")[0] for name in names}
    both = [(x, y) for x in names for y in names if (ids[y] in below[x]) != (ids[x] in above[y])]
    check("what is downstream of one has it upstream", both, [])
    answer = get("lineage", of=ids["endpoint"], direction="upstream", depth=1)
    check("one edge far", [node["id"] for node in answer["nodes"]], [ids["endpoint"], ids["copy"]])
    check("there is more, and it says so", (answer["truncated"], answer["truncated_by"]), (True, ["depth"]))
    check("nothing was hidden", answer["hidden"], False)
    node = answer["nodes"][1]
    check("a node", (node["kind"], node["name"], node["state"], node["distance"]), ("model_version", chain.other, "READY", -1))
    check("its link", requests.get(f"{URL}{node['href']}", timeout=60).json()["version"], 1)
    answer = get("lineage", of=ids["logged"], direction="both")
    for node in answer["nodes"]:
        if node["href"]:
            check(f"the link of {node['kind']}", requests.get(f"{URL}{node['href']}", timeout=60).status_code, 200)
    get("lineage", 404, of="run/absent")
    get("lineage", 400, of="widget/absent")
    get("lineage", 400, of=ids["run"], depth=51)


def time(text, **shift):
    moment = datetime.fromisoformat(text.replace("Z", "+00:00")) + timedelta(**shift)
    return moment.isoformat()


def aliases(client, chain):
    model = chain.other
    client.copy_model_version(f"models:/{chain.name}/1", model)
    client.set_registered_model_alias(model, "steady", 1)
    client.set_registered_model_alias(model, "steady", 2)
    client.delete_registered_model_alias(model, "steady")
    path = f"models/{model}/aliases/steady"
    third, second, first = get(f"{path}/history")["items"]
    check("all changes, also the last", [change["version"] for change in (first, second, third)], [1, 2, None])
    check("each by somebody", all(change["changed_by"] for change in (first, second, third)), True)
    at = get(f"{path}/at", time=first["at"])
    check("the first version", (at["version"], at["since"], at["until"]), (1, first["at"], second["at"]))
    check("until the next", get(f"{path}/at", time=time(second["at"], microseconds=-1))["version"], 1)
    at = get(f"{path}/at", time=second["at"])
    check("the second", (at["version"], at["changed_by"], at["ended_by"]), (2, second["changed_by"], third["changed_by"]))
    at = get(f"{path}/at", time=time(third["at"], hours=1))
    check("then nothing", (at["version"], at["until"]), (None, None))
    get(f"{path}/at", 404, time=time(first["at"], microseconds=-1))
    get(f"{path}/at", 400, time="yesterday")

    old, new = f"old-{MARK}", f"new-{MARK}"
    client.copy_model_version(f"models:/{chain.name}/1", new)
    client.set_registered_model_alias(new, "a", 1)
    client.delete_registered_model(new)
    gone = get(f"models/{new}/aliases/a/history")["items"]
    check("a deleted model keeps the history of its aliases", [change["version"] for change in gone], [None, 1])
    client.copy_model_version(f"models:/{chain.name}/1", old)
    client.set_registered_model_alias(old, "a", 1)
    set_at = get(f"models/{old}/aliases/a/history")["items"][0]["at"]
    client.rename_registered_model(old, new)
    check("the alias went along", get(f"models/{new}/aliases/a")["version"], 1)
    check("the old name tells what it meant", get(f"models/{old}/aliases/a/at", time=set_at)["version"], 1)
    ended = get(f"models/{old}/aliases/a/history")["items"]
    check("and where it ends", [change["version"] for change in ended], [None, 1])
    begun = get(f"models/{new}/aliases/a/history")["items"]
    check("the new name goes on where it was", [change["version"] for change in begun], [1, None, 1])
    check("it was nothing until then", get(f"models/{new}/aliases/a/at", time=set_at)["version"], None)
    client.delete_model_version(new, "1")
    check("a deleted version takes its aliases along", get(f"models/{new}/aliases/a/history")["items"][0]["version"], None)


def files(chain):
    for name in (chain.name, chain.other):
        query = {"name": name, "version": "1", "path": "model.txt"}
        answer = requests.get(f"{URL}/model-versions/get-artifact", params=query, timeout=60)
        check(f"a file of a version of {name}", (answer.status_code, answer.text), (200, "a model"))
        check("it is not shown but saved", answer.headers["Content-Disposition"].startswith("attachment"), True)
    for change, status in [({"path": "absent"}, 404), ({"path": "../x"}, 400), ({"version": "9"}, 404), ({"path": ""}, 400)]:
        answer = requests.get(f"{URL}/model-versions/get-artifact", params=query | change, timeout=60)
        check(f"{change}", answer.status_code, status)


def main():
    client = MlflowClient()
    chain = Chain(client)
    lineage(chain)
    aliases(client, chain)
    files(chain)
    print("the client's lineage is as expected")


if __name__ == "__main__":
    main()

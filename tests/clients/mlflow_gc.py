"""What deletion leaves behind, and how it is freed: mlflow's own client deletes, and the server's API collects.

usage: mlflow_gc.py, with the server in MLFLOW_TRACKING_URI.
"""

import hashlib
import os
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

MARK = uuid.uuid4().hex[:8]
URL = os.environ["MLFLOW_TRACKING_URI"]
API = f"{URL}/api/v1/projects/default"
# A collection of the test takes moments.
PATIENCE_SECONDS = 60


def check(what, found, expected):
    if found != expected:
        print(f"DIFFERENT {what}: {found!r}, expected {expected!r}")
        sys.exit(1)
    print(f"ok {what}")


def call(method, path, expected=200, **options):
    answer = requests.request(method, f"{API}{path}", timeout=PATIENCE_SECONDS, **options)
    if answer.status_code != expected:
        print(f"DIFFERENT {method} {path}: {answer.status_code} {answer.text}, expected {expected}")
        sys.exit(1)
    return answer.json() if answer.content else None


def ended(collection):
    until = time.monotonic() + PATIENCE_SECONDS
    while collection["state"] == "running" and time.monotonic() < until:
        collection = call("GET", f"/gc/{collection['id']}")
    check("a collection ends", (collection["state"], collection.get("error")), ("finished", None))
    return collection


def collect(**request):
    """Collects at once what is unnamed: the test's content is young."""
    return ended(call("POST", "/gc", 202, json={"blob_grace": "0s", **request}))


def objects(collection, outcome=None):
    items, cursor = [], None
    while True:
        query = {"limit": 2, **({"outcome": outcome} if outcome else {}), **({"cursor": cursor} if cursor else {})}
        page = call("GET", f"/gc/{collection['id']}/objects", params=query)
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return items


def listed(collection, kind, outcome):
    return sorted(item["id"] for item in objects(collection, outcome) if item["kind"] == kind)


def counts(collection):
    return {count["kind"]: count["count"] for count in collection["freed"]}


def digest(text):
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def filled(letter, size):
    """Content that no other run of the script has."""
    return MARK + letter * (size - len(MARK))


def has_blob(text):
    return requests.head(f"{API}/artifacts/{digest(text)}", timeout=PATIENCE_SECONDS).status_code == 200


def logged(client, experiment, files):
    run = client.create_run(experiment).info
    for name, text in files.items():
        client.log_text(run.run_id, text, name)
    client.log_param(run.run_id, "p", "1")
    for step in range(10):
        client.log_metric(run.run_id, "m", step, step=step)
    return run.run_id


def refused(what, code, text, action):
    try:
        action()
    except MlflowException as error:
        check(f"{what}: the code", error.error_code, code)
        check(f"{what}: the message", text in str(error), True)
        return
    check(what, "accepted", "refused")


def runs(client):
    experiment = client.create_experiment(f"gc {MARK}")
    own, shared, kept = f"own {MARK}", f"shared {MARK}", f"kept {MARK}"
    gone = logged(client, experiment, {"a/own.txt": own, "shared.txt": shared})
    stays = logged(client, experiment, {"again.txt": shared, "kept.txt": kept})
    old = collect()
    check("nothing that is there is freed", listed(old, "run", "freed"), [])
    client.delete_run(gone)
    check("a young deletion is left alone", listed(collect(), "run", "freed"), [])
    client.restore_run(gone)
    client.delete_run(gone)

    planned = collect(dry_run=True, older_than="0s")
    check("a dry run tells of the run", listed(planned, "run", "would-be-freed"), [gone])
    check("a dry run tells of the content", listed(planned, "blob", "would-be-freed"), [digest(own)])
    check("a dry run counts", {kind: counts(planned)[kind] for kind in ("run", "file", "metric", "blob")}, {"run": 1, "file": 2, "metric": 10, "blob": 1})
    check("a dry run frees nothing", (client.get_run(gone).info.lifecycle_stage, has_blob(own)), ("deleted", True))

    before = call("GET", "/quota")["used_bytes"]
    freed = collect(older_than="0s")
    check("the run is freed", listed(freed, "run", "freed"), [gone])
    check("the content is freed", listed(freed, "blob", "freed"), [digest(own)])
    check("as the dry run told", counts(freed), counts(planned))
    lines = "".join(f"{item['kind']} {item['id']} {item['size_bytes']}\n" for item in objects(freed) if item["outcome"] == "freed")
    check("the list is proved", freed["list_digest"], digest(lines))
    check("the dry run's list is the same", planned["list_digest"], freed["list_digest"])
    check("the account is less", before - call("GET", "/quota")["used_bytes"], len(own))
    refused("a run that is freed", "RESOURCE_DOES_NOT_EXIST", "not found", lambda: client.get_run(gone))
    refused("its restoration", "RESOURCE_DOES_NOT_EXIST", "not found", lambda: client.restore_run(gone))
    check("its content is gone", (has_blob(own), has_blob(shared), has_blob(kept)), (False, True, True))
    check("shared content stays", mlflow.artifacts.load_text(f"runs:/{stays}/again.txt"), shared)
    check("metrics of others stay", len(client.get_metric_history(stays, "m")), 10)
    client.log_text(stays, own, "own.txt")
    check("freed content can come back", mlflow.artifacts.load_text(f"runs:/{stays}/own.txt"), own)
    check("a second collection frees nothing", counts(collect(older_than="0s")), {})
    audit = requests.get(f"{URL}/api/v1/audit/events", params={"project": "default", "action": "storage.write"}, timeout=60)
    totals = [event["details"] for event in audit.json()["items"] if event["details"].get("list_digest") == freed["list_digest"]]
    check("the audit chain has totals and digest", (totals[0]["run.count"], totals[0]["blob.size_bytes"]), (1, len(own)))
    call("POST", "/gc", 400, json={"run_ids": [stays]})
    print("ok a run that is there cannot be named")
    call("POST", "/gc", 400, json={"older_than": "tomorrow"})
    print("ok an age must be one")
    return experiment


def references(client):
    experiment = client.create_experiment(f"gc references {MARK}")
    text = f"a model {MARK}"
    run_id = logged(client, experiment, {"model/model.txt": text})
    other = logged(client, experiment, {"x.txt": f"x {MARK}"})
    name = f"gc-{MARK}"
    client.create_registered_model(name)
    version = client.create_model_version(name, f"runs:/{run_id}/model", run_id)
    client.delete_experiment(experiment)
    freed = collect(experiment_ids=[experiment])
    check("the run of a version stays", listed(freed, "run", "kept"), [run_id])
    check("the other is freed", listed(freed, "run", "freed"), [other])
    check("its experiment stays", (listed(freed, "experiment", "kept"), freed["kept"]), ([experiment], 2))
    check("the version keeps its files", has_blob(text), True)
    client.delete_model_version(name, version.version)
    freed = collect(experiment_ids=[experiment])
    check("without the version it is freed", (listed(freed, "run", "freed"), listed(freed, "experiment", "freed")), ([run_id], [experiment]))
    check("and its files", has_blob(text), False)


def experiments(client):
    name = f"gc for good {MARK}"
    experiment = client.create_experiment(name)
    text = f"of a logged model {MARK}"
    run_id = logged(client, experiment, {"a.txt": f"a {MARK}"})
    model = client.create_logged_model(experiment, name="m", source_run_id=run_id)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.txt").write_text(text, encoding="utf-8")
        client.log_model_artifacts(model.model_id, folder)
    check("a logged model has files", has_blob(text), True)
    call("DELETE", f"/experiments/{experiment}", 204)
    check("an experiment is deleted", client.get_experiment(experiment).lifecycle_stage, "deleted")
    refused("its name", "RESOURCE_ALREADY_EXISTS", "already exists", lambda: client.create_experiment(name))
    freed = ended(call("DELETE", f"/experiments/{experiment}", 202, params={"permanent": "true"}))
    check("all of it is freed", [listed(freed, kind, "freed") for kind in ("experiment", "run", "logged-model")], [[experiment], [run_id], [model.model_id]])
    check("young content waits", has_blob(text), True)
    collect()
    check("until its time has come", has_blob(text), False)
    check("the name is free again", client.create_experiment(name) != experiment, True)
    call("DELETE", f"/experiments/{experiment}", 404, params={"permanent": "true"})
    print("ok what is gone cannot be removed again")


def quotas(client, experiment):
    run_id = client.create_run(experiment).info.run_id
    used = call("GET", "/quota")["used_bytes"]
    check("a quota is set", call("PUT", "/quota", json={"limit_bytes": used + 1000})["limit_bytes"], used + 1000)
    client.log_text(run_id, filled("a", 600), "small.txt")
    try:
        client.log_text(run_id, filled("b", 600), "large.txt")
        check("a file that is too much", "accepted", "refused")
    except requests.HTTPError as error:
        # Once, and not again and again: the client does not retry this status.
        said = error.response.json()
        check("a file that is too much", (error.response.status_code, said["error_code"]), (413, "RESOURCE_LIMIT_EXCEEDED"))
        check("it is said what to do", "modelyard gc" in said["message"], True)
    check("nothing of it is there", [file.path for file in client.list_artifacts(run_id)], ["small.txt"])
    check("a refusal is no storage", call("GET", "/quota")["used_bytes"], used + 600)
    client.log_text(run_id, filled("c", 300), "third.txt")
    answer = requests.put(f"{API}/artifacts", data=filled("d", 600), timeout=60)
    check("own uploads are refused, too", (answer.status_code, answer.json()["reason"]), (413, "QUOTA_EXCEEDED"))
    client.delete_run(run_id)
    check("what is deleted counts", call("GET", "/quota")["used_bytes"], used + 900)
    collect(run_ids=[run_id])
    check("until it is collected", call("GET", "/quota")["used_bytes"] <= used, True)
    check("a quota is lifted", call("PUT", "/quota", json={"limit_bytes": None})["limit_bytes"], None)


def writers(client, experiment):
    """Uploads of the same content, deletions and collections at once: what has a name has its content."""
    texts = [f"race {number} {MARK}" for number in range(3)]
    problems, names = [], []

    def write(number):
        repository = MlflowArtifactsRepository(f"mlflow-artifacts:/races/{MARK}/{number}")
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(20):
                text = texts[(number + turn) % len(texts)]
                path = Path(folder, f"{turn}.txt")
                path.write_text(text, encoding="utf-8")
                for _ in range(50):
                    try:
                        repository.log_artifact(str(path))
                        break
                    except Exception as error:
                        # The content was being removed at this very moment: the client is told to send it again.
                        if "503" not in str(error):
                            problems.append(str(error))
                            return
                if turn % 3:
                    repository.delete_artifacts(f"{turn}.txt")
                else:
                    names.append((number, turn, text))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    collections = 0
    while any(thread.is_alive() for thread in threads):
        collect()
        collections += 1
    collect()
    check("writers are not disturbed", problems, [])
    check("collections ran meanwhile", collections > 0, True)
    for number, turn, text in names:
        path = f"races/{MARK}/{number}/{turn}.txt"
        answer = requests.get(f"{URL}/api/2.0/mlflow-artifacts/artifacts/{path}", timeout=60)
        if (answer.status_code, answer.text) != (200, text):
            check(path, (answer.status_code, answer.text), (200, text))
    print(f"ok all {len(names)} files are whole")
    MlflowArtifactsRepository(f"mlflow-artifacts:/races/{MARK}").delete_artifacts()
    collect()
    check("nothing of them stays without a name", [has_blob(text) for text in texts], [False] * 3)


def installation():
    answer = requests.post(f"{URL}/api/v1/gc", json={"dry_run": True}, timeout=60)
    check("all projects are collected", answer.status_code, 202)
    for collection in answer.json()["items"]:
        if collection["project"] == "default":
            ended(collection)
    newest = call("GET", "/gc", params={"limit": 1})["items"]
    check("the newest is listed first", newest[0]["request"], {"dry_run": True})


client = MlflowClient()
home = runs(client)
references(client)
experiments(client)
quotas(client, home)
writers(client, home)
installation()
print("collection: all is well")

"""The model registry through MLflow's own client; a line for each check, and a failure at the first difference.

usage: MLFLOW_TRACKING_URI=http://HOST:PORT mlflow_registry.py [--upstream]

With --upstream the server is MLflow's own, which shows that what is expected here is what MLflow does.
"""

import os
import sys
import tempfile
import uuid

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException

# Each run of the script has names of its own, so that it can be repeated on one server.
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
        if text not in str(error):
            check(f"{what}: the message", str(error), text)
        return
    check(what, "accepted", "refused")


def numbers(versions):
    return [int(version.version) for version in versions]


def logged_run(client, experiment):
    """A run with a folder of files."""
    run = client.create_run(experiment)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.txt")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"a model of {run.info.run_id}")
        client.log_artifact(run.info.run_id, path, "model")
    client.set_terminated(run.info.run_id)
    return client.get_run(run.info.run_id)


def models(client):
    name = f"first {MARK}"
    made = client.create_registered_model(name, {"team": "a", "size": "small"}, "the first")
    check("a model is made", (made.name, made.description, made.tags), (name, "the first", {"team": "a", "size": "small"}))
    check("times are milliseconds", made.creation_timestamp == made.last_updated_timestamp and made.creation_timestamp > 10**12, True)
    refused("a name twice", "RESOURCE_ALREADY_EXISTS", f"Registered Model (name={name}) already exists.", lambda: client.create_registered_model(name))
    refused("a name with a slash", "INVALID_PARAMETER_VALUE", "Names cannot contain '/' or ':'", lambda: client.create_registered_model("a/b"))
    refused("a name with a colon", "INVALID_PARAMETER_VALUE", "Names cannot contain '/' or ':'", lambda: client.create_registered_model("a:b"))
    refused("no name", "INVALID_PARAMETER_VALUE", "Missing value for required parameter 'name'", lambda: client.create_registered_model(""))
    refused("a missing model", "RESOURCE_DOES_NOT_EXIST", f"Registered Model with name=no{MARK} not found", lambda: client.get_registered_model(f"no{MARK}"))

    check("a model is described", client.update_registered_model(name, "better").description, "better")
    client.set_registered_model_tag(name, "size", "large")
    client.set_registered_model_tag(name, "a/b.c", "path")
    client.delete_registered_model_tag(name, "team")
    client.delete_registered_model_tag(name, "never there")
    check("tags are changed", client.get_registered_model(name).tags, {"size": "large", "a/b.c": "path"})
    refused("a key of a tag", "INVALID_PARAMETER_VALUE", "for parameter 'key' supplied", lambda: client.set_registered_model_tag(name, "a//b", "x"))
    refused("a long value of a tag", "INVALID_PARAMETER_VALUE", "exceeds the maximum length of 100000", lambda: client.set_registered_model_tag(name, "k", "x" * 100001))
    refused("a tag of a missing model", "RESOURCE_DOES_NOT_EXIST", "not found", lambda: client.set_registered_model_tag(f"no{MARK}", "k", "v"))
    return name


def versions(client, name):
    experiment = client.create_experiment(f"registry {MARK}")
    run = logged_run(client, experiment)
    run_id, root = run.info.run_id, run.info.artifact_uri
    source = f"{root}/model"
    first = client.create_model_version(name, source, run_id, tags={"a": "1"}, run_link="http://run", description="one")
    check("a version of a run", (first.version, first.run_id, first.source, first.run_link), ("1", run_id, source, "http://run"))
    check("its beginning", (first.status, first.current_stage, first.description, first.tags), ("READY", "None", "one", {"a": "1"}))
    second = client.create_model_version(name, f"runs:/{run_id}/model", run_id)
    check("a version of a runs: URI", (second.version, second.source), ("2", f"runs:/{run_id}/model"))
    third = client.create_model_version(name, f"s3://bucket/{MARK}/model")
    check("a version from elsewhere", (third.version, third.run_id or None), ("3", None))
    check("where files are", client.get_model_version_download_uri(name, "1"), source)
    path = mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{name}/1")
    check("files come through the version", os.listdir(path), ["model.txt"])

    invalid = "INVALID_PARAMETER_VALUE"
    for bad in ["/etc/passwd", "file:///etc/passwd", "./a", "a"]:
        refused(f"the local source {bad}", invalid, "To use a local path as a model version source", lambda: client._get_registry_client().store.create_model_version(name, bad, run_id))
    for bad in [f"{root}/../../secret", f"{root}/..%2f..%2fsecret", "mlflow-artifacts:/%2e%2e/%252e%252e", "s3://bucket/../x"]:
        refused(f"the source {bad}", invalid, "without relative path references", lambda: client._get_registry_client().store.create_model_version(name, bad, run_id))
    other = logged_run(client, experiment).info.run_id
    for what, bad_source, bad_run in [("another run's files", source, other), ("files of no run", source, None), ("another run's URI", f"runs:/{run_id}/model", other)]:
        refused(what, invalid, "must identify the resource that contains the source", lambda: client._get_registry_client().store.create_model_version(name, bad_source, bad_run))
    refused("a version of a missing model", "RESOURCE_DOES_NOT_EXIST", f"Registered Model with name=no{MARK} not found", lambda: client.create_model_version(f"no{MARK}", "s3://bucket/model"))
    refused("a missing version", "RESOURCE_DOES_NOT_EXIST", f"Model Version (name={name}, version=99) not found", lambda: client.get_model_version(name, "99"))
    refused("a version that is no number", invalid, "must be an integer, got 'one'", lambda: client.get_model_version(name, "one"))

    check("a version is described", client.update_model_version(name, "2", "two").description, "two")
    client.set_model_version_tag(name, "2", "b", "2")
    client.set_model_version_tag(name, "2", "c", "3")
    client.delete_model_version_tag(name, "2", "c")
    check("tags of a version", client.get_model_version(name, "2").tags, {"b": "2"})

    copy = client.copy_model_version(f"models:/{name}/1", f"copy {MARK}")
    check("a copy", (copy.version, copy.source, copy.run_id), ("1", f"models:/{name}/1", run_id))
    check("where the copy's files are", client.get_model_version_download_uri(f"copy {MARK}", "1"), source)
    return run_id


def aliases(client, name):
    client.set_registered_model_alias(name, "champion", "1")
    client.set_registered_model_alias(name, "challenger", "2")
    client.set_registered_model_alias(name, "champion", "2")
    check("aliases of a model", client.get_registered_model(name).aliases, {"champion": "2", "challenger": "2"})
    check("aliases of a version", sorted(client.get_model_version(name, "2").aliases), ["challenger", "champion"])
    check("a version by its alias", client.get_model_version_by_alias(name, "champion").version, "2")
    check("the newest version", client.get_model_version_by_alias(name, "latest").version, "3")
    invalid = "INVALID_PARAMETER_VALUE"
    refused("a missing alias", invalid, "Registered model alias nobody not found.", lambda: client.get_model_version_by_alias(name, "nobody"))
    refused("an alias of a missing model", "RESOURCE_DOES_NOT_EXIST", "not found", lambda: client.get_model_version_by_alias(f"no{MARK}", "champion"))
    refused("an alias of a missing version", "RESOURCE_DOES_NOT_EXIST", f"Model Version (name={name}, version=99) not found", lambda: client.set_registered_model_alias(name, "x", "99"))
    store = client._get_registry_client().store
    refused("the alias latest", invalid, "is reserved", lambda: store.set_registered_model_alias(name, "Latest", "1"))
    refused("the alias v1", invalid, "Version alias name 'v1' is reserved.", lambda: store.set_registered_model_alias(name, "v1", "1"))
    refused("an alias with a point", invalid, "Invalid alias name: 'a.b'", lambda: store.set_registered_model_alias(name, "a.b", "1"))
    client.delete_registered_model_alias(name, "challenger")
    client.delete_registered_model_alias(name, "challenger")
    check("an alias is removed", client.get_registered_model(name).aliases, {"champion": "2"})


def stages(client, name):
    check("a stage in any case", client.transition_model_version_stage(name, "1", "production").current_stage, "Production")
    client.transition_model_version_stage(name, "2", "Production")
    client.transition_model_version_stage(name, "3", "Staging")
    check("the newest of each stage", sorted(numbers(client.get_latest_versions(name))), [2, 3])
    check("the newest of one stage", numbers(client.get_latest_versions(name, ["Production"])), [2])
    client.transition_model_version_stage(name, "3", "Production", archive_existing_versions=True)
    check("those before are archived", [client.get_model_version(name, n).current_stage for n in "123"], ["Archived", "Archived", "Production"])
    check("newest in the model", sorted(numbers(client.get_registered_model(name).latest_versions)), [2, 3])
    invalid = "INVALID_PARAMETER_VALUE"
    refused("an unknown stage", invalid, "Invalid Model Version stage: live. Value must be one of None, Staging, Production, Archived.", lambda: client.transition_model_version_stage(name, "1", "live"))
    refused("a stage of a missing version", "RESOURCE_DOES_NOT_EXIST", "not found", lambda: client.transition_model_version_stage(name, "99", "Staging"))


def searches(client, name, run_id):
    for suffix, team in [("b", "red"), ("c", "blue"), ("d", "red")]:
        client.create_registered_model(f"s{MARK}{suffix}", {"team": team})

    def found(filter_string, **arguments):
        return [model.name.removeprefix(f"s{MARK}") for model in client.search_registered_models(filter_string, **arguments)]

    check("models by LIKE", found(f"name LIKE 's{MARK}%'"), ["b", "c", "d"])
    check("models by ILIKE", found(f"name ILIKE 'S{MARK.upper()}%'"), ["b", "c", "d"])
    check("models by name", found(f"name = 's{MARK}c'"), ["c"])
    check("models by IN", found(f"name IN ('s{MARK}b', 's{MARK}d')"), ["b", "d"])
    check("models by tag", found(f"name LIKE 's{MARK}%' AND tags.team = 'red'"), ["b", "d"])
    check("models by another tag", found(f"name LIKE 's{MARK}%' AND tag.team != 'red'"), ["c"])
    check("models down by name", found(f"name LIKE 's{MARK}%'", order_by=["name DESC"]), ["d", "c", "b"])
    client.update_registered_model(f"s{MARK}b", "touched")
    check("models by time", found(f"name LIKE 's{MARK}%'", order_by=["last_updated_timestamp DESC"]), ["b", "d", "c"])
    page = client.search_registered_models(f"name LIKE 's{MARK}%'", max_results=2)
    rest = client.search_registered_models(f"name LIKE 's{MARK}%'", max_results=2, page_token=page.token)
    check("models in pages", (len(page), len(rest), bool(rest.token)), (2, 1, False))
    if "--upstream" not in sys.argv:
        check("more than MLflow has: OR", found(f"name = 's{MARK}b' OR name = 's{MARK}c'"), ["b", "c"])

    check("versions by name", numbers(client.search_model_versions(f"name = '{name}'", order_by=["version_number ASC"])), [1, 2, 3])
    check("versions by run", sorted(numbers(client.search_model_versions(f"run_id = '{run_id}' AND name = '{name}'"))), [1, 2])
    check("versions by runs", sorted(numbers(client.search_model_versions(f"run_id IN ('{run_id}', 'x') AND name = '{name}'"))), [1, 2])
    check("versions by source", numbers(client.search_model_versions(f"source_path LIKE 's3://bucket/{MARK}%'")), [3])
    check("versions by number", numbers(client.search_model_versions(f"name = '{name}' AND version_number > 1", order_by=["version_number DESC"])), [3, 2])
    check("versions by tag", numbers(client.search_model_versions(f"name = '{name}' AND tags.b = '2'")), [2])
    page = client.search_model_versions(f"name = '{name}'", max_results=2, order_by=["version_number ASC"])
    rest = client.search_model_versions(f"name = '{name}'", max_results=2, order_by=["version_number ASC"], page_token=page.token)
    check("versions in pages", (numbers(page), numbers(rest)), ([1, 2], [3]))

    invalid = "INVALID_PARAMETER_VALUE"
    for bad in ["nothing = 'x'", "name ! 'x'", "name = x", "params.x = '1'", "name ="]:
        refused(f"the filter {bad}", invalid, "", lambda: client.search_registered_models(bad))
    refused("an order", invalid, "Invalid order by key", lambda: client.search_registered_models(order_by=["creator ASC"]))
    refused("too large a page", invalid, "1001", lambda: client._get_registry_client().store.search_registered_models(max_results=1001))


def prompts(client):
    name = f"prompt_{MARK}"
    client.register_prompt(name, "Say {{word}}.", commit_message="first")
    client.register_prompt(name, "Say {{word}} twice.")
    check("a prompt is loaded", client.load_prompt(f"prompts:/{name}/1").template, "Say {{word}}.")
    check("prompts are hidden", client.search_registered_models(f"name = '{name}'"), [])
    check("their versions, too", client.search_model_versions(f"name = '{name}'"), [])
    if hasattr(client, "search_prompts"):
        check("prompts are found", [prompt.name for prompt in client.search_prompts(f"name = '{name}'")], [name])
    client.set_prompt_alias(name, "live", 2)
    check("a prompt by its alias", int(client.load_prompt(f"prompts:/{name}@live").version), 2)
    refused("a model with a prompt's name", "RESOURCE_ALREADY_EXISTS", "already taken by a prompt", lambda: client._get_registry_client().store.create_registered_model(name))
    tags = [mlflow.entities.model_registry.ModelVersionTag("mlflow.prompt.is_prompt", "true")]
    refused("a prompt with files", "INVALID_PARAMETER_VALUE", "Invalid prompt source", lambda: client._get_registry_client().store.create_model_version(name, "s3://bucket/x", tags=tags))


def ends(client, name):
    new_name = f"renamed {MARK}"
    refused("a new name with a slash", "INVALID_PARAMETER_VALUE", "Names cannot contain '/' or ':'", lambda: client.rename_registered_model(name, "a/b"))
    refused("a new name that is taken", "RESOURCE_ALREADY_EXISTS", "already exists", lambda: client.rename_registered_model(name, f"s{MARK}b"))
    client.rename_registered_model(name, new_name)
    refused("its old name", "RESOURCE_DOES_NOT_EXIST", "not found", lambda: client.get_registered_model(name))
    renamed = client.get_registered_model(new_name)
    check("its new name", renamed.name, new_name)
    check("tags and aliases went along", (renamed.tags, renamed.aliases), ({"size": "large", "a/b.c": "path"}, {"champion": "2"}))
    check("versions went along", client.get_model_version(new_name, "2").tags, {"b": "2"})
    check("the old name is free", client.create_registered_model(name).name, name)

    client.delete_model_version(new_name, "2")
    refused("a deleted version", "RESOURCE_DOES_NOT_EXIST", f"Model Version (name={new_name}, version=2) not found", lambda: client.get_model_version(new_name, "2"))
    check("its alias is gone", client.get_registered_model(new_name).aliases, {})
    client.delete_model_version(new_name, "3")
    check("a number is given once", client.create_model_version(new_name, "s3://bucket/x").version, "4")
    client.delete_registered_model(new_name)
    refused("a deleted model", "RESOURCE_DOES_NOT_EXIST", "not found", lambda: client.get_registered_model(new_name))
    refused("a model deleted twice", "RESOURCE_DOES_NOT_EXIST", "not found", lambda: client.delete_registered_model(new_name))
    check("nothing is found of it", client.search_model_versions(f"name = '{new_name}'"), [])


def main():
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    client = MlflowClient()
    name = models(client)
    run_id = versions(client, name)
    aliases(client, name)
    stages(client, name)
    searches(client, name, run_id)
    prompts(client)
    ends(client, name)
    print("done")


if __name__ == "__main__":
    main()

"""Scorers through MLflow's own client; a line for each check, and a failure at the first difference.

usage: MLFLOW_TRACKING_URI=http://HOST:PORT mlflow_scorers.py
"""

import json
import sys
import uuid

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking._tracking_service.utils import _get_store

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


def judge(model):
    return json.dumps({"name": "j", "instructions_judge_pydantic_data": {"instructions": "{{ outputs }}", "model": model}})


def versions(client, experiment, other):
    first = client.register_scorer(experiment, "exact", judge("openai:/a"))
    check("first version", (first.scorer_version, first.scorer_name, first.experiment_id), (1, "exact", experiment))
    second = client.register_scorer(experiment, "exact", judge("openai:/b"))
    check("second version", (second.scorer_version, second.scorer_id), (2, first.scorer_id))
    client.register_scorer(experiment, "brief", judge("openai:/a"))
    client.register_scorer(other, "exact", judge("openai:/c"))
    listed = [(one.scorer_name, one.scorer_version) for one in client.list_scorers(experiment)]
    check("newest versions", listed, [("brief", 1), ("exact", 2)])
    listed = [one.scorer_version for one in client.list_scorer_versions(experiment, "exact")]
    check("versions", listed, [1, 2])
    check("newest", client.get_scorer(experiment, "exact")._serialized_scorer, judge("openai:/b"))
    check("named", client.get_scorer(experiment, "exact", 1)._serialized_scorer, judge("openai:/a"))
    check("time", client.get_scorer(experiment, "exact", 1).creation_time, first.creation_time)


def refusals(client, experiment):
    absent, invalid = "RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"
    text = f"Scorer with name 'none' not found for experiment {experiment}."
    refused("absent scorer", absent, text, lambda: client.get_scorer(experiment, "none"))
    refused("absent scorer and version", absent, text, lambda: client.get_scorer(experiment, "none", 3))
    refused("versions of none", absent, text, lambda: client.list_scorer_versions(experiment, "none"))
    refused("delete none", absent, text, lambda: client.delete_scorer(experiment, "none"))
    text = f"Scorer with name 'exact' and version 9 not found for experiment {experiment}."
    refused("absent version", absent, text, lambda: client.get_scorer(experiment, "exact", 9))
    refused("delete absent version", absent, text, lambda: client.delete_scorer(experiment, "exact", 9))
    refused("absent experiment", absent, "", lambda: client.list_scorers("987654321"))
    text = "serialized_scorer must be valid JSON"
    refused("no JSON", invalid, text, lambda: client.register_scorer(experiment, "bad", "{"))
    text = "Custom scorer registration"
    refused("code", invalid, text, lambda: client.register_scorer(experiment, "bad", '{"call_source": "x"}'))
    text = "Scorer name cannot be empty"
    refused("blank name", invalid, text, lambda: client.register_scorer(experiment, " ", "{}"))


def online(client, experiment):
    invalid = "INVALID_PARAMETER_VALUE"
    made = client.register_scorer(experiment, "online", judge("gateway:/chat"))
    check("no configuration", client.get_online_scoring_configs([made.scorer_id]), [])
    client.upsert_online_scoring_config(experiment, "online", 0.25, "status = 'OK'")
    second = client.upsert_online_scoring_config(experiment, "online", 0.5)
    check("configuration", (second.sample_rate, second.filter_string, second.scorer_id), (0.5, None, made.scorer_id))
    check("configurations", client.get_online_scoring_configs([made.scorer_id, "none"]), [second])
    text = "does not use a gateway model"
    refused("no gateway", invalid, text, lambda: client.upsert_online_scoring_config(experiment, "exact", 0.5))
    client.upsert_online_scoring_config(experiment, "exact", 0.0)
    text = "sample_rate must be between 0.0 and 1.0"
    refused("rate", invalid, text, lambda: client.upsert_online_scoring_config(experiment, "online", 1.5))
    refused("filter", invalid, "", lambda: client.upsert_online_scoring_config(experiment, "online", 0.5, "name ="))


def deletions(client, experiment):
    client.delete_scorer(experiment, "exact", 2)
    check("newest left", client.get_scorer(experiment, "exact").scorer_version, 1)
    check("number after the highest", client.register_scorer(experiment, "exact", "{}").scorer_version, 2)
    client.delete_scorer(experiment, "brief", 1)
    text = f"Scorer with name 'brief' not found for experiment {experiment}."
    refused("no version left", "RESOURCE_DOES_NOT_EXIST", text, lambda: client.list_scorer_versions(experiment, "brief"))
    client.delete_scorer(experiment, "exact")
    listed = [one.scorer_name for one in client.list_scorers(experiment)]
    check("scorers left", listed, ["online"])


def fluent(experiment):
    """The interface for people, which the smallest client lacks."""
    try:
        from mlflow.genai.judges import make_judge
        from mlflow.genai.scorers import delete_scorer, get_scorer, list_scorers
    except ImportError:
        return
    made = make_judge(name="polite", instructions="Is {{ outputs }} polite?", model="openai:/gpt", feedback_value_type=str)
    made.register(experiment_id=experiment)
    check("fluent get", get_scorer(name="polite", experiment_id=experiment).name, "polite")
    check("fluent list", "polite" in [one.name for one in list_scorers(experiment_id=experiment)], True)
    delete_scorer(name="polite", experiment_id=experiment, version="all")
    check("fluent delete", "polite" in [one.name for one in list_scorers(experiment_id=experiment)], False)


def main():
    client = _get_store()
    experiment = mlflow.create_experiment(f"scorers-{MARK}")
    other = mlflow.create_experiment(f"other-scorers-{MARK}")
    versions(client, experiment, other)
    refusals(client, experiment)
    online(client, experiment)
    deletions(client, experiment)
    fluent(mlflow.create_experiment(f"fluent-scorers-{MARK}"))
    MlflowClient().delete_experiment(other)
    text = f"The experiment {other} must be in the 'active' state."
    refused("deleted experiment", "INVALID_PARAMETER_VALUE", text, lambda: client.list_scorers(other))
    print("scorers: all as expected")


main()

"""Evaluation datasets through MLflow's own client; a line for each check, and a failure at the first difference.

usage: MLFLOW_TRACKING_URI=http://HOST:PORT mlflow_evaluation.py [--upstream]

With --upstream the server is MLflow's own, which shows that what is expected here is what MLflow does.
"""

import hashlib
import json
import math
import os
import sys
import uuid

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking._tracking_service.utils import _get_store
from mlflow.utils.rest_utils import http_request

UPSTREAM = "--upstream" in sys.argv
# Each run of the script has names of its own, so that it can be repeated on one server.
MARK = uuid.uuid4().hex[:8]
USER = "mlflow.user"


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


def call(method, path, body=None, prefix="/api/3.0/mlflow"):
    """A request that the client does not make so, and its answer."""
    response = http_request(_get_store().get_host_creds(), f"{prefix}/{path}", method, json=body, max_retries=0)
    return response.status_code, response.json()


def names(datasets):
    return [dataset.name for dataset in datasets]


def upsert(dataset, records):
    done = _get_store().upsert_dataset_records(dataset.dataset_id, records)
    return done["inserted"], done["updated"]


def load(dataset, **page):
    return _get_store()._load_dataset_records(dataset.dataset_id, **page)


def datasets(client, experiments):
    name = f"questions {MARK}"
    made = client.create_dataset(name, experiments[:1], {"team": "a", USER: "ann"})
    check("an id", (made.dataset_id[:2], len(made.dataset_id)), ("d-", 34))
    check("it is made", (made.name, made.tags, made.experiment_ids), (name, {"team": "a", USER: "ann"}, experiments[:1]))
    check("who made it", (made.created_by, made.last_updated_by), ("ann", "ann"))
    check("times are milliseconds", made.created_time == made.last_update_time and made.created_time > 10**12, True)
    check("its digest", made.digest, hashlib.sha256(f"{name}:{made.last_update_time}".encode()).hexdigest()[:8])
    check("nothing is known of records", (made.schema, made.profile), (None, None))

    found = client.get_dataset(made.dataset_id)
    check("it is found", found.to_proto().SerializeToString(), _without_experiments(made))
    check("its experiments come later", found.experiment_ids, experiments[:1])
    refused("an unknown one", "RESOURCE_DOES_NOT_EXIST", "Evaluation dataset with id 'd-absent' not found", lambda: client.get_dataset("d-absent"))
    refused("one without a name", "INVALID_PARAMETER_VALUE", "Missing value for required parameter 'name'", lambda: client.create_dataset(""))
    # The client itself tells who its user is.
    plain = _get_store().create_dataset(f"plain {MARK}")
    check("tags and experiments may be missing", (plain.tags, plain.experiment_ids), ({}, []))
    check("a name need not be the only one", client.create_dataset(name).dataset_id != made.dataset_id, True)
    if not UPSTREAM:
        refused("an experiment that is not there", "RESOURCE_DOES_NOT_EXIST", "No Experiment with id=987654321", lambda: client.create_dataset("x", ["987654321"]))

    client.set_dataset_tags(made.dataset_id, {"team": "b", "size": 5, "none": None})
    check("tags are merged", client.get_dataset(made.dataset_id).tags, {"team": "b", USER: "ann", "size": "5"})
    refused("tags of an unknown one", "RESOURCE_DOES_NOT_EXIST", "Could not find evaluation dataset with ID d-absent", lambda: client.set_dataset_tags("d-absent", {"a": "b"}))
    client.delete_dataset_tag(made.dataset_id, "size")
    client.delete_dataset_tag(made.dataset_id, "size")
    client.delete_dataset_tag("d-absent", "size")
    check("a tag is removed", client.get_dataset(made.dataset_id).tags, {"team": "b", USER: "ann"})

    changed = client.add_dataset_to_experiments(made.dataset_id, experiments)
    check("the answer has tags", (changed.dataset_id, changed.tags), (made.dataset_id, {"team": "b", USER: "ann"}))
    check("it belongs to more experiments", sorted(_get_store().get_dataset_experiment_ids(made.dataset_id)), sorted(experiments))
    check("that is a change", changed.last_update_time > made.last_update_time and changed.digest == made.digest, True)
    refused("more experiments that are not there", "RESOURCE_DOES_NOT_EXIST", "No Experiment with id=987654321", lambda: client.add_dataset_to_experiments(made.dataset_id, ["987654321"]))
    client.remove_dataset_from_experiments(made.dataset_id, [experiments[0], experiments[2], "987654321"])
    check("it belongs to fewer experiments", _get_store().get_dataset_experiment_ids(made.dataset_id), [experiments[1]])
    refused("an unknown one is added", "RESOURCE_DOES_NOT_EXIST", "Dataset 'd-absent' not found", lambda: client.add_dataset_to_experiments("d-absent", experiments))
    check("an unknown one has no experiments", _get_store().get_dataset_experiment_ids("d-absent"), [])

    client.delete_dataset(plain.dataset_id)
    client.delete_dataset(plain.dataset_id)
    refused("a deleted one", "RESOURCE_DOES_NOT_EXIST", "not found", lambda: client.get_dataset(plain.dataset_id))


def _without_experiments(dataset):
    proto = dataset.to_proto()
    del proto.experiment_ids[:]
    return proto.SerializeToString()


def records(client, experiments):
    dataset = _get_store().create_dataset(f"records {MARK}", experiment_ids=experiments[:1])
    first = [
        {"inputs": {"question": "what?", "options": {"k": 3, "p": 0.5}}, "expectations": {"answer": "this", "sure": True}, "tags": {"t": "1", USER: "ann"}, "source": {"source_type": "HUMAN", "source_data": {"who": "ann"}}},
        {"inputs": {"question": "why?"}, "outputs": {"text": "so", "tokens": [1, 2]}},
        {"inputs": {"question": "when?"}, "outputs": "now", "source": {"source_type": "trace", "source_data": {"trace_id": "tr-1"}}},
    ]
    check("records come into being", upsert(dataset, first), (3, 0))
    after = client.get_dataset(dataset.dataset_id)
    check("the profile", json.loads(after.profile), {"num_records": 3})
    schema = json.loads(after.schema)
    check("the schema of inputs", schema["inputs"], {"question": "string", "options": "object"})
    check("the schema of outputs", schema["outputs"], {"text": "string", "tokens": "array"})
    check("the schema of expectations", (schema["expectations"], schema["version"]), ({"answer": "string", "sure": "boolean"}, "1.0"))
    check("the digest follows", after.digest, hashlib.sha256(f"{after.name}:{after.last_update_time}".encode()).hexdigest()[:8])
    check("who changed it", (after.created_by, after.last_updated_by), (None, "ann"))

    found, token = load(dataset, max_results=None)
    check("all are read", (len(found), token), (3, None))
    by_question = {record.inputs["question"]: record for record in found}
    what = by_question["what?"]
    check("inputs are as they were", what.inputs, first[0]["inputs"])
    check("an id of a record", (what.dataset_record_id[:3], len(what.dataset_record_id), what.dataset_id), ("dr-", 35, dataset.dataset_id))
    check("outputs that are missing", what.outputs, {})
    check("expectations and tags", (what.expectations, what.tags), (first[0]["expectations"], first[0]["tags"]))
    check("the source", (what.source.to_dict(), what.source_type, what.source_id), ({"source_type": "HUMAN", "source_data": {"who": "ann"}}, "HUMAN", None))
    check("who made a record", (what.created_by, what.last_updated_by), ("ann", "ann"))
    when = by_question["when?"]
    check("outputs that are a text", (when.outputs, when.expectations, when.tags, when.created_by), ("now", None, {}, None))
    check("a trace as a source", (when.source_type, when.source_id), ("TRACE", "tr-1"))
    check("no source", (by_question["why?"].source, by_question["why?"].source_type), (None, None))

    again = [
        {"inputs": {"options": {"p": 0.5, "k": 3}, "question": "what?"}, "outputs": [1], "expectations": {"answer": "that", "more": None}, "tags": {"u": "2", USER: "bob"}},
        {"inputs": {"question": "why?"}, "outputs": None, "expectations": {"x": 1.5}},
        {"inputs": {"question": "who?"}},
        {"inputs": {"question": "who?"}, "expectations": {"a": 1}},
    ]
    check("records come again", upsert(dataset, again), (1, 3))
    found, _ = load(dataset, max_results=None)
    by_question = {record.inputs["question"]: record for record in found}
    check("none came twice", len(found), 4)
    merged = by_question["what?"]
    check("it is the same record", (merged.dataset_record_id, merged.created_time), (what.dataset_record_id, what.created_time))
    check("expectations are merged", merged.expectations, {"answer": "that", "sure": True, "more": None})
    check("tags are merged, too", merged.tags, {"t": "1", "u": "2", USER: "bob"})
    check("outputs are replaced", (merged.outputs, by_question["why?"].outputs), ([1], None))
    check("who changed a record", (merged.created_by, merged.last_updated_by), ("ann", "bob"))
    check("the source stays", merged.source_type, "HUMAN")
    check("twice at once is one record", by_question["who?"].expectations, {"a": 1})
    schema = json.loads(client.get_dataset(dataset.dataset_id).schema)
    check("the schema learns", schema["expectations"], {"answer": "string", "sure": "boolean", "more": "null", "x": "float", "a": "integer"})

    pages, token = [], None
    while True:
        page, token = load(dataset, max_results=3, page_token=token)
        pages.append([record.dataset_record_id for record in page])
        if not token:
            break
    check("pages", [len(page) for page in pages], [3, 1])
    check("each is on one page", sorted(sum(pages, [])), sorted(record.dataset_record_id for record in found))
    if not UPSTREAM:
        check("in the order in which they came", [record.inputs["question"] for record in found], ["what?", "why?", "when?", "who?"])
        refused("a token that is none", "INVALID_PARAMETER_VALUE", "Invalid page token", lambda: load(dataset, max_results=1, page_token="x"))

    ids = [by_question["why?"].dataset_record_id, by_question["who?"].dataset_record_id, "dr-absent"]
    check("records are deleted", client._tracking_client.store.delete_dataset_records(dataset.dataset_id, ids), 2)
    check("once", client._tracking_client.store.delete_dataset_records(dataset.dataset_id, ids), 0)
    check("the profile follows", json.loads(client.get_dataset(dataset.dataset_id).profile), {"num_records": 2})
    rest = [record.dataset_record_id for record in load(dataset, max_results=None)[0]]
    client._tracking_client.store.delete_dataset_records(dataset.dataset_id, rest)
    check("the profile of none", client.get_dataset(dataset.dataset_id).profile, "null")
    check("none is left", load(dataset, max_results=None), ([], None))
    check("a record that was deleted comes anew", upsert(dataset, [{"inputs": {"question": "why?"}}]), (1, 0))

    # Python's JSON has numbers that JSON has not.
    check("a record with NaN", upsert(dataset, [{"inputs": {"n": 1}, "outputs": math.nan, "expectations": {"x": -math.inf}}]), (1, 0))
    odd = [record for record in load(dataset, max_results=None)[0] if "n" in record.inputs][0]
    check("comes back", (math.isnan(odd.outputs), odd.expectations), (True, {"x": -math.inf}))
    check("1 and 1.0 and '1' differ", upsert(dataset, [{"inputs": {"n": 1.0}}, {"inputs": {"n": "1"}}, {"inputs": {"n": 1}}]), (2, 1))
    refused("an unknown kind of source", "INVALID_PARAMETER_VALUE", "Invalid dataset record source type: X. Valid source types: ['UNSPECIFIED', 'TRACE', 'HUMAN', 'DOCUMENT', 'CODE']", lambda: upsert(dataset, [{"inputs": {"n": 2}, "source": {"source_type": "x"}}]))
    check("nothing of what was refused is there", len(load(dataset, max_results=None)[0]), 4)
    if not UPSTREAM:
        absent = client.create_dataset(f"gone {MARK}")
        client.delete_dataset(absent.dataset_id)
        for what, call_it in [
            ("records to an unknown one", lambda: upsert(absent, [{"inputs": {}}])),
            ("records of an unknown one", lambda: load(absent, max_results=1)),
            ("records deleted from an unknown one", lambda: _get_store().delete_dataset_records(absent.dataset_id, ["dr-1"])),
        ]:
            refused(what, "RESOURCE_DOES_NOT_EXIST", f"Dataset '{absent.dataset_id}' not found", call_it)
        for what, text in [("no list", "{}"), ("no object", "[1]"), ("inputs that are a list", '[{"inputs": []}]'), ("no JSON", "[")]:
            status, answer = call("POST", f"datasets/{dataset.dataset_id}/records", {"records": text})
            check(what, (status, answer["error_code"]), (400, "INVALID_PARAMETER_VALUE"))
    check("records are required", call("POST", f"datasets/{dataset.dataset_id}/records", {})[1]["error_code"], "INVALID_PARAMETER_VALUE")

    many = client.create_dataset(f"many {MARK}")
    check("many records", upsert(many, [{"inputs": {"n": number}} for number in range(2500)]), (2500, 0))
    check("are read in pages", sorted(record.inputs["n"] for record in load(many, max_results=None)[0]), list(range(2500)))
    client.delete_dataset(many.dataset_id)


def searches(client, experiments):
    made = {}
    for name, experiment, tags in [
        ("Alpha", experiments[0], {"stage": "test", USER: "ann"}),
        ("beta", experiments[1], {"stage": "prod", USER: "bob"}),
        ("gamma's", experiments[1], {"stage": "Prod", "only": "x"}),
    ]:
        made[name] = _get_store().create_dataset(f"{name} {MARK}", tags, [experiment])

    def find(filter_string="", **more):
        filter_string = f"name LIKE '%{MARK}'" + (f" AND {filter_string}" if filter_string else "")
        found = client.search_datasets(filter_string=filter_string, **more)
        return [dataset.name.removesuffix(f" {MARK}") for dataset in found if dataset.dataset_id in ids]

    ids = {dataset.dataset_id for dataset in made.values()}
    check("the newest come first", find(), ["gamma's", "beta", "Alpha"])
    for text, expected in [
        (f"name = 'beta {MARK}'", ["beta"]),
        (f'name = "gamma\'s {MARK}"', ["gamma's"]),
        (f"name != 'beta {MARK}'", ["gamma's", "Alpha"]),
        (f"name IN ('beta {MARK}', 'Alpha {MARK}')", ["beta", "Alpha"]),
        ("name LIKE 'a%'", []),
        ("name ILIKE 'a%'", ["Alpha"]),
        ("created_by = 'ann'", ["Alpha"]),
        ("created_by != 'ann'", ["beta"]),
        ("last_updated_by LIKE 'b%'", ["beta"]),
        ("tags.stage = 'prod'", ["beta"]),
        ("tags.stage ILIKE 'PROD'", ["gamma's", "beta"]),
        ("tags.stage != 'prod'", ["gamma's", "Alpha"]),
        ("tags.only = 'x' AND tags.stage = 'Prod'", ["gamma's"]),
        (f"created_time >= {made['beta'].created_time} AND created_time < {made['beta'].created_time + 1}", ["beta"]),
        (f"last_update_time <= {made['beta'].created_time}", ["beta", "Alpha"]),
    ]:
        check(f"found by {text}", find(text), expected)
    if not UPSTREAM:
        check("found by OR", find("(tags.only = 'x' OR created_by = 'ann')"), ["gamma's", "Alpha"])
        check("found by a tag that is missing", find("tags.only IS NULL"), ["beta", "Alpha"])
    check("by experiment", find(experiment_ids=[experiments[1]]), ["gamma's", "beta"])
    check("by experiments", find(experiment_ids=experiments[:2]), ["gamma's", "beta", "Alpha"])
    check("by an unknown experiment", find(experiment_ids=["987654321"]), [])
    check("ordered by name", find(order_by=["name DESC"]), ["gamma's", "beta", "Alpha"])
    check("ordered by time", find(order_by=["created_time ASC"]), ["Alpha", "beta", "gamma's"])
    client.add_dataset_to_experiments(made["Alpha"].dataset_id, [experiments[2]])
    check("ordered by change", find(order_by=["last_update_time DESC"])[0], "Alpha")

    pages, token = [], None
    while True:
        page = client.search_datasets(experiment_ids=experiments[:2], filter_string=f"name LIKE '%{MARK}'", max_results=2, order_by=["name ASC"], page_token=token)
        pages.append(names(page))
        token = page.token
        if not token:
            break
    check("pages", sum(pages, []) == sorted(sum(pages, [])) and len(pages) > 1 and all(len(page) <= 2 for page in pages), True)
    for what, text, more in [
        ("an unknown key", "Invalid attribute key 'colour' specified", {"filter_string": "colour = 'x'"}),
        ("an unknown entity", "Invalid identifier token 'params' specified", {"filter_string": "params.x = 'y'"}),
        ("an operator for texts", "Invalid comparator for tag: >", {"filter_string": "tags.x > 'y'"}),
        ("an order by a tag", "Invalid order_by entity: tag", {"order_by": ["tags.stage"]}),
        ("an order by an unknown key", "Invalid attribute key 'created_by' specified", {"order_by": ["created_by"]}),
        ("a negative page", "Invalid value -1 for parameter 'max_results' supplied. It must be a positive integer", {"max_results": -1}),
        ("a large page", "Invalid value 50001 for parameter 'max_results' supplied. It must be at most 50000", {"max_results": 50001}),
        ("a time that is a text", "Expected numeric value type for numeric attribute: created_time. Found '5'", {"filter_string": "created_time > '5'"}),
        ("a fraction of a time", "Invalid value for numeric attribute 'created_time': '1.5'", {"filter_string": "created_time > 1.5"}),
    ]:
        refused(what, "INVALID_PARAMETER_VALUE", text, lambda more=more: client.search_datasets(**more))
    status, answer = call("GET", "datasets/search")
    check("a search by GET", (status, len(answer["datasets"]) >= 3), (200, True))


def read_by_runs(client, experiments):
    """What runs read is asked for by MLflow's pages."""
    ask = lambda body: call("POST", "experiments/search-datasets", body, prefix="/ajax-api/2.0/mlflow")
    check("runs read nothing yet", ask({"experiment_ids": experiments}), (200, {}))
    for experiment, name, context in [(0, "a", "training"), (0, "a", "training"), (1, "b", None)]:
        tags = [InputTag("mlflow.data.context", context)] if context else []
        run = client.create_run(experiments[experiment])
        client.log_inputs(run.info.run_id, [DatasetInput(Dataset(name, "0123", "code", "{}"), tags)])
    status, answer = ask({"experiment_ids": experiments})
    read = sorted(answer["dataset_summaries"], key=lambda summary: summary["name"])
    check("each dataset once", (status, read), (200, [
        {"experiment_id": experiments[0], "name": "a", "digest": "0123", "context": "training"},
        {"experiment_id": experiments[1], "name": "b", "digest": "0123"},
    ]))
    for what, ids in [("of no experiment", []), ("of too many experiments", ["1"] * 21)]:
        status, answer = ask({"experiment_ids": ids})
        check(what, (status, answer["error_code"]), (400, "INVALID_PARAMETER_VALUE"))


def fluent(experiments):
    """What people write: needs pandas, which MLflow's small client lacks."""
    try:
        import pandas
    except ImportError:
        print("ok without pandas the fluent interface is not tried")
        return
    from mlflow.genai import datasets as genai

    mlflow.set_experiment(experiment_id=experiments[0])
    name = f"fluent {MARK}"
    made = genai.create_dataset(name, tags={"a": "b"})
    check("in the active experiment", made.experiment_ids, [experiments[0]])
    check("by name", genai.get_dataset(name=name).dataset_id, made.dataset_id)
    made.merge_records([{"inputs": {"q": "x"}, "expectations": {"a": 1}}, {"inputs": {"q": "y"}}])
    frame = made.to_df()
    check("as a table", sorted(zip([inputs["q"] for inputs in frame["inputs"]], frame["source_type"])), [("x", "HUMAN"), ("y", "CODE")])
    made.merge_records(pandas.DataFrame([{"inputs": {"q": "x"}, "expectations": {"b": 2}}, {"inputs": {"q": "z"}, "expectations": {"b": 3}}]))
    check("merged from a table", sorted(map(str, made.to_df()["expectations"])), sorted(["{'a': 1, 'b': 2}", "None", "{'b': 3}"]))

    @mlflow.trace
    def answer(question):
        return f"{question}!"

    answer("why")
    mlflow.flush_trace_async_logging()
    trace = mlflow.get_trace(mlflow.get_last_active_trace_id())
    made.merge_records([trace])
    from_trace = made.to_df().query("source_type == 'TRACE'").to_dict("records")
    check("merged from a trace", [(record["inputs"], record["outputs"]) for record in from_trace], [({"question": "why"}, "why!")])
    check("the trace is its source", from_trace[0]["source_id"], trace.info.trace_id)
    refused("another granularity", "INVALID_PARAMETER_VALUE", "", lambda: made.merge_records([{"inputs": {"goal": "g", "persona": "p"}}]))
    check("deleted records", made.delete_records([from_trace[0]["dataset_record_id"]]), 1)
    check("are gone", len(made.to_df()), 3)

    check("found of late", made.dataset_id in [dataset.dataset_id for dataset in genai.search_datasets()], True)
    genai.set_dataset_tags(made.dataset_id, {"c": "d"})
    genai.delete_dataset_tag(made.dataset_id, "a")
    check("tags", {key: value for key, value in genai.get_dataset(dataset_id=made.dataset_id).tags.items() if key in "ac"}, {"c": "d"})
    genai.add_dataset_to_experiments(made.dataset_id, [experiments[1]])
    genai.remove_dataset_from_experiments(made.dataset_id, [experiments[0]])
    check("experiments", genai.get_dataset(dataset_id=made.dataset_id).experiment_ids, [experiments[1]])
    evaluated(made)
    genai.delete_dataset(dataset_id=made.dataset_id)
    refused("a deleted one by name", "RESOURCE_DOES_NOT_EXIST", f"Dataset with name '{name}' not found.", lambda: genai.get_dataset(name=name))


def evaluated(dataset):
    """A dataset is judged by a scorer that is plain Python."""
    from mlflow.genai import evaluate, scorer

    @scorer
    def short(outputs):
        return len(outputs) < 3

    result = evaluate(data=dataset, predict_fn=lambda q: q + q, scorers=[short])
    check("a scorer judged it", result.metrics, {"short/mean": 1.0})
    inputs = mlflow.get_run(result.run_id).inputs.dataset_inputs
    check("the run names the dataset", [(item.dataset.name, item.dataset.digest) for item in inputs], [(dataset.name, dataset.digest)])


def main():
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    client = MlflowClient()
    experiments = [client.create_experiment(f"evaluation {MARK} {number}") for number in range(3)]
    datasets(client, experiments)
    records(client, experiments)
    searches(client, experiments)
    read_by_runs(client, experiments)
    fluent(experiments)
    print("done")


if __name__ == "__main__":
    main()

"""Searches of traces through MLflow's own client; a failure at the first difference.

usage: MLFLOW_TRACKING_URI=http://HOST:PORT mlflow_trace_search.py
"""

import math
import os
import uuid

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, SpanType
from mlflow.exceptions import MlflowException, RestException

MARK = uuid.uuid4().hex[:8]
URL = os.environ["MLFLOW_TRACKING_URI"]
SOURCE = AssessmentSource(source_type="HUMAN", source_id="ann")


def make():
    """Three traces, each a second after the other, with spans, tags and what is said of them."""
    client = MlflowClient()
    experiment = client.create_experiment(f"search-{MARK}")
    mlflow.set_experiment(experiment_id=experiment)
    names, run_id = {}, None
    with mlflow.start_run() as run:
        run_id = run.info.run_id
        for index, name in enumerate(["alpha", "beta", "gamma"]):
            root = mlflow.start_span_no_context(name, span_type=SpanType.CHAIN, inputs={"q": f"question {index}"}, tags={"n": str(index), "a b": "x"},
                metadata={"mlflow.trace.session": f"s-{index // 2}", "place": f"here-{index}"}, start_time_ns=(1_700_000_000 + index) * 10**9)
            child = mlflow.start_span_no_context(f"call-{name}", span_type=SpanType.LLM, parent_span=root, attributes={"model": f"gpt-{index}"})
            child.set_outputs(f"answer {index}")
            if index == 2:
                child.set_status("ERROR")
            child.end()
            root.end(status="ERROR" if index == 2 else "OK", end_time_ns=(1_700_000_000 + index) * 10**9 + (index + 1) * 10**7)
            names[root.trace_id] = name
    mlflow.flush_trace_async_logging()
    ids = {name: trace_id for trace_id, name in names.items()}
    mlflow.log_feedback(trace_id=ids["alpha"], name="good", value=True, source=SOURCE)
    mlflow.log_feedback(trace_id=ids["beta"], name="score", value=0.75, source=SOURCE)
    mlflow.log_feedback(trace_id=ids["beta"], name="tone", value="polite", source=SOURCE)
    mlflow.log_expectation(trace_id=ids["gamma"], name="answer", value="42", source=SOURCE)
    mlflow.log_feedback(trace_id=ids["alpha"], name="whole", value="yes", source=SOURCE, metadata={"mlflow.trace.session": "s-0"})
    return client, experiment, names, ids, run_id


def main():
    client, experiment, names, ids, run_id = make()

    def found(filter_string=None, **more):
        traces = client.search_traces(locations=[experiment], filter_string=filter_string, include_spans=False, **more)
        return [names[trace.info.trace_id] for trace in traces]

    every = ["gamma", "beta", "alpha"]
    for text, expected in [
        (None, every),
        ("name = 'beta'", ["beta"]),
        ("trace.name LIKE '%a%' AND tags.n != '1'", ["gamma", "alpha"]),
        ("attributes.name ILIKE 'AL%'", ["alpha"]),
        ("name RLIKE '^(al|ga)'", ["gamma", "alpha"]),
        (f"request_id = '{ids['alpha']}'", ["alpha"]),
        (f"trace_id IN ('{ids['alpha']}', 'x')", ["alpha"]),
        ("trace.status = 'ERROR'", ["gamma"]),
        ("status IN ('OK')", ["beta", "alpha"]),
        ("timestamp_ms > 1700000000000", ["gamma", "beta"]),
        ("timestamp >= 1700000000000 AND timestamp < 1700000001000", ["alpha"]),
        ("execution_time_ms >= 20", ["gamma", "beta"]),
        ("execution_time < 20", ["alpha"]),
        ("end_time <= 1700000001020", ["beta", "alpha"]),
        (f"run_id = '{run_id}'", every),
        ("run_id = 'other'", []),
        ("tags.`a b` = 'x' AND tag.n IN ('0', '2')", ["gamma", "alpha"]),
        ("tags.n RLIKE '[12]'", ["gamma", "beta"]),
        ("tags.absent IS NULL", every),
        ("tags.n IS NOT NULL", every),
        ("metadata.place = 'here-1'", ["beta"]),
        ("request_metadata.place LIKE 'here-%'", every),
        ("metadata.mlflow.trace.session = 's-0'", ["beta", "alpha"]),
        ("metadata.absent IS NOT NULL", []),
        ("span.name = 'call-beta'", ["beta"]),
        ("span.type = 'LLM' AND span.status = 'ERROR'", ["gamma"]),
        # Of one span, not of two.
        ("span.name = 'call-beta' AND span.type = 'CHAIN'", []),
        ("span.attributes.model LIKE '%gpt-1%'", ["beta"]),
        ("span.attributes.model = 'gpt-2'", ["gamma"]),
        ("span.attributes.model RLIKE '^gpt-[01]$'", ["beta", "alpha"]),
        ("span.content LIKE '%answer 2%'", ["gamma"]),
        ("trace.text ILIKE '%QUESTION 1%'", ["beta"]),
        ("feedback.good = 'true'", ["alpha"]),
        ("feedback.tone = 'polite'", ["beta"]),
        ("feedback.tone != 'polite'", []),
        ("feedback.score > 0.5", ["beta"]),
        ("feedback.score < 0.5", []),
        ("feedback.tone IS NULL", ["gamma", "alpha"]),
        ("expectation.answer = '42'", ["gamma"]),
        ("expectation.answer IS NOT NULL", ["gamma"]),
        # What is said of a session is said of all its traces.
        ("feedback.whole = 'yes'", ["beta", "alpha"]),
        ("issue.id = 'none'", []),
        ("prompt = 'p/1'", []),
        # More than MLflow has.
        ("name = 'alpha' OR (status = 'ERROR' AND NOT tags.n = '1')", ["gamma", "alpha"]),
    ]:
        assert found(text) == expected, (text, found(text))

    for order, expected in [
        (["timestamp_ms"], every[::-1]),
        (["timestamp DESC"], every),
        (["execution_time_ms"], every[::-1]),
        (["name DESC"], every),
        (["status", "timestamp"], ["gamma", "alpha", "beta"]),
        (["tag.n"], every[::-1]),
        (["metadata.place DESC"], every),
        (["end_time"], every[::-1]),
    ]:
        assert found(order_by=order) == expected, (order, found(order_by=order))

    pages, token = [], None
    while True:
        page = client.search_traces(locations=[experiment], max_results=2, page_token=token, include_spans=False)
        pages.append([names[trace.info.trace_id] for trace in page])
        token = page.token
        if not token:
            break
    assert pages == [["gamma", "beta"], ["alpha"]], pages

    for text, message in [
        ("feedback.score > 'x'", "Expected a numeric value for feedback"),
        ("feedback.score = 1", "Expected a quoted string value for feedback"),
        ("span.color = 'x'", "Invalid span attribute 'color'"),
        ("span.content = 'x'", "span.content comparator '='"),
        ("prompt = 'p'", "Invalid prompts filter value 'p'"),
        ("issue.name = 'x'", "Invalid issue attribute 'name'"),
        ("color.x = 'y'", "Invalid entity type 'color'"),
        ("shade = 'y'", "Invalid attribute key 'shade'"),
        ("status > 'OK'", "Invalid comparator '>' not one of"),
        ("name RLIKE '('", "The regular expression for 'name'"),
    ]:
        try:
            found(text)
        except (RestException, MlflowException) as error:
            assert error.error_code == "INVALID_PARAMETER_VALUE" and message in str(error), (text, error)
        else:
            raise AssertionError(text)

    whole = mlflow.search_traces(locations=[experiment], filter_string="name = 'beta'", return_type="list")
    assert [sorted(span.name for span in trace.data.spans) for trace in whole] == [["beta", "call-beta"]], whole

    store = client._tracking_client.store
    both = store.calculate_trace_filter_correlation([experiment], "tags.n != '2'", "status = 'OK'")
    assert math.isclose(both.npmi, 1.0), both
    assert (both.filter1_count, both.filter2_count, both.joint_count, both.total_count) == (2, 2, 2, 3), both
    never = store.calculate_trace_filter_correlation([experiment], "status = 'ERROR'", "status = 'OK'", "name != 'x'")
    assert never.npmi == -1.0 and never.npmi_smoothed > -1.0, never
    assert math.isnan(store.calculate_trace_filter_correlation([experiment], "name = 'x'", "status = 'OK'").npmi)

    old = requests.get(f"{URL}/api/2.0/mlflow/traces", params={"experiment_ids": experiment, "filter": "name = 'beta'"}, timeout=30)
    assert [trace["request_id"] for trace in old.json()["traces"]] == [ids["beta"]], old.text
    print("traces are found")


main()

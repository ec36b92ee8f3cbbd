"""Traces through MLflow's own client; a line for each check, and a failure at the first difference.

usage: MLFLOW_TRACKING_URI=http://HOST:PORT mlflow_traces.py [--upstream]

With --upstream the server is MLflow's own, which shows that what is expected here is what MLflow does.
"""

import gzip
import json
import os
import sys
import time
import uuid

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import AssessmentError, AssessmentSource, SpanEvent, SpanType
from mlflow.entities.model_registry import PromptVersion
from mlflow.exceptions import MlflowException, RestException
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

# Each run of the script has names of its own, so that it can be repeated on one server.
MARK = uuid.uuid4().hex[:8]
UPSTREAM = "--upstream" in sys.argv
URL = os.environ["MLFLOW_TRACKING_URI"]


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


def flush():
    mlflow.flush_trace_async_logging()


def traced():
    """A trace by decorators: its spans come by OpenTelemetry's protocol, and what is told of it beside them."""

    @mlflow.trace(span_type=SpanType.CHAIN, attributes={"level": 1})
    def outer(question, more=None):
        mlflow.update_current_trace(tags={"color": "red"}, metadata={"mlflow.trace.session": f"s-{MARK}"}, client_request_id=f"c-{MARK}")
        with mlflow.start_span("inner", span_type=SpanType.LLM) as span:
            span.set_inputs({"messages": [{"role": "user", "content": "hé"}]})
            span.set_outputs({"b": 1, "a": [1.5, None, True]})
            span.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7})
            span.add_event(SpanEvent(name="half", attributes={"k": "v", "n": 2}))
        return {"answer": question * 2}

    outer("x", more={"z": 1, "y": 2})
    trace_id = mlflow.get_last_active_trace_id()
    flush()
    trace = mlflow.get_trace(trace_id)
    check("a trace is found", trace.info.trace_id, trace_id)
    check("it ended well", (trace.info.state, trace.info.execution_duration is not None), ("OK", True))
    check("its request", json.loads(trace.info.request_preview), {"question": "x", "more": {"z": 1, "y": 2}})
    check("its response", trace.info.response_preview, '{"answer": "xx"}')
    check("its name and tags", (trace.info.tags["mlflow.traceName"], trace.info.tags["color"]), ("outer", "red"))
    check("where its spans are", trace.info.tags["mlflow.trace.spansLocation"], "TRACKING_STORE")
    check("its session", trace.info.trace_metadata["mlflow.trace.session"], f"s-{MARK}")
    check("its client's id", trace.info.client_request_id, f"c-{MARK}")
    check("its tokens", trace.info.token_usage, {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7})
    check("its place", trace.info.tags["mlflow.artifactLocation"].endswith(f"/traces/{trace_id}/artifacts"), True)
    outer_span, inner = trace.data.spans
    check("spans in their order", (outer_span.name, inner.name, inner.parent_id), ("outer", "inner", outer_span.span_id))
    check("types", (outer_span.span_type, inner.span_type), ("CHAIN", "LLM"))
    check("inputs", list(outer_span.inputs["more"]), ["z", "y"])
    check("outputs", (list(inner.outputs), inner.outputs["a"]), (["b", "a"], [1.5, None, True]))
    check("attributes", outer_span.get_attribute("level"), 1)
    check("events", [(event.name, event.attributes) for event in inner.events], [("half", {"k": "v", "n": 2})])
    check("a letter", inner.inputs["messages"][0]["content"], "hé")
    check("the info alone", MlflowClient()._tracing_client.get_trace_info(trace_id).trace_id, trace_id)
    return trace_id


def fails(client):
    @mlflow.trace
    def broken():
        raise ValueError("no")

    try:
        broken()
    except ValueError:
        pass
    trace_id = mlflow.get_last_active_trace_id()
    flush()
    trace = client.get_trace(trace_id)
    check("an error is told", (trace.info.state, trace.data.spans[0].status.status_code), ("ERROR", "ERROR"))
    check("with its reason", trace.data.spans[0].events[0].attributes["exception.message"], "no")
    refused("a trace that is not there", "RESOURCE_DOES_NOT_EXIST", "Trace with ID 'tr-absent' not found", lambda: client.get_trace("tr-absent"))


def tags(client, trace_id):
    client.set_trace_tag(trace_id, "size", "small")
    client.set_trace_tag(trace_id, "size", "large")
    client.set_trace_tag(trace_id, "mlflow.traceName", "renamed")
    info = client.get_trace(trace_id).info
    check("a tag is set", (info.tags["size"], info.tags["mlflow.traceName"]), ("large", "renamed"))
    client.delete_trace_tag(trace_id, "size")
    check("a tag is removed", "size" in client.get_trace(trace_id).info.tags, False)
    refused("a tag twice", "RESOURCE_DOES_NOT_EXIST", f"No trace tag with key 'size' for trace with ID '{trace_id}'", lambda: client.delete_trace_tag(trace_id, "size"))
    mlflow.set_trace_tag(trace_id, "long", "x" * 9000)
    check("a long tag is cut", set(client.get_trace(trace_id).info.tags["long"]), {"x"})
    at = f"{URL}/api/3.0/mlflow/traces/{trace_id}/tags"
    answer = requests.patch(at, json={"key": "mlflow.trace.spansLocation", "value": "x"}, timeout=20)
    check("a tag of the server", (answer.status_code, "is immutable and cannot be set on a trace" in answer.text), (400, True))
    check("the newer route", requests.patch(at, json={"key": "k", "value": "v"}, timeout=20).json(), {})
    check("it set a tag", client.get_trace(trace_id).info.tags["k"], "v")
    check("and removes it", requests.delete(at, json={"key": "k"}, timeout=20).status_code, 200)


def assessments(client, trace_id):
    source = AssessmentSource(source_type="HUMAN", source_id="ada")
    told = mlflow.log_feedback(trace_id=trace_id, name="good", value=True, source=source, rationale="it is", metadata={"k": "v"})
    check("feedback", (told.name, told.value, told.source.source_type, told.source.source_id, told.rationale, told.metadata, told.valid), ("good", True, "HUMAN", "ada", "it is", {"k": "v"}, True))
    check("its id is the server's", told.assessment_id.startswith("a-"), True)
    expected = mlflow.log_expectation(trace_id=trace_id, name="answer", value={"b": [1, 2.5], "a": None})
    check("an expectation", (expected.name, expected.value), ("answer", {"b": [1, 2.5], "a": None}))
    failed = mlflow.log_feedback(trace_id=trace_id, name="judge", error=AssessmentError(error_code="TIMEOUT", error_message="late"))
    check("feedback that failed", (failed.value, failed.error.error_code, failed.error.error_message), (None, "TIMEOUT", "late"))
    number = mlflow.log_feedback(trace_id=trace_id, name="score", value=0.5, span_id=client.get_trace(trace_id).data.spans[0].span_id)
    check("feedback on a span", (number.value, len(number.span_id)), (0.5, 16))

    changed = mlflow.update_assessment(trace_id, told.assessment_id, mlflow.entities.Feedback(name="good", value=False, rationale="no"))
    check("feedback is changed", (changed.value, changed.rationale, changed.metadata, changed.source.source_id), (False, "no", {"k": "v"}, "ada"))
    check("it is read", mlflow.get_assessment(trace_id, told.assessment_id).value, False)
    refused("feedback as an expectation", "INVALID_PARAMETER_VALUE", "Cannot update expectation value on a Feedback assessment.", lambda: mlflow.update_assessment(trace_id, told.assessment_id, mlflow.entities.Expectation(name="good", value=1)))

    better = mlflow.override_feedback(trace_id=trace_id, assessment_id=told.assessment_id, value="better", rationale="looked again")
    check("it replaces", (better.value, better.overrides), ("better", told.assessment_id))
    check("what it replaces is not valid", mlflow.get_assessment(trace_id, told.assessment_id).valid, False)
    found = {assessment.name: assessment for assessment in client.get_trace(trace_id).info.assessments if assessment.valid is not False}
    check("a trace has them", sorted(found), ["answer", "good", "judge", "score"])
    check("the valid one", found["good"].value, "better")
    mlflow.delete_assessment(trace_id, better.assessment_id)
    check("without it the other is valid again", mlflow.get_assessment(trace_id, told.assessment_id).valid, True)
    mlflow.delete_assessment(trace_id, better.assessment_id)
    refused("one that is not there", "RESOURCE_DOES_NOT_EXIST", f"Assessment with ID '{better.assessment_id}' not found for trace '{trace_id}'", lambda: mlflow.get_assessment(trace_id, better.assessment_id))
    refused("one of a trace that is not there", "RESOURCE_DOES_NOT_EXIST", "not found", lambda: mlflow.log_feedback(trace_id="tr-absent", name="x", value=1))


def links(client, trace_id, experiment):
    run = client.create_run(experiment)
    client.link_traces_to_run([trace_id], run.info.run_id)
    client.link_traces_to_run([trace_id], run.info.run_id)
    refused("too many links", "INVALID_PARAMETER_VALUE", "Cannot link more than 100 traces to a run in a single request. Provided 101 traces.", lambda: client.link_traces_to_run([f"tr-{n}" for n in range(101)], run.info.run_id))
    prompt = PromptVersion(name=f"p-{MARK}", version=3, template="x")
    client.link_prompt_versions_to_trace([prompt], trace_id)
    with mlflow.start_run(experiment_id=experiment) as active:
        with mlflow.start_span("in a run"):
            pass
    made = mlflow.get_last_active_trace_id()
    flush()
    check("a trace knows its run", client.get_trace(made).info.trace_metadata["mlflow.sourceRun"], active.info.run_id)


def span_of(trace, span, parent=b"", name="step", start=1, end=2, **attributes):
    request = ExportTraceServiceRequest()
    told = request.resource_spans.add().scope_spans.add().spans.add()
    told.trace_id, told.span_id, told.parent_span_id = trace, span, parent
    told.name, told.start_time_unix_nano, told.end_time_unix_nano = name, start * 10**9, end * 10**9
    for key, value in attributes.items():
        attribute = told.attributes.add()
        attribute.key = key.replace("__", ".")
        if isinstance(value, int):
            attribute.value.int_value = value
        else:
            attribute.value.string_value = value
    return request


def send(experiment, request, **headers):
    content = request.SerializeToString()
    named = {"content-type": "application/x-protobuf", "x-mlflow-experiment-id": experiment}
    named |= {key.replace("_", "-"): value for key, value in headers.items()}
    if named.get("content-encoding") == "gzip":
        content = gzip.compress(content)
    return requests.post(f"{URL}/v1/traces", data=content, headers={key: value for key, value in named.items() if value}, timeout=30)


def protocol(client, experiment):
    """Spans of other tracers."""
    trace = uuid.uuid4().bytes
    trace_id = f"tr-{trace.hex()}"
    child = span_of(trace, b"b" * 8, b"a" * 8, "call", 2, 3, gen_ai__operation__name="chat", gen_ai__usage__input_tokens=5, gen_ai__usage__output_tokens=6, gen_ai__request__model="m-1")
    check("a child comes first", send(experiment, child).status_code, 200)
    check("its trace is open", client._tracing_client.get_trace_info(trace_id).state, "IN_PROGRESS")
    root = span_of(trace, b"a" * 8, b"", "root", 1, 4, input__value="in", output__value="out", session__id="s")
    service = root.resource_spans[0].resource.attributes.add()
    service.key, service.value.string_value = "service.name", "shop"
    for _ in range(2):
        answer = send(experiment, root, content_encoding="gzip")
        check("the root comes, and again", (answer.status_code, answer.headers["content-type"]), (200, "application/x-protobuf"))
        check("nothing is refused", ExportTraceServiceResponse.FromString(answer.content).partial_success.rejected_spans, 0)
    found = client.get_trace(trace_id)
    check("the trace ended", (found.info.state, found.info.request_time, found.info.execution_duration), ("OK", 1000, 3000))
    check("each span once", [span.name for span in found.data.spans], ["root", "call"])
    check("what other tracers call inputs", (found.data.spans[0].inputs, found.data.spans[0].outputs), ("in", "out"))
    check("and tokens", found.info.token_usage, {"input_tokens": 5, "output_tokens": 6, "total_tokens": 11})
    check("and types and models", (found.data.spans[1].span_type, found.data.spans[1].model_name), ("CHAT_MODEL", "m-1"))
    check("sessions and services", (found.info.trace_metadata["mlflow.trace.session"], found.info.tags["service.name"]), ("s", "shop"))
    check("a request without an experiment", send(experiment, root, **{"x_mlflow_experiment_id": ""}).status_code, 422)
    check("something else", requests.post(f"{URL}/v1/traces", data=b"x", headers={"content-type": "text/plain", "x-mlflow-experiment-id": experiment}, timeout=20).status_code, 400)
    check("an experiment that is not there", send("987654321", span_of(uuid.uuid4().bytes, b"a" * 8)).status_code, 404)

    told = {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": uuid.uuid4().hex, "spanId": "00000000000000ff", "name": "json", "startTimeUnixNano": "1000000000", "endTimeUnixNano": 2000000000, "attributes": [{"key": "n", "value": {"intValue": "5"}}], "status": {"code": 1}}]}]}]}
    answer = requests.post(f"{URL}/v1/traces", json=told, headers={"x-mlflow-experiment-id": experiment}, timeout=20)
    check("spans in JSON", answer.status_code, 200)
    found = client.get_trace("tr-" + told["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"])
    check("are the same", (found.data.spans[0].name, found.data.spans[0].span_id, found.data.spans[0].get_attribute("n")), ("json", "00000000000000ff", 5))

    run = client.create_run(experiment)
    check("spans of a run", send(experiment, span_of(uuid.uuid4().bytes, b"a" * 8), x_mlflow_run_id=run.info.run_id).status_code, 200)
    if not UPSTREAM:
        some = span_of(uuid.uuid4().bytes, b"a" * 8)
        some.resource_spans[0].scope_spans[0].spans.add()
        answer = ExportTraceServiceResponse.FromString(send(experiment, some).content)
        check("a span that cannot be stored", answer.partial_success.rejected_spans, 1)


def large(client, experiment):
    """One trace of very many spans."""
    trace, count, part = uuid.uuid4().bytes, 32_843, 4_000
    for first in range(0, count, part):
        request = ExportTraceServiceRequest()
        spans = request.resource_spans.add().scope_spans.add().spans
        for number in range(first, min(first + part, count)):
            told = spans.add()
            told.trace_id, told.span_id, told.name = trace, (number + 1).to_bytes(8, "big"), f"step {number}"
            told.parent_span_id = b"" if number == 0 else (1).to_bytes(8, "big")
            told.start_time_unix_nano, told.end_time_unix_nano = 10**9 + number, 2 * 10**9 + number
        check(f"spans from {first}", send(experiment, request).status_code, 200)
    found = client.get_trace(f"tr-{trace.hex()}")
    check("all are read", (len(found.data.spans), found.data.spans[0].name, found.data.spans[-1].name), (count, "step 0", f"step {count - 1}"))


def older(client, experiment):
    """What older clients ask."""
    at = f"{URL}/api/2.0/mlflow/traces"
    started = requests.post(at, json={"experiment_id": experiment, "timestamp_ms": 1000, "request_metadata": [{"key": "a", "value": "b"}], "tags": [{"key": "mlflow.traceName", "value": "old"}]}, timeout=20).json()["trace_info"]
    check("a trace begins", (started["status"], started["timestamp_ms"]), ("IN_PROGRESS", 1000))
    trace_id = started["request_id"]
    ended = requests.patch(f"{at}/{trace_id}", json={"timestamp_ms": 3500, "status": "OK", "request_metadata": [{"key": "c", "value": "d"}], "tags": [{"key": "e", "value": "f"}]}, timeout=20).json()["trace_info"]
    check("it ends", (ended["status"], ended["execution_time_ms"]), ("OK", 2500))
    check("what is told is added", sorted(pair["key"] for pair in ended["request_metadata"]), ["a", "c"])
    info = requests.get(f"{at}/{trace_id}/info", timeout=20).json()["trace_info"]
    tags = {pair["key"]: pair["value"] for pair in info["tags"]}
    check("it is read", (info["request_id"], tags["mlflow.traceName"], tags["e"]), (trace_id, "old", "f"))
    place = tags["mlflow.artifactLocation"].removeprefix("mlflow-artifacts:/").lstrip("/")
    spans = {"spans": [{"name": "old span"}]}
    put = requests.put(f"{URL}/api/2.0/mlflow-artifacts/artifacts/{place}/traces.json", data=json.dumps(spans), timeout=20)
    check("its spans are a file", put.status_code, 200)
    shown = requests.get(f"{URL}/ajax-api/2.0/mlflow/get-trace-artifact", params={"request_id": trace_id}, timeout=20)
    check("which pages show", (shown.json(), shown.headers["content-disposition"].startswith("attachment")), (spans, True))


def pages(client, trace_id):
    shown = requests.get(f"{URL}/ajax-api/3.0/mlflow/get-trace-artifact", params={"request_id": trace_id}, timeout=20)
    check("the spans as a file", [span["name"] for span in shown.json()["spans"]], ["outer", "inner"])
    many = requests.post(f"{URL}/api/3.0/mlflow/traces/batchGetInfos", json={"trace_ids": ["tr-absent", trace_id]}, timeout=20).json()
    check("many at once", [info["trace_id"] for info in many["trace_infos"]], [trace_id])
    many = requests.get(f"{URL}/api/3.0/mlflow/traces/batchGet", params={"trace_ids": [trace_id, trace_id]}, timeout=20).json()
    check("with their spans", [len(trace["spans"]) for trace in many["traces"]], [2])
    many = requests.get(f"{URL}/api/3.0/mlflow/traces/batchGet", params={"trace_ids": [trace_id], "experiment_ids": ["0"]}, timeout=20).json()
    check("of one experiment", many, {})


def projects(client, trace_id):
    """What is in one project is not in another, whatever its id."""
    other = f"p{MARK}"
    made = requests.put(f"{URL}/api/v1/projects/{other}", json={}, timeout=20)
    check("another project", made.ok, True)
    there = {"x-mlflow-workspace": other}
    at = f"{URL}/api/3.0/mlflow/traces"
    absent, present = "tr-" + "0" * 32, trace_id
    for what, call in [
        ("read", lambda id: requests.get(f"{at}/{id}", headers=there, timeout=20)),
        ("read whole", lambda id: requests.get(f"{at}/get", params={"trace_id": id}, headers=there, timeout=20)),
        ("tagged", lambda id: requests.patch(f"{at}/{id}/tags", json={"key": "k", "value": "theirs"}, headers=there, timeout=20)),
        ("assessed", lambda id: requests.post(f"{at}/{id}/assessments", json={"assessment": {"assessment_name": "a", "feedback": {"value": 1}}}, headers=there, timeout=20)),
        ("ended", lambda id: requests.patch(f"{URL}/api/2.0/mlflow/traces/{id}", json={"timestamp_ms": 1, "status": "OK"}, headers=there, timeout=20)),
        ("shown", lambda id: requests.get(f"{URL}/ajax-api/2.0/mlflow/get-trace-artifact", params={"request_id": id}, headers=there, timeout=20)),
    ]:
        answers = [call(id) for id in (absent, present)]
        told = [(answer.status_code, answer.text.replace(id, "ID")) for answer, id in zip(answers, (absent, present))]
        check(f"a trace of another project cannot be {what}", (told[0][0], told[0] == told[1]), (404, True))
    many = requests.post(f"{at}/batchGetInfos", json={"trace_ids": [present]}, headers=there, timeout=20)
    check("nor found among many", many.json(), {})
    experiment = requests.post(f"{URL}/api/2.0/mlflow/experiments/create", json={"name": "theirs"}, headers=there, timeout=20).json()["experiment_id"]
    same = span_of(bytes.fromhex(present.removeprefix("tr-")), b"z" * 8, b"", "theirs")
    check("the same id is another trace there", send(experiment, same, x_mlflow_workspace=other).status_code, 200)
    found = requests.get(f"{at}/get", params={"trace_id": present}, headers=there, timeout=20).json()["trace"]
    check("with its own spans", [span["name"] for span in found["spans"]], ["theirs"])
    check("and the first is as it was", [span.name for span in client.get_trace(present).data.spans], ["outer", "inner"])
    check("spans for an experiment of another project", send(experiment, span_of(uuid.uuid4().bytes, b"a" * 8)).status_code, 404)


def deletes(client):
    experiment = client.create_experiment(f"deleted traces {MARK}")
    ids = []
    for number in range(5):
        trace = uuid.uuid4().bytes
        send(experiment, span_of(trace, b"a" * 8, b"", "x", number + 1, number + 2))
        ids.append(f"tr-{trace.hex()}")
    check("by ids", client.delete_traces(experiment, trace_ids=ids[4:] + ["tr-absent"]), 1)
    check("by time, the oldest first", client.delete_traces(experiment, max_timestamp_millis=10_000, max_traces=2), 2)
    check("those are gone", [info.trace_id for info in client._tracing_client.store.batch_get_trace_infos(ids)], ids[2:4])
    check("by time", client.delete_traces(experiment, max_timestamp_millis=3000), 1)
    check("now", client.delete_traces(experiment, max_timestamp_millis=int(time.time() * 1000)), 1)
    refused("neither", "INVALID_PARAMETER_VALUE", "Either `max_timestamp_millis` or `trace_ids` must be specified.", lambda: client.delete_traces(experiment))
    check("of another experiment", client.delete_traces("0", trace_ids=ids), 0)
    client.delete_experiment(experiment)
    body = {"trace": {"trace_info": {"trace_id": f"tr-{uuid.uuid4().hex}", "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}, "request_time": "2024-01-01T00:00:00Z", "state": "OK"}}}
    answer = requests.post(f"{URL}/api/3.0/mlflow/traces", json=body, timeout=20)
    check("none begins in a deleted experiment", (answer.status_code, "must be in the 'active' state" in answer.text), (400, True))


def main():
    client = MlflowClient()
    experiment = client.create_experiment(f"traces {MARK}")
    mlflow.set_experiment(experiment_id=experiment)
    trace_id = traced()
    fails(client)
    tags(client, trace_id)
    assessments(client, trace_id)
    links(client, trace_id, experiment)
    pages(client, trace_id)
    protocol(client, experiment)
    older(client, experiment)
    deletes(client)
    if not UPSTREAM:
        projects(client, trace_id)
        large(client, experiment)
    print("traces are as MLflow's client expects them")


main()

"""Metrics of traces through MLflow's own client; a failure at the first difference.

usage: MLFLOW_TRACKING_URI=http://HOST:PORT mlflow_trace_metrics.py
"""

import math
import uuid

import mlflow
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, SpanType
from mlflow.entities.trace_metrics import AggregationType, MetricAggregation, MetricViewType
from mlflow.exceptions import RestException

MARK = uuid.uuid4().hex[:8]
SOURCE = AssessmentSource(source_type="HUMAN", source_id="ann")
START = 1_700_000_000_000
COUNT = [MetricAggregation(AggregationType.COUNT)]
TRACES, SPANS, ASSESSMENTS = MetricViewType.TRACES, MetricViewType.SPANS, MetricViewType.ASSESSMENTS


def ok(what):
    print("ok", what, flush=True)


def measured(*kinds):
    """Aggregations; a number is a percentile."""
    return [MetricAggregation(AggregationType.PERCENTILE, kind) if isinstance(kind, float) else MetricAggregation(AggregationType(kind)) for kind in kinds]


def make():
    """Four traces, each half an hour after the other, each with a call of a model that costs something."""
    client = MlflowClient()
    experiment = client.create_experiment(f"metrics-{MARK}")
    mlflow.set_experiment(experiment_id=experiment)
    for index in range(4):
        start = (START + index * 1_800_000) * 10**6
        root = mlflow.start_span_no_context(f"t{index % 2}", span_type=SpanType.CHAIN, inputs={"q": "?"}, tags={"n": str(index)},
            metadata={"mlflow.trace.session": f"s-{index // 3}"}, start_time_ns=start)
        child = mlflow.start_span_no_context("call", span_type=SpanType.LLM, parent_span=root, attributes={
            "mlflow.chat.tokenUsage": {"input_tokens": 10 * (index + 1), "output_tokens": 1, "total_tokens": 10 * (index + 1) + 1},
            "mlflow.llm.cost": {"input_cost": 0.5 * index, "output_cost": 0.25, "total_cost": 0.5 * index + 0.25},
            "mlflow.llm.model": f"m{index % 2}", "mlflow.llm.provider": "p"}, start_time_ns=start)
        child.end(end_time_ns=start + 5 * 10**6)
        root.end(status="ERROR" if index == 3 else "OK", end_time_ns=start + (index + 1) * 10**7)
        mlflow.flush_trace_async_logging()
        mlflow.log_feedback(trace_id=root.trace_id, name="good", value=index > 0, source=SOURCE)
    return client, experiment


def main():
    client, experiment = make()
    store = client._tracking_client.store

    def asked(view, metric, aggregations, **more):
        points = store.query_trace_metrics([experiment], view, metric, aggregations, **more)
        assert all(point.metric_name == metric for point in points), points
        return [(point.dimensions, point.values) for point in points]

    assert asked(TRACES, "trace_count", COUNT) == [({}, {"COUNT": 4.0})]
    assert asked(TRACES, "session_count", COUNT) == [({}, {"COUNT": 2.0})]
    ok("traces and sessions are counted")
    found = asked(TRACES, "trace_count", COUNT, dimensions=["trace_name", "trace_status"])
    assert found == [
        ({"trace_name": "t0", "trace_status": "OK"}, {"COUNT": 2.0}),
        ({"trace_name": "t1", "trace_status": "ERROR"}, {"COUNT": 1.0}),
        ({"trace_name": "t1", "trace_status": "OK"}, {"COUNT": 1.0}),
    ], found
    ok("by name and status")
    found = asked(TRACES, "latency", measured("AVG", "MIN", "MAX", 50.0, 90.0))
    assert found[0][1].keys() == {"AVG", "MIN", "MAX", "P50.0", "P90.0"}, found
    for name, value in {"AVG": 25, "MIN": 10, "MAX": 40, "P50.0": 25, "P90.0": 37}.items():
        assert math.isclose(found[0][1][name], value), found
    ok("latencies and their percentiles")
    found = asked(TRACES, "input_tokens", measured("SUM", "MAX"), dimensions=["trace_name"])
    assert found == [({"trace_name": "t0"}, {"SUM": 40.0, "MAX": 30.0}), ({"trace_name": "t1"}, {"SUM": 60.0, "MAX": 40.0})], found
    ok("tokens")
    hour = START // 3_600_000 * 3_600_000
    found = asked(TRACES, "trace_count", COUNT, time_interval_seconds=3600, start_time_ms=START, end_time_ms=START + 4 * 1_800_000)
    assert sum(values["COUNT"] for _, values in found) == 4, found
    assert found[0][0] == {"time_bucket": "2023-11-14T22:00:00+00:00"} and hour == 1_699_999_200_000, found
    ok("by hours")
    assert asked(TRACES, "trace_count", COUNT, start_time_ms=START + 1, end_time_ms=START + 3_600_000) == [({}, {"COUNT": 2.0})]
    ok("within a time")

    for filters, count in [
        (["trace.status = 'OK'"], 3),
        (["trace.tag.n = '2'"], 1),
        (["trace.tag.`mlflow.traceName` = 't1'"], 2),
        (["trace.metadata.mlflow.trace.session = 's-0'", "trace.status = 'OK'"], 3),
        (["trace.metadata.absent = 'x'"], 0),
    ]:
        assert asked(TRACES, "trace_count", COUNT, filters=filters) == [({}, {"COUNT": float(count)})], filters
    ok("filters of traces")

    found = asked(SPANS, "span_count", COUNT, dimensions=["span_type"])
    assert found == [({"span_type": "CHAIN"}, {"COUNT": 4.0}), ({"span_type": "LLM"}, {"COUNT": 4.0})], found
    found = asked(SPANS, "latency", measured("AVG", 99.0), filters=["span.name = 'call'", "trace.status = 'OK'"])
    assert found == [({}, {"AVG": 5.0, "P99.0": 5.0})], found
    ok("spans")
    found = asked(SPANS, "total_cost", measured("SUM"), dimensions=["span_model_name", "span_model_provider"])
    assert found == [
        ({"span_model_name": "m0", "span_model_provider": "p"}, {"SUM": 1.5}),
        ({"span_model_name": "m1", "span_model_provider": "p"}, {"SUM": 2.5}),
    ], found
    found = asked(SPANS, "output_cost", measured("SUM"), time_interval_seconds=86_400, start_time_ms=START, end_time_ms=START + 1_800_000)
    assert found == [({"time_bucket": "2023-11-14T00:00:00+00:00"}, {"SUM": 0.5})], found
    ok("costs")

    found = asked(ASSESSMENTS, "assessment_value", measured("AVG", "MIN"), dimensions=["assessment_name"])
    assert found == [({"assessment_name": "good"}, {"AVG": 0.75, "MIN": 0.0})], found
    found = asked(ASSESSMENTS, "assessment_count", COUNT, dimensions=["assessment_value"], filters=["assessment.type = 'feedback'"])
    assert found == [({"assessment_value": "false"}, {"COUNT": 1.0}), ({"assessment_value": "true"}, {"COUNT": 3.0})], found
    ok("assessments")

    pages, token = [], None
    while True:
        page = store.query_trace_metrics([experiment], TRACES, "trace_count", COUNT, dimensions=["trace_name"], max_results=1, page_token=token)
        pages.append([point.dimensions["trace_name"] for point in page])
        token = page.token
        if not token:
            break
    assert pages == [["t0"], ["t1"]], pages
    ok("page by page")

    for view, metric, aggregations, more, message in [
        (TRACES, "cost", COUNT, {}, "metric_name must be one of ['trace_count', 'session_count', 'latency'"),
        (TRACES, "trace_count", measured("AVG"), {}, "Found invalid aggregation_type(s): ['AVG']. Supported aggregation types: ['COUNT']"),
        (TRACES, "latency", measured("AVG"), {"dimensions": ["trace_status"]}, "Found invalid dimension(s): ['trace_status']"),
        (TRACES, "trace_count", COUNT, {"time_interval_seconds": 60}, "start_time_ms and end_time_ms are required"),
        (TRACES, "trace_count", COUNT, {"filters": ["span.name = 'a'"]}, "Filtering by span is only supported for SPANS view type, got TRACES"),
        (SPANS, "span_count", COUNT, {"filters": ["assessment.name = 'a'"]}, "Filtering by assessment is only supported for ASSESSMENTS"),
        (TRACES, "trace_count", COUNT, {"filters": ["trace.status != 'OK'"]}, "Invalid comparator: '!=', only '=' operator is supported"),
        (TRACES, "trace_count", COUNT, {"filters": ["status = 'OK'"]}, "Invalid identifier 'status'"),
        (TRACES, "trace_count", COUNT, {"filters": ["trace.tag = 'OK'"]}, "Filtering by tag requires a key"),
        (TRACES, "trace_count", COUNT, {"page_token": "x"}, "Invalid page token"),
    ]:
        try:
            asked(view, metric, aggregations, **more)
        except RestException as error:
            assert error.error_code == "INVALID_PARAMETER_VALUE" and message in str(error), (message, error)
            ok(message)
        else:
            raise AssertionError(message)
    print("traces are measured")


main()

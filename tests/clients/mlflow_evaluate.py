"""An evaluation of an application through MLflow's own client; a failure at the first difference.

usage: MLFLOW_TRACKING_URI=http://HOST:PORT mlflow_evaluate.py
"""

import os
import uuid

# What is evaluated is asked for at once: its traces are sent before the evaluation goes on.
os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Feedback
from mlflow.genai.scorers import scorer

MARK = uuid.uuid4().hex[:8]


def ok(what):
    print("ok", what, flush=True)


@scorer
def exact(outputs, expectations):
    return outputs == expectations["answer"]


@scorer
def length(outputs):
    return Feedback(value=float(len(outputs)), rationale="its letters")


def application(question):
    return question.upper()


def said(trace):
    """The values of what is said of a trace, by name."""
    return {assessment.name: assessment.value for assessment in trace.info.assessments}


def main():
    experiment = mlflow.set_experiment(f"evaluate-{MARK}").experiment_id
    client = MlflowClient()

    given = [
        {"inputs": {"question": "a"}, "outputs": "A", "expectations": {"answer": "A"}},
        {"inputs": {"question": "bb"}, "outputs": "bb", "expectations": {"answer": "BB"}},
    ]
    result = mlflow.genai.evaluate(data=given, scorers=[exact, length])
    assert result.metrics == {"exact/mean": 0.5, "length/mean": 1.5}, result.metrics
    ok("answers that are there are evaluated")

    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED" and run.data.metrics == result.metrics, run
    ok("its run has the metrics")

    traces = mlflow.search_traces(locations=[experiment], run_id=result.run_id, return_type="list")
    found = sorted((said(trace)["answer"], said(trace)["exact"], said(trace)["length"]) for trace in traces)
    assert found == [("A", True, 1.0), ("BB", False, 2.0)], found
    ok("each trace has what was said, and what was expected")

    predicted = [{"inputs": {"question": row["inputs"]["question"]}, "expectations": row["expectations"]} for row in given]
    second = mlflow.genai.evaluate(data=predicted, predict_fn=application, scorers=[exact])
    assert second.metrics == {"exact/mean": 1.0}, second.metrics
    ok("an application is asked and evaluated")

    again = mlflow.genai.evaluate(data=traces, scorers=[length])
    assert again.metrics == {"length/mean": 1.5}, again.metrics
    ok("traces are evaluated")

    passed = client.search_traces(locations=[experiment], filter_string="feedback.exact = 'true'", include_spans=False)
    assert len(passed) == 3, passed
    ok("traces are found by what was said")
    print("an application is evaluated")


main()

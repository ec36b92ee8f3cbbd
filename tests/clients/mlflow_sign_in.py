"""Logs one run with MLflow's client, as whom the environment says. It prints `logged`, or `refused` and the status."""

import os

import mlflow
from mlflow.exceptions import MlflowException

os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
try:
    mlflow.set_experiment("signed in")
    with mlflow.start_run() as run:
        mlflow.log_metric("m", 1.0)
        mlflow.log_text("content", "note.txt")
    print("logged", mlflow.get_run(run.info.run_id).data.metrics["m"])
except MlflowException as error:
    print("refused", error.get_http_status_code(), error.message[:200])

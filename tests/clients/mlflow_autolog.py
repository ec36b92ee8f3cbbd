"""What MLflow logs by itself while scikit-learn, XGBoost and LightGBM train, and of the machine; a line for each check, and a failure at the first difference.

usage: MLFLOW_TRACKING_URI=http://HOST:PORT mlflow_autolog.py
"""

import sys
import time
import uuid

import lightgbm
import mlflow
import numpy
import xgboost
from mlflow import MlflowClient
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV

MARK = uuid.uuid4().hex[:8]


def check(what, found, expected):
    if found != expected:
        print(f"DIFFERENT {what}: {found!r}, expected {expected!r}")
        sys.exit(1)
    print(f"ok {what}")


def logged_model(run):
    """The model that a run has made, read back."""
    outputs = run.outputs.model_outputs
    check("the run has made one model", len(outputs), 1)
    model = client.get_logged_model(outputs[0].model_id)
    check("which is ready", (str(model.status), model.source_run_id), ("READY", run.info.run_id))
    return mlflow.pyfunc.load_model(f"models:/{model.model_id}")


def last_run():
    return client.get_run(mlflow.last_active_run().info.run_id)


def scikit_learn():
    mlflow.sklearn.autolog(log_input_examples=True)
    forest = RandomForestClassifier(n_estimators=7, max_depth=3, random_state=1).fit(rows, labels)
    run = last_run()
    check("the run has ended well", run.info.status, "FINISHED")
    check("the params of the estimator", (run.data.params["n_estimators"], run.data.params["max_depth"]), ("7", "3"))
    check("the score of the training", run.data.metrics["training_accuracy_score"], forest.score(rows, labels))
    check("the estimator's name", run.data.tags["estimator_name"], "RandomForestClassifier")
    check("the training data", [entry.tags[0].value for entry in run.inputs.dataset_inputs], ["train"])
    model = logged_model(run)
    check("its predictions", numpy.array_equal(model.predict(rows), forest.predict(rows)), True)
    check("its signature", (model.metadata.signature is not None, len(model.metadata.signature.inputs.inputs)), (True, 1))

    search = GridSearchCV(RandomForestClassifier(n_estimators=3, random_state=1), {"max_depth": [2, 4]}, cv=2).fit(rows, labels)
    run = last_run()
    check("the best params of a search", run.data.params["best_max_depth"], str(search.best_params_["max_depth"]))
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    check("a child run for each candidate", sorted(child.data.params["max_depth"] for child in children), ["2", "4"])
    mlflow.sklearn.autolog(disable=True)


def boosters():
    mlflow.xgboost.autolog()
    data = xgboost.DMatrix(rows, label=labels)
    booster = xgboost.train({"max_depth": 3, "objective": "binary:logistic"}, data, 5, evals=[(data, "train")], verbose_eval=False)
    run = last_run()
    check("XGBoost's params", (run.data.params["max_depth"], run.data.params["num_boost_round"]), ("3", "5"))
    check("a point a round", [point.step for point in client.get_metric_history(run.info.run_id, "train-logloss")], [0, 1, 2, 3, 4])
    check("its predictions", numpy.allclose(logged_model(run).predict(rows), booster.predict(data)), True)
    mlflow.xgboost.autolog(disable=True)

    mlflow.lightgbm.autolog()
    data = lightgbm.Dataset(rows, label=labels)
    booster = lightgbm.train({"max_depth": 3, "objective": "binary", "verbose": -1}, data, 5, valid_sets=[data], valid_names=["train"])
    run = last_run()
    check("LightGBM's params", (run.data.params["max_depth"], run.data.params["num_boost_round"]), ("3", "5"))
    check("a point a round", len(client.get_metric_history(run.info.run_id, "train-binary_logloss")), 5)
    check("its predictions", numpy.allclose(logged_model(run).predict(rows), booster.predict(rows)), True)
    mlflow.lightgbm.autolog(disable=True)


def machine():
    mlflow.set_system_metrics_sampling_interval(0.1)
    mlflow.set_system_metrics_samples_before_logging(1)
    name = "system/cpu_utilization_percentage"
    with mlflow.start_run(log_system_metrics=True) as run:
        deadline = time.monotonic() + 60
        while len(client.get_metric_history(run.info.run_id, name)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
    points = client.get_metric_history(run.info.run_id, name)
    check("what the machine did, step by step", [point.step for point in points[:2]], [0, 1])
    check("in percent", all(0 <= point.value <= 100 for point in points), True)


rows, labels = load_breast_cancer(return_X_y=True)
client = MlflowClient()
mlflow.set_experiment(f"autologging {MARK}")
scikit_learn()
boosters()
machine()

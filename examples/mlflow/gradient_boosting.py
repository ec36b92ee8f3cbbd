"""Trains with XGBoost and autologging, logs with MLflow, and deploys by an alias.

    python3 -m pip install mlflow xgboost onnxmltools onnxruntime
    export MLFLOW_TRACKING_URI=http://127.0.0.1:7070
    python3 examples/mlflow/gradient_boosting.py
    modelyard apply -f examples/mlflow/endpoint.yaml
"""

import mlflow
import xgboost
from mlflow.models import infer_signature
from onnxmltools import convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

features, labels = load_breast_cancer(return_X_y=True)
features = features.astype("float32")
train_features, test_features, train_labels, test_labels = train_test_split(features, labels, random_state=0)
train = xgboost.DMatrix(train_features, train_labels)
test = xgboost.DMatrix(test_features, test_labels)

# Params, the metrics of every round, and how much each feature matters are logged without a line for them. What is served is
# the ONNX file, so that XGBoost's own file is not logged beside it.
mlflow.xgboost.autolog(log_models=False)
mlflow.set_experiment("tumors")
with mlflow.start_run() as run:
    booster = xgboost.train(
        {"objective": "binary:logistic", "eval_metric": "auc", "max_depth": 3, "eta": 0.2, "nthread": 2},
        train,
        num_boost_round=100,
        evals=[(test, "test")],
        early_stopping_rounds=10,
        verbose_eval=False,
    )
    # `X`, as the other scripts name it, so that callers of the endpoint need not know which one made the model.
    graph = convert_xgboost(booster, initial_types=[("X", FloatTensorType([None, features.shape[1]]))])
    mlflow.onnx.log_model(
        graph,
        name="model",
        registered_model_name="tumor",
        # An endpoint serves one file; by default large weights would be in others beside it.
        save_as_external_data=False,
        signature=infer_signature(train_features[:5], booster.predict(test)[:5]),
    )

client = mlflow.MlflowClient()
auc = client.get_run(run.info.run_id).data.metrics["test-auc"]
newest = max(client.search_model_versions("name = 'tumor'"), key=lambda version: int(version.version))
client.set_registered_model_alias("tumor", "champion", newest.version)
print(f"version {newest.version} of `tumor` is its champion, made by run {run.info.run_id}, with an AUC of {auc:.3f}")

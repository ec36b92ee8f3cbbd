"""Trains with scikit-learn, logs with MLflow, and deploys by an alias.

    python3 -m pip install mlflow scikit-learn skl2onnx onnxruntime
    export MLFLOW_TRACKING_URI=http://127.0.0.1:7070
    python3 examples/mlflow/scikit_learn.py
    modelyard apply -f examples/mlflow/endpoint.yaml
"""

import mlflow
from mlflow.models import infer_signature
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

features, labels = load_breast_cancer(return_X_y=True)
features = features.astype("float32")
train_features, test_features, train_labels, test_labels = train_test_split(features, labels, random_state=0)

mlflow.set_experiment("tumors")
with mlflow.start_run() as run:
    parameters = {"n_estimators": 100, "max_depth": 3}
    model = GradientBoostingClassifier(**parameters, random_state=0).fit(train_features, train_labels)
    scores = model.predict_proba(test_features)[:, 1]
    mlflow.log_params(parameters)
    mlflow.log_metric("auc", roc_auc_score(test_labels, scores))

    # An endpoint serves ONNX; `zipmap` would put the probabilities into a list of maps.
    graph = to_onnx(model, train_features[:1], options={"zipmap": False})
    mlflow.onnx.log_model(
        graph,
        name="model",
        registered_model_name="tumor",
        # An endpoint serves one file; by default large weights would be in others beside it.
        save_as_external_data=False,
        signature=infer_signature(train_features[:5], model.predict(train_features[:5])),
    )

client = mlflow.MlflowClient()
newest = client.get_registered_model("tumor").latest_versions[-1]
client.set_registered_model_alias("tumor", "champion", newest.version)
print(f"version {newest.version} of `tumor` is its champion, made by run {run.info.run_id}")

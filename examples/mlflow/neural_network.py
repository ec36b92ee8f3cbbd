"""Trains with PyTorch and autologging, logs with MLflow, and deploys by an alias.

    python3 -m pip install mlflow torch pytorch-lightning onnx onnxscript onnxruntime scikit-learn
    export MLFLOW_TRACKING_URI=http://127.0.0.1:7070
    python3 examples/mlflow/neural_network.py
    modelyard apply -f examples/mlflow/endpoint.yaml
"""

import os
import tempfile

import mlflow
import onnx
import pytorch_lightning
import torch
from mlflow.models import infer_signature
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader, TensorDataset

pytorch_lightning.seed_everything(0)
features, labels = load_breast_cancer(return_X_y=True)
train_features, test_features, train_labels, test_labels = train_test_split(features, labels, random_state=0)
scaler = StandardScaler().fit(train_features)


def tensor(values):
    return torch.tensor(values, dtype=torch.float32)


class Classifier(pytorch_lightning.LightningModule):
    """Scales the features itself, so that callers of the endpoint send them as they are."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", tensor(scaler.mean_))
        self.register_buffer("scale", tensor(scaler.scale_))
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(features.shape[1], 16),
            torch.nn.ReLU(),
            torch.nn.Linear(16, 2),
        )

    def scores(self, values):
        return self.layers((values - self.mean) / self.scale)

    def forward(self, values):
        probabilities = torch.softmax(self.scores(values), dim=1)
        return probabilities.argmax(dim=1), probabilities

    def training_step(self, batch, _):
        values, wanted = batch
        loss = torch.nn.functional.cross_entropy(self.scores(values), wanted)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


train = TensorDataset(tensor(train_features), torch.tensor(train_labels))
model = Classifier()
trainer = pytorch_lightning.Trainer(
    max_epochs=30,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)

# The parameters of the optimizer and the loss of every epoch are logged without a line for them. What is served is the ONNX
# file, so that PyTorch's own file is not logged beside it.
mlflow.pytorch.autolog(log_models=False, checkpoint=False)
mlflow.set_experiment("tumors")
with mlflow.start_run() as run:
    trainer.fit(model, DataLoader(train, batch_size=32, shuffle=True))
    model.eval()
    with torch.no_grad():
        _, probabilities = model(tensor(test_features))
    auc = roc_auc_score(test_labels, probabilities[:, 1].numpy())
    mlflow.log_metric("auc", auc)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        torch.onnx.export(
            model,
            (tensor(test_features[:2]),),
            path,
            # As the other scripts name them, so that callers of the endpoint need not know which one made the model.
            input_names=["X"],
            output_names=["label", "probabilities"],
            dynamic_axes={"X": {0: "rows"}, "label": {0: "rows"}, "probabilities": {0: "rows"}},
        )
        graph = onnx.load(path)
    mlflow.onnx.log_model(
        graph,
        name="model",
        registered_model_name="tumor",
        # An endpoint serves one file; by default large weights would be in others beside it.
        save_as_external_data=False,
        signature=infer_signature(test_features[:5].astype("float32"), probabilities[:5].numpy()),
    )

client = mlflow.MlflowClient()
newest = max(client.search_model_versions("name = 'tumor'"), key=lambda version: int(version.version))
client.set_registered_model_alias("tumor", "champion", newest.version)
print(f"version {newest.version} of `tumor` is its champion, made by run {run.info.run_id}, with an AUC of {auc:.3f}")

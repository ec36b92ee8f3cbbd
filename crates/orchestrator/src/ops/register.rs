//! `register`: makes a version of a registered model of what was trained, with its lineage.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use modelyard_proto::registry::v1::CreateModelVersionRequest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Literals, Op, OpShape, StepContext, StepError, evaluate::Evaluation, keys, outputs, read, train::Trained};

/// The format of the files that are trained here.
pub(super) const ONNX: &str = "onnx";

/// Takes `candidate` (the outputs of a step of op `train`), `model`, and where wanted `evaluation` (the outputs of a step of
/// op `evaluate`, whose metrics of the candidate the version carries), `description` and `tags`.
pub(crate) struct Register;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct With {
    candidate: Trained,
    model: String,
    #[serde(default)]
    evaluation: Option<Evaluation>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    tags: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Outputs {
    model: String,
    version: u32,
    /// `MODEL/VERSION`.
    reference: String,
}

/// The tag that leads from a version to the run of the pipeline that made it.
const RUN_TAG: &str = "pipeline_run";

impl With {
    fn request(self, step: &StepContext) -> CreateModelVersionRequest {
        let metrics = match self.evaluation {
            Some(evaluation) => evaluation.candidate,
            None => self.candidate.validation,
        };
        let mut tags: HashMap<String, String> = self.tags.into_iter().collect();
        tags.insert(RUN_TAG.to_owned(), step.run_id.clone());
        CreateModelVersionRequest {
            project: step.project.clone(),
            name: self.model,
            description: self.description,
            format: ONNX.to_owned(),
            artifact_digest: self.candidate.model,
            signature_json: self.candidate.signature.to_string(),
            reference_profile_digest: self.candidate.reference_profile,
            metrics: metrics.into_iter().collect(),
            run_id: self.candidate.run_id,
            dataset: self.candidate.dataset.name,
            dataset_version: self.candidate.dataset.version,
            tags,
            training_rows: self.candidate.training_rows,
            idempotency_key: step.step_key("version"),
        }
    }
}

#[async_trait]
impl Op for Register {
    fn name(&self) -> &'static str {
        "register"
    }

    fn shape(&self) -> OpShape {
        OpShape {
            keys: Some(keys(&["candidate", "model"], &["evaluation", "description", "tags"])),
            outputs: Some(&["model", "version", "reference"]),
            heavy: false,
        }
    }

    fn check(&self, literals: &Map<String, Value>) -> Vec<String> {
        Literals::new(literals)
            .of_step("candidate", "train")
            .of_step("evaluation", "evaluate")
            .name("model", "a model")
            .each("description", |_: String| Ok(()))
            .each("tags", |_: BTreeMap<String, String>| Ok(()))
            .problems()
    }

    async fn run(&self, step: &StepContext) -> Result<Value, StepError> {
        let with: With = read(&step.with)?;
        let message = with.request(step);
        let registry = &step.tools.registry;
        let version = step
            .patiently("the registry", || registry.create_model_version(message.clone()))
            .await
            .map_err(|error| StepError::of(&error))?;
        let reference = format!("{}/{}", version.name, version.version);
        tracing::info!(version = reference, "model version registered");
        outputs(&Outputs {
            model: version.name,
            version: version.version,
            reference,
        })
    }
}

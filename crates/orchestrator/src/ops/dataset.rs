//! `dataset`: resolves a reference to a fixed version of a dataset, so that every step after it reads the same rows.

use async_trait::async_trait;
use modelyard_common::name::check_name;
use modelyard_proto::registry::v1::DatasetVersion;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Literals, Op, OpShape, StepContext, StepError, keys, outputs, read};

/// Takes `dataset`: `NAME@latest` or `NAME/VERSION`.
pub(crate) struct Dataset;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct With {
    dataset: String,
}

#[derive(Serialize)]
struct Outputs {
    name: String,
    version: u32,
    /// `NAME/VERSION`.
    reference: String,
    digest: String,
    rows: u64,
    /// How many files it has.
    files: usize,
}

/// A dataset as it is written: `NAME@latest` or `NAME/VERSION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DatasetReference {
    pub(super) name: String,
    /// None: the newest.
    pub(super) version: Option<u32>,
}

impl DatasetReference {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let refuse = || format!("`{text}` names no dataset: write NAME@latest or NAME/VERSION");
        let (name, version) = if let Some(name) = text.strip_suffix("@latest") {
            (name, None)
        } else {
            let (name, version) = text.split_once('/').ok_or_else(refuse)?;
            let version: u32 = version.parse().map_err(|_| refuse())?;
            if version == 0 {
                return Err(refuse());
            }
            (name, Some(version))
        };
        check_name("a dataset", name).map_err(|error| error.to_string())?;
        Ok(Self {
            name: name.to_owned(),
            version,
        })
    }

    /// The version that it means at this moment.
    pub(super) async fn get(&self, step: &StepContext) -> Result<DatasetVersion, StepError> {
        let registry = &step.tools.registry;
        let version = self.version.unwrap_or(0);
        step.patiently("the registry", || {
            registry.dataset_version(&step.project, &self.name, version)
        })
        .await
        .map_err(|error| StepError::of(&error))
    }
}

/// What other ops take as their dataset: this op's outputs, or `NAME/VERSION`.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum DatasetInput {
    /// The outputs of a step.
    Outputs {
        /// `NAME/VERSION`.
        reference: String,
    },
    /// `NAME/VERSION` or `NAME@latest`.
    Text(String),
}

impl DatasetInput {
    pub(super) fn reference(&self) -> Result<DatasetReference, String> {
        let (Self::Outputs { reference: text } | Self::Text(text)) = self;
        DatasetReference::parse(text)
    }
}

#[async_trait]
impl Op for Dataset {
    fn name(&self) -> &'static str {
        "dataset"
    }

    fn shape(&self) -> OpShape {
        OpShape {
            keys: Some(keys(&["dataset"], &[])),
            outputs: Some(&["name", "version", "reference", "digest", "rows", "files"]),
            heavy: false,
        }
    }

    fn check(&self, literals: &Map<String, Value>) -> Vec<String> {
        Literals::new(literals)
            .each("dataset", |text: String| DatasetReference::parse(&text).map(drop))
            .problems()
    }

    async fn run(&self, step: &StepContext) -> Result<Value, StepError> {
        let with: With = read(&step.with)?;
        let reference = DatasetReference::parse(&with.dataset).map_err(StepError::Fail)?;
        let version = reference.get(step).await?;
        outputs(&Outputs {
            reference: format!("{}/{}", version.name, version.version),
            name: version.name,
            version: version.version,
            digest: version.digest,
            rows: version.rows,
            files: version.files.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_and_nonsense_is_refused() {
        let latest = DatasetReference::parse("flights@latest");
        assert_eq!(latest.map(|reference| reference.version), Ok(None));
        let fixed = DatasetReference::parse("flights/12");
        assert_eq!(
            fixed.map(|reference| (reference.name, reference.version)),
            Ok(("flights".to_owned(), Some(12)))
        );
        for bad in [
            "flights",
            "flights/0",
            "flights/x",
            "flights@newest",
            "../x/1",
            "@latest",
            "a/b/1",
        ] {
            assert!(DatasetReference::parse(bad).is_err(), "{bad}");
        }
    }
}

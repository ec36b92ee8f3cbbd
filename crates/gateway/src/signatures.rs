//! Whose signature models must have to be served.

use std::{fs, path::Path};

use modelyard_artifacts::{
    ProjectArtifacts,
    signing::{Bundle, Files, MAX_BUNDLE_BYTES, ONLY_FILE, PublicKey, SigningError},
};

use crate::{
    config::SignatureConfig,
    error::{Error, Result},
    loader::{Description, ModelKey},
};

/// Stands for all projects in the configuration.
const ALL: &str = "*";

/// The keys that are trusted, and for which projects that counts.
pub(crate) struct Signatures {
    projects: Vec<String>,
    keys: Vec<PublicKey>,
}

impl Signatures {
    /// Reads the keys of a configuration.
    ///
    /// # Errors
    /// `Config` naming the key that cannot be used.
    pub(crate) fn open(config: &SignatureConfig) -> Result<Self> {
        let keys = config.keys.iter().map(|path| {
            let unusable = |problem: String| Error::Config {
                detail: format!(
                    "the gateway's configuration: the key `{}` of signatures.keys cannot be used: {problem}",
                    path.display()
                ),
            };
            let text = fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
            PublicKey::from_pem(&text).map_err(|error| unusable(error.to_string()))
        });
        Ok(Self {
            projects: config.projects.clone(),
            keys: keys.collect::<Result<_>>()?,
        })
    }

    fn are_wanted_of(&self, project: &str) -> bool {
        let mut projects = self.projects.iter();
        projects.any(|wanted| wanted == ALL || wanted == project)
    }

    /// Checks that a model's files are those that a trusted key has signed, where that is wanted of its project. The bundle is
    /// kept in a folder of files, so that it is there while the storage is not.
    ///
    /// # Errors
    /// `NotSigned`, `Signature`, or `Artifact` if the bundle cannot be fetched.
    pub(crate) async fn check(
        &self,
        artifacts: &ProjectArtifacts,
        key: &ModelKey,
        description: Option<&Description>,
        folder: &Path,
    ) -> Result<()> {
        if !self.are_wanted_of(&key.endpoint.project) {
            return Ok(());
        }
        let bundle = key.bundle.ok_or(Error::NotSigned)?;
        let path = artifacts.open_local(bundle, folder).await?;
        let file = tokio::fs::metadata(&path).await.map_err(Error::io(&path))?;
        if file.len() > MAX_BUNDLE_BYTES {
            let problem = format!("it has more than {MAX_BUNDLE_BYTES} bytes");
            return Err(SigningError::InvalidBundle { problem }.into());
        }
        let content = tokio::fs::read(&path).await.map_err(Error::io(&path))?;
        let bundle = Bundle::read(&content)?;
        bundle.verify(&self.keys)?;
        let files: Files = match description {
            Some(Description::Mlflow(saved)) => {
                let places = saved.places()?.into_iter();
                places
                    .map(|(digest, place)| (place.to_string_lossy().into_owned(), digest))
                    .collect()
            }
            _ => Files::from([(ONLY_FILE.to_owned(), key.digest)]),
        };
        Ok(bundle.check(&files)?)
    }
}

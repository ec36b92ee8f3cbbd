//! The storage root: a local folder, an S3 bucket or memory.

use std::{
    fmt,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use http::Method;
use modelyard_common::config::Secret;
use object_store::{
    ObjectStore,
    aws::{AmazonS3, AmazonS3Builder},
    memory::InMemory,
    path::Path as ObjectPath,
    prefix::PrefixStore,
    signer::Signer as _,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    keys::{EncryptionConfig, KeyRing},
    local::{DurableFolder, UPLOADS},
};

const EXPECTED_URL: &str = "write an absolute folder path, `file:///path`, `s3://bucket/prefix` or `memory:`";

/// Where objects are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StorageConfig {
    /// An absolute folder path or `file:///path` (created where missing), `s3://bucket/prefix`, or `memory:` (lost when
    /// the process ends).
    pub url: String,
    /// Settings of an S3-compatible storage, where `url` names one.
    #[serde(default)]
    pub s3: S3Config,
    /// How artifacts are encrypted at rest. Without it they are stored as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptionConfig>,
}

impl StorageConfig {
    /// The storage in a local folder.
    #[must_use]
    pub fn folder(path: &FilePath) -> Self {
        Self {
            url: path.display().to_string(),
            s3: S3Config::default(),
            encryption: None,
        }
    }

    /// The storage in memory, for tests.
    #[must_use]
    pub fn memory() -> Self {
        Self {
            url: "memory:".to_owned(),
            s3: S3Config::default(),
            encryption: None,
        }
    }
}

/// How to reach an S3-compatible storage. What is left out comes from the environment as AWS's own tools read it
/// (`AWS_REGION`, `AWS_ACCESS_KEY_ID`, a web identity, the machine's role).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct S3Config {
    /// The URL of the service, such as `http://127.0.0.1:9000`; AWS's own where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The region, such as `eu-central-1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whether an endpoint without TLS is accepted.
    pub allow_http: bool,
    /// The access key's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// The access key's secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<Secret>,
    /// Whether clients that ask for it fetch artifacts from the storage itself, by addresses that hold for five minutes, or as
    /// long as they ask for, a week at most. They must reach the storage, and nobody verifies what they read. Encrypted artifacts
    /// always come through this server.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub presigned_downloads: bool,
}

/// An opened storage root. Cheap to clone.
#[derive(Clone)]
pub struct Storage {
    store: Arc<dyn ObjectStore>,
    folder: Option<Arc<DurableFolder>>,
    place: Arc<str>,
    keys: Option<Arc<KeyRing>>,
    signer: Option<Arc<Presigner>>,
}

/// Makes addresses by which somebody without keys fetches an object.
struct Presigner {
    bucket: AmazonS3,
    prefix: ObjectPath,
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({})", self.place)
    }
}

impl Storage {
    /// Opens the storage; a missing local folder is created, a remote one is not contacted yet (see [`Storage::check`]).
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] or [`Error::InvalidKeyFile`], or the local folder cannot be created or written.
    pub fn open(config: &StorageConfig) -> Result<Self> {
        let keys = config.encryption.as_ref();
        let keys = keys.map(|encryption| KeyRing::read(&encryption.key_file)).transpose()?;
        let mut storage = Self::open_place(config)?;
        storage.keys = keys.map(Arc::new);
        Ok(storage)
    }

    fn open_place(config: &StorageConfig) -> Result<Self> {
        let url = config.url.trim();
        if let Some(folder) = folder_of(url) {
            return Self::open_folder(&folder);
        }
        if url == "memory:" {
            return Ok(Self {
                store: Arc::new(InMemory::new()),
                folder: None,
                place: "memory:".into(),
                keys: None,
                signer: None,
            });
        }
        if let Some(location) = url.strip_prefix("s3://") {
            return Self::open_s3(url, location, &config.s3);
        }
        Err(invalid(url, EXPECTED_URL))
    }

    fn open_folder(folder: &FilePath) -> Result<Self> {
        let folder = DurableFolder::open(folder).map_err(|error| Error::of_file(folder, error))?;
        let folder = Arc::new(folder);
        Ok(Self {
            place: folder.root().display().to_string().into(),
            store: Arc::clone(&folder) as Arc<dyn ObjectStore>,
            folder: Some(folder),
            keys: None,
            signer: None,
        })
    }

    fn open_s3(url: &str, location: &str, config: &S3Config) -> Result<Self> {
        let (bucket, prefix) = location.split_once('/').unwrap_or((location, ""));
        if bucket.is_empty() || bucket.contains(['@', ':', '?']) {
            // The text could hold a key, so that it is not repeated.
            return Err(invalid(
                "s3://...",
                "write `s3://bucket/prefix`, and keys as settings beside it",
            ));
        }
        let prefix = ObjectPath::parse(prefix).map_err(|error| invalid(url, error))?;
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
        if let Some(endpoint) = &config.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(region) = &config.region {
            builder = builder.with_region(region);
        }
        if config.allow_http {
            builder = builder.with_allow_http(true);
        }
        match (&config.access_key_id, &config.secret_access_key) {
            (Some(id), Some(secret)) => {
                builder = builder.with_access_key_id(id).with_secret_access_key(secret.reveal());
            }
            (None, None) => {}
            _ => {
                return Err(invalid(
                    url,
                    "set both `access_key_id` and `secret_access_key`, or neither",
                ));
            }
        }
        let bucket = builder.build().map_err(|error| invalid(url, error))?;
        let signer = config.presigned_downloads.then(|| {
            Arc::new(Presigner {
                bucket: bucket.clone(),
                prefix: prefix.clone(),
            })
        });
        let store: Arc<dyn ObjectStore> = if prefix == ObjectPath::default() {
            Arc::new(bucket)
        } else {
            Arc::new(PrefixStore::new(bucket, prefix))
        };
        Ok(Self {
            store,
            folder: None,
            place: url.into(),
            keys: None,
            signer,
        })
    }

    /// The object store whose root is this storage's root.
    #[must_use]
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store)
    }

    /// Where it is, for messages: the folder or the url.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Whether artifacts can be fetched from the storage itself.
    #[must_use]
    pub const fn presigns(&self) -> bool {
        self.signer.is_some() && self.keys.is_none()
    }

    /// An address by which anybody fetches an object for some time; none: it has to come through this server.
    pub(crate) async fn presign(&self, path: &ObjectPath, valid_for: Duration) -> Result<Option<String>> {
        let Some(signer) = self.signer.as_ref().filter(|_| self.keys.is_none()) else {
            return Ok(None);
        };
        let path = signer.prefix.parts().chain(path.parts()).collect();
        let url = signer.bucket.signed_url(Method::GET, &path, valid_for).await;
        url.map(|url| Some(url.into()))
            .map_err(|error| Error::of_store(&self.place, error))
    }

    /// The keys that blobs are encrypted with, if they are.
    pub(crate) fn keys(&self) -> Option<&KeyRing> {
        self.keys.as_deref()
    }

    /// Whether a rename is one step, however large the object is.
    #[must_use]
    pub const fn renames(&self) -> bool {
        self.folder.is_some()
    }

    /// Whether the storage answers; on a local folder, whether it takes writes.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Denied`] or [`Error::Unavailable`].
    pub async fn check(&self) -> Result<()> {
        if let Some(folder) = self.folder.clone() {
            let root = folder.root().to_owned();
            return tokio::task::spawn_blocking(move || folder.check())
                .await
                .map_err(|error| Error::of_task(&root, error))?
                .map_err(|error| Error::of_file(&root, error));
        }
        // One page at most of a folder that is almost always empty.
        match self.store.list(Some(&ObjectPath::from(UPLOADS))).next().await {
            Some(Err(error)) => Err(Error::of_store(&self.place, error)),
            Some(Ok(_)) | None => Ok(()),
        }
    }
}

fn folder_of(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("file://").unwrap_or(url);
    path.starts_with('/').then(|| PathBuf::from(path))
}

fn invalid(url: &str, problem: impl fmt::Display) -> Error {
    Error::InvalidConfig {
        url: url.to_owned(),
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use modelyard_common::Fault as _;

    use super::*;

    fn open(url: &str, s3: S3Config) -> Result<Storage> {
        Storage::open(&StorageConfig {
            url: url.to_owned(),
            s3,
            encryption: None,
        })
    }

    #[test]
    fn what_is_no_storage_is_refused_with_the_remedy() {
        for url in [
            "",
            "data",
            "./data",
            "file://data",
            "http://x",
            "s3://",
            "s3:///x",
            "memory",
        ] {
            let error = open(url, S3Config::default()).unwrap_err();
            assert_eq!(error.reason(), "INVALID_STORAGE_CONFIG", "{url}");
        }
        let error = open("s3://key:hidden@bucket/x", S3Config::default()).unwrap_err();
        assert!(!error.to_string().contains("hidden"));
        let half = S3Config {
            access_key_id: Some("id".to_owned()),
            ..S3Config::default()
        };
        assert!(
            open("s3://bucket", half)
                .unwrap_err()
                .to_string()
                .contains("or neither")
        );
    }

    #[tokio::test]
    async fn folders_are_created_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("a/b");
        for url in [root.display().to_string(), format!("file://{}", root.display())] {
            let storage = open(&url, S3Config::default()).unwrap();
            storage.check().await.unwrap();
            assert!(root.is_dir());
        }
        let file = folder.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let error = Storage::open(&StorageConfig::folder(&file)).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }

    #[test]
    fn unknown_settings_are_errors_and_secrets_are_not_printed() {
        assert!(serde_json::from_str::<StorageConfig>(r#"{"url": "memory:", "bucket": "x"}"#).is_err());
        let text = r#"{"url": "s3://b", "s3": {"access_key_id": "i", "secret_access_key": "hidden"}}"#;
        let config: StorageConfig = serde_json::from_str(text).unwrap();
        assert!(!format!("{config:?}").contains("hidden"));
        assert!(!serde_json::to_string(&config).unwrap().contains("hidden"));

        let text = r#"{"url":"memory:","s3":{"allow_http":false},"encryption":{"key_file":"/etc/keys"}}"#;
        let config: StorageConfig = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&config).unwrap(), text);
        assert!(serde_json::from_str::<StorageConfig>(&text.replace("key_file", "key")).is_err());
        assert!(
            !serde_json::to_string(&StorageConfig::memory())
                .unwrap()
                .contains("encryption")
        );
    }
}

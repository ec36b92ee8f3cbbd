//! Datasets: files become immutable versions.

use bytes::Bytes;
use modelyard_artifacts::Digest;
use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};
use modelyard_common::name::check_name;
use modelyard_stats::Profile;
use serde::Deserialize;
use utoipa::ToSchema;

use super::Registry;
use crate::{
    error::{Error, Result},
    files::table::{Table, read_table},
    metrics,
    model::{
        column::{Column, unite},
        dataset::{
            Dataset, DatasetFile, DatasetVersion, DatasetVersionSummary, FileReference, MAX_DESCRIPTION_BYTES,
            MAX_FILES, check_file_name, manifest_digest, new_files,
        },
        page::{Page, PageRequest},
        run::check_text,
    },
    store::{Inserted, NewDatasetVersion},
};

/// The largest profile that is handed out, in bytes.
pub const MAX_PROFILE_BYTES: u64 = 256 << 20;
/// How often a version is made anew when others add versions meanwhile.
const ATTEMPTS: u32 = 8;

/// A dataset version to be created.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DatasetVersionRequest {
    /// Its files, uploaded before.
    pub files: Vec<FileReference>,
    /// Whether the files are added to those of the newest version.
    #[serde(default)]
    pub append: bool,
    /// What it is.
    #[serde(default)]
    pub description: String,
}

/// What is known of a version while its files are read.
struct Draft {
    columns: Vec<Column>,
    profile: Profile,
    files: Vec<DatasetFile>,
    /// What the columns are those of, for messages.
    origin: String,
}

impl Draft {
    fn add(&mut self, file: &FileReference, size_bytes: u64, table: &Table) -> Result<()> {
        unite(&mut self.columns, &self.origin, &table.columns, &file.name)?;
        self.profile.merge(&table.profile).map_err(|source| Error::Profile {
            file: file.name.clone(),
            source,
        })?;
        self.files.push(dataset_file(file, size_bytes, table));
        Ok(())
    }
}

fn dataset_file(file: &FileReference, size_bytes: u64, table: &Table) -> DatasetFile {
    DatasetFile {
        name: file.name.clone(),
        digest: file.digest.clone(),
        size_bytes,
        rows: table.rows,
        format: table.format,
    }
}

impl Registry {
    /// Makes a dataset version of files. A manifest that equals the newest version's is that version; whether it is new.
    #[tracing::instrument(name = "registry.create_dataset_version", skip_all, fields(%project, %dataset))]
    pub async fn create_dataset_version(
        &self,
        caller: &Caller,
        project: &str,
        dataset: &str,
        request: &DatasetVersionRequest,
    ) -> Result<(DatasetVersion, bool)> {
        self.enter(
            caller,
            Action::DatasetWrite,
            Resource::named(Kind::Dataset, project, dataset),
        )
        .await?;
        check_name("a dataset", dataset)?;
        check_text(
            "description of dataset",
            dataset,
            &request.description,
            MAX_DESCRIPTION_BYTES,
        )?;
        check_files(&request.files)?;
        for _ in 0..ATTEMPTS {
            let newest = self
                .stores
                .datasets
                .find_dataset_version(project, dataset, None)
                .await?;
            let base = newest.filter(|_| request.append);
            let present = base.as_ref().map_or(&[][..], |base| base.files.as_slice());
            let added = new_files(present, &request.files)?;
            match base {
                Some(base) if added.is_empty() => return Ok((base, false)),
                base => {
                    if let Some(made) = self
                        .make_version(caller, project, dataset, request, base, added)
                        .await?
                    {
                        return Ok(made);
                    }
                }
            }
        }
        Err(Error::Contended {
            what: "dataset",
            name: dataset.to_owned(),
        })
    }

    /// Makes a version of a base and new files; None: there is another newest version meanwhile.
    async fn make_version(
        &self,
        caller: &Caller,
        project: &str,
        dataset: &str,
        request: &DatasetVersionRequest,
        base: Option<DatasetVersion>,
        added: Vec<FileReference>,
    ) -> Result<Option<(DatasetVersion, bool)>> {
        let present = base.as_ref().map_or(&[][..], |base| base.files.as_slice());
        if present.len() + added.len() > MAX_FILES {
            return Err(Error::request(format!(
                "dataset `{dataset}` would have {} files: join small files, a version takes at most {MAX_FILES}",
                present.len() + added.len()
            )));
        }
        let present = present.iter().map(|file| (file.name.as_str(), file.digest.as_str()));
        let new = added.iter().map(|file| (file.name.as_str(), file.digest.as_str()));
        let digest = manifest_digest(present.chain(new));
        if !request.append
            && let Some(newest) = self
                .stores
                .datasets
                .find_dataset_version(project, dataset, None)
                .await?
            && newest.summary.digest == digest
        {
            return Ok(Some((newest, false)));
        }
        let storage = self.stores.blobs.storage_view(project).await?;
        // With append the caller's picture is the newest version, also when there is none.
        let base_version = request
            .append
            .then(|| base.as_ref().map_or(0, |base| base.summary.version));
        let draft = self.read_files(project, dataset, base, added).await?;
        let profile = draft.profile.to_json().map_err(|source| Error::Profile {
            file: dataset.to_owned(),
            source,
        })?;
        let profile = self.blobs.project(project)?.put_bytes(profile).await?;
        let version = NewDatasetVersion {
            project: project.to_owned(),
            dataset: dataset.to_owned(),
            description: request.description.clone(),
            digest,
            columns: draft.columns,
            profile_digest: profile.digest.to_string(),
            profile_size_bytes: profile.size_bytes,
            removals: storage.removals,
            files: draft.files,
            base: base_version,
            event: caller.event(
                Action::DatasetWrite,
                Operation::Create,
                &Resource::named(Kind::Dataset, project, dataset),
            ),
            now: self.clock.now(),
        };
        match self.stores.datasets.insert_dataset_version(&version).await? {
            Inserted::Created(version) => {
                ::metrics::counter!(metrics::DATASET_VERSIONS).increment(1);
                self.desired.notify();
                Ok(Some((version, true)))
            }
            Inserted::Unchanged(version) => Ok(Some((version, false))),
            Inserted::Moved => Ok(None),
        }
    }

    /// Reads the new files, one at a time, and joins them to the base.
    async fn read_files(
        &self,
        project: &str,
        dataset: &str,
        base: Option<DatasetVersion>,
        added: Vec<FileReference>,
    ) -> Result<Draft> {
        let mut draft = match base {
            None => None,
            Some(base) => Some(self.draft_of(project, dataset, base).await?),
        };
        for file in added {
            let what = format!("file `{}`:", file.name);
            let (digest, size_bytes) = self.blob_size(project, &what, &file.digest).await?;
            let name = file.name.clone();
            let table = self
                .import("dataset", project, digest, move |file| read_table(file, &name))
                .await?;
            match &mut draft {
                Some(draft) => draft.add(&file, size_bytes, &table)?,
                None => {
                    draft = Some(Draft {
                        files: vec![dataset_file(&file, size_bytes, &table)],
                        columns: table.columns,
                        profile: table.profile,
                        origin: file.name,
                    });
                }
            }
        }
        draft.ok_or_else(|| {
            Error::request(format!(
                "dataset `{dataset}` needs at least one file: name some in `files`"
            ))
        })
    }

    async fn draft_of(&self, project: &str, dataset: &str, base: DatasetVersion) -> Result<Draft> {
        let profile = self.read_profile(project, &base.summary).await?;
        let profile = std::str::from_utf8(&profile)
            .map_err(|error| modelyard_db::Error::value("profile of a dataset", &error.to_string()))?;
        let profile = Profile::from_json(profile).map_err(|source| Error::Profile {
            file: dataset.to_owned(),
            source,
        })?;
        Ok(Draft {
            origin: format!("{dataset}/{}", base.summary.version),
            columns: base.summary.columns,
            profile,
            files: base.files,
        })
    }

    async fn read_profile(&self, project: &str, version: &DatasetVersionSummary) -> Result<Bytes> {
        let digest: Digest = version.profile_digest.parse()?;
        Ok(self
            .blobs
            .project(project)?
            .get_bytes(digest, MAX_PROFILE_BYTES)
            .await?)
    }

    /// A version; None: the newest.
    pub async fn get_dataset_version(
        &self,
        caller: &Caller,
        project: &str,
        dataset: &str,
        version: Option<u32>,
    ) -> Result<DatasetVersion> {
        self.enter(
            caller,
            Action::DatasetRead,
            Resource::named(Kind::Dataset, project, dataset),
        )
        .await?;
        check_name("a dataset", dataset)?;
        let found = self
            .stores
            .datasets
            .find_dataset_version(project, dataset, version)
            .await?;
        found.ok_or_else(|| match version {
            Some(version) => Error::not_found(
                "dataset version",
                format!("{dataset}/{version}"),
                "list the versions to see which there are",
            ),
            None => Error::not_found("dataset", dataset, "push its first version"),
        })
    }

    /// The profile of a version (JSON).
    pub async fn get_dataset_profile(
        &self,
        caller: &Caller,
        project: &str,
        dataset: &str,
        version: Option<u32>,
    ) -> Result<Bytes> {
        let version = self.get_dataset_version(caller, project, dataset, version).await?;
        self.read_profile(project, &version.summary).await
    }

    /// The datasets by name.
    pub async fn list_datasets(
        &self,
        caller: &Caller,
        project: &str,
        page: &PageRequest<String>,
    ) -> Result<Page<Dataset>> {
        self.enter(caller, Action::DatasetRead, Resource::project(project))
            .await?;
        self.stores.datasets.list_datasets(project, page).await
    }

    /// The versions of a dataset, newest first.
    pub async fn list_dataset_versions(
        &self,
        caller: &Caller,
        project: &str,
        dataset: &str,
        page: &PageRequest<u64>,
    ) -> Result<Page<DatasetVersionSummary>> {
        self.enter(
            caller,
            Action::DatasetRead,
            Resource::named(Kind::Dataset, project, dataset),
        )
        .await?;
        check_name("a dataset", dataset)?;
        let versions = self
            .stores
            .datasets
            .list_dataset_versions(project, dataset, page)
            .await?;
        versions.ok_or_else(|| Error::not_found("dataset", dataset, "push its first version"))
    }
}

fn check_files(files: &[FileReference]) -> Result<()> {
    if files.is_empty() || files.len() > MAX_FILES {
        return Err(Error::request(format!(
            "files has {} entries: name 1 to {MAX_FILES}",
            files.len()
        )));
    }
    for file in files {
        check_file_name(&file.name)?;
        file.digest.parse::<Digest>()?;
    }
    Ok(())
}

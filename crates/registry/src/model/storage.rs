//! What a project has stored, and how much it may.

use modelyard_artifacts::Digest;
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::{Error, Result};

/// A blob and its size, as rows name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedBlob {
    /// Its digest.
    pub digest: String,
    /// Its size in bytes.
    pub size_bytes: u64,
}

impl NamedBlob {
    /// A blob.
    #[must_use]
    pub fn new(digest: Digest, size_bytes: u64) -> Self {
        Self {
            digest: digest.to_string(),
            size_bytes,
        }
    }
}

/// How much a project has stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Quota {
    /// How many bytes it may store; none: as many as there is room for.
    pub limit_bytes: Option<u64>,
    /// How many bytes it has stored: each content once, however many files have it, and also what was deleted and not collected yet.
    pub used_bytes: u64,
    /// How many different contents these are.
    pub blob_count: u64,
}

/// What a project has stored, as an upload begins.
#[derive(Debug, Clone, Copy, Default)]
pub struct StorageView {
    /// How much it has and may have.
    pub quota: Quota,
    /// How many beginnings and endings of removals of blobs were counted. Rows that name a blob are refused if it is being removed,
    /// or its removal began or ended since then.
    pub removals: i64,
}

impl StorageView {
    /// How many bytes an upload may bring: none is left where the project has stored all that it may.
    pub fn room(&self, project: &str, most: u64) -> Result<u64> {
        match self.quota.limit_bytes {
            None => Ok(most),
            Some(limit) if self.quota.used_bytes >= limit => Err(over_quota(project, limit)),
            Some(limit) => Ok(most.min(limit - self.quota.used_bytes)),
        }
    }

    /// The refusal of what was too large: because of the quota, if that was the least limit.
    pub fn refusal(&self, project: &str, most: u64, error: modelyard_artifacts::Error) -> Error {
        match (self.quota.limit_bytes, &error) {
            (Some(limit), modelyard_artifacts::Error::TooLarge { limit_bytes }) if *limit_bytes < most => {
                over_quota(project, limit)
            }
            _ => error.into(),
        }
    }
}

/// A project that would store more than it may.
pub(crate) fn over_quota(project: &str, limit_bytes: u64) -> Error {
    Error::Quota {
        project: project.to_owned(),
        limit_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_room_is_left_in_a_full_project() {
        let view = |limit_bytes, used_bytes| StorageView {
            quota: Quota {
                limit_bytes,
                used_bytes,
                blob_count: 1,
            },
            removals: 0,
        };
        assert_eq!(view(None, 1000).room("p", 10).unwrap(), 10);
        assert_eq!(view(Some(1005), 1000).room("p", 10).unwrap(), 5);
        assert!(view(Some(1000), 1000).room("p", 10).is_err());
        assert!(view(Some(10), 1000).room("p", 10).is_err());
    }
}

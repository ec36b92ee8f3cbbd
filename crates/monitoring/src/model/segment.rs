//! Segments of the inference log, as gateways hand them over.

use chrono::NaiveDate;
use modelyard_common::{Timestamp, name::check_name};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The most files of a segment.
pub const MAX_SEGMENT_FILES: usize = 500;
/// The folder of a file: the partition that all its rows belong to.
const PARTITION: &str = "event_date=";
/// What the name of a file ends with.
const EXTENSION: &str = ".parquet";

/// A Parquet file of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentFile {
    /// Where it is below the table's folder: `event_date=YYYY-MM-DD/NAME.parquet`.
    pub path: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its number of rows.
    pub rows: u64,
    /// The event time of its earliest row.
    pub min_event_time: Timestamp,
    /// The event time of its latest row.
    pub max_event_time: Timestamp,
}

/// A segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its id, unique for the endpoint.
    pub id: String,
    /// Its files.
    pub files: Vec<SegmentFile>,
}

impl SegmentFile {
    /// Whether it is what its path says.
    fn problem(&self) -> Option<&'static str> {
        // A gateway hands over files of the endpoint's own table, and cannot name any other: no part can be `..`.
        let parts = || {
            let (date, name) = self.path.strip_prefix(PARTITION)?.split_once('/')?;
            check_name("a file", name.strip_suffix(EXTENSION)?).ok()?;
            NaiveDate::parse_from_str(date, "%Y-%m-%d").ok()
        };
        let Some(date) = parts() else {
            return Some("has a path other than `event_date=YYYY-MM-DD/NAME.parquet`");
        };
        if self.rows == 0 || self.size_bytes == 0 {
            return Some("is empty: leave it out");
        }
        if self.min_event_time > self.max_event_time {
            return Some("has a latest event time before its earliest");
        }
        // Queries look for rows by these dates only.
        let times = [self.min_event_time, self.max_event_time];
        if times.iter().any(|time| time.to_datetime().date_naive() != date) {
            return Some("has rows of another date than its path");
        }
        None
    }
}

impl Segment {
    /// Checks everything that can be checked without reading the files.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn check(&self) -> Result<()> {
        check_name("a segment", &self.id)?;
        if self.files.is_empty() || self.files.len() > MAX_SEGMENT_FILES {
            return Err(Error::request(format!(
                "segment `{}` has {} files: a segment has 1 to {MAX_SEGMENT_FILES}",
                self.id,
                self.files.len()
            )));
        }
        match self.files.iter().find_map(|file| Some((file, file.problem()?))) {
            None => Ok(()),
            Some((file, problem)) => {
                let path: String = file.path.chars().take(256).flat_map(char::escape_default).collect();
                Err(Error::request(format!(
                    "file `{path}` of segment `{}` {problem}",
                    self.id
                )))
            }
        }
    }

    /// The event time of its earliest row.
    #[must_use]
    pub fn min_event_time(&self) -> Timestamp {
        self.files
            .iter()
            .map(|file| file.min_event_time)
            .min()
            .unwrap_or_default()
    }

    /// The event time of its latest row.
    #[must_use]
    pub fn max_event_time(&self) -> Timestamp {
        self.files
            .iter()
            .map(|file| file.max_event_time)
            .max()
            .unwrap_or_default()
    }

    /// Its number of rows.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, rows: u64, times: [&str; 2]) -> SegmentFile {
        let [min_event_time, max_event_time] = times.map(|time| time.parse().unwrap());
        SegmentFile {
            path: path.to_owned(),
            size_bytes: 10,
            rows,
            min_event_time,
            max_event_time,
        }
    }

    #[test]
    fn what_would_be_read_wrongly_is_refused() {
        let path = "event_date=2013-03-01/s-0.parquet";
        let times = ["2013-03-01T00:00:00Z", "2013-03-01T23:59:59Z"];
        let segment = |files: Vec<SegmentFile>| Segment {
            id: "s".to_owned(),
            files,
        };
        assert!(segment(vec![file(path, 1, times)]).check().is_ok());
        let wrong = [
            segment(vec![]),
            segment(vec![file("s-0.parquet", 1, times)]),
            segment(vec![file("event_date=2013-13-01/s-0.parquet", 1, times)]),
            segment(vec![file("event_date=2013-03-01/../../x/s-0.parquet", 1, times)]),
            segment(vec![file("event_date=2013-03-01/..", 1, times)]),
            segment(vec![file("event_date=2013-03-01/s-0.csv", 1, times)]),
            segment(vec![file(path, 0, times)]),
            segment(vec![file(path, 1, [times[1], times[0]])]),
            segment(vec![file(path, 1, [times[0], "2013-03-02T00:00:00Z"])]),
            Segment {
                id: "../s".to_owned(),
                files: vec![file(path, 1, times)],
            },
        ];
        for segment in wrong {
            assert!(segment.check().is_err(), "{segment:?}");
        }
    }
}

//! What this crate refuses.

/// A refusal: what was wrong, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two parts of one column hold values of different kinds.
    #[error("column `{column}` holds {found} where {expected} was seen before: give it one type throughout")]
    KindMismatch {
        /// The column's name.
        column: String,
        /// The kind seen first.
        expected: crate::profile::ColumnKind,
        /// The kind that does not fit it.
        found: crate::profile::ColumnKind,
    },
    /// Two histograms with different edges cannot be added.
    #[error("column `{column}` was counted over two different binnings: profile both parts with the same one")]
    BinningMismatch {
        /// The column's name.
        column: String,
    },
    /// A stored profile was written by another version.
    #[error("profile has version {found}, this build reads version {supported}: profile the data again")]
    ProfileVersion {
        /// The version in the stored profile.
        found: u32,
        /// The version that this build writes and reads.
        supported: u32,
    },
    /// A stored profile contradicts itself.
    #[error("profile of column `{column}` is damaged ({reason}): profile the data again")]
    DamagedProfile {
        /// The column's name.
        column: String,
        /// What does not add up.
        reason: &'static str,
    },
    /// Text that is not a profile.
    #[error("profile is not valid JSON of a profile: {0}")]
    ProfileJson(#[from] serde_json::Error),
    /// An option out of its range.
    #[error("option `{option}` is {value}, it must be {must_be}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// What was given.
        value: String,
        /// The values that are allowed.
        must_be: &'static str,
    },
    /// A test that is not defined for a column of this kind.
    #[error("drift test `{test}` is not defined for column `{column}` of kind {kind}: choose {remedy}")]
    TestNotApplicable {
        /// The column's name.
        column: String,
        /// The test asked for.
        test: crate::drift::DriftTest,
        /// The column's kind.
        kind: crate::profile::ColumnKind,
        /// Tests that are defined for it.
        remedy: &'static str,
    },
    /// Two slices that must run in parallel do not.
    #[error("{left} has {left_len} values but {right} has {right_len}: they must be equally long")]
    LengthMismatch {
        /// Name of the first input.
        left: &'static str,
        /// Its length.
        left_len: usize,
        /// Name of the second input.
        right: &'static str,
        /// Its length.
        right_len: usize,
    },
    /// A value that no metric is defined for.
    #[error("{what} at row {row} is {value}, it must be {must_be}")]
    InvalidValue {
        /// What the value is (`score`, `label`, ...).
        what: &'static str,
        /// Its row, from 0.
        row: usize,
        /// The value.
        value: f64,
        /// The values that are allowed.
        must_be: &'static str,
    },
    /// A column of a type that the operation does not read.
    #[error("{what} has type {data_type}, it must be {must_be}")]
    UnsupportedType {
        /// What the column is.
        what: String,
        /// Its Arrow type.
        data_type: String,
        /// The types that are read.
        must_be: &'static str,
    },
    /// Arrow refused a conversion.
    #[error("column cannot be converted: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

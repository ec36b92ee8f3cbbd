//! What can go wrong in training.

/// Why a training run, a prediction or a split was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is out of its bounds or contradicts another one.
    #[error("training config: `{field}` {reason}")]
    Config {
        /// Name of the setting.
        field: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A column that the config or the model names is not in the data.
    #[error("unknown column `{column}` as {role}: the dataset has columns {}", known_columns(.known))]
    UnknownColumn {
        /// The name that was looked for.
        column: String,
        /// What the column was wanted for.
        role: &'static str,
        /// The columns that exist.
        known: Vec<String>,
    },
    /// A column cannot play its part.
    #[error("column `{column}` {reason}")]
    Column {
        /// Name of the column.
        column: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The data as a whole does not fit.
    #[error("{0}")]
    Data(String),
    /// The caller asked to stop.
    #[error("training was cancelled")]
    Cancelled,
    /// A fault of this program, not of the data.
    #[error("training failed: {0}")]
    Internal(String),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Column names shown in one message at most; a wide dataset would drown the message.
const MAX_COLUMNS_SHOWN: usize = 40;

fn known_columns(known: &[String]) -> String {
    let shown: Vec<String> = known
        .iter()
        .take(MAX_COLUMNS_SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    let shown = shown.join(", ");
    if known.len() > MAX_COLUMNS_SHOWN {
        return format!("{shown} and {} more", known.len() - MAX_COLUMNS_SHOWN);
    }
    shown
}

pub(crate) fn column(column: &str, reason: impl Into<String>) -> Error {
    Error::Column {
        column: column.to_owned(),
        reason: reason.into(),
    }
}

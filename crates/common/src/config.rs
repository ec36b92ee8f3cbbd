//! Configuration: defaults, then one TOML file, then the environment, then the command line. Unknown keys are errors.

use std::{fmt, path::Path};

use figment::{
    Figment,
    providers::{Env, Format, Serialized, Toml},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The prefix of environment variables: `MODELYARD__SECTION__KEY`.
pub const ENVIRONMENT_PREFIX: &str = "MODELYARD__";

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named is not there.
    #[error("the configuration file `{0}` does not exist: name another with --config, or leave it out")]
    Missing(String),
    /// A key or value is wrong.
    #[error("{0}")]
    Invalid(String),
}

/// Reads a configuration of type `T`: its defaults, then the TOML `file`, then the environment, then `overrides` (dotted
/// key and value, from the command line).
pub fn load<T>(file: Option<&Path>, overrides: &[(&str, figment::value::Value)]) -> Result<T, ConfigError>
where
    T: Default + Serialize + DeserializeOwned,
{
    let mut figment = Figment::from(Serialized::defaults(T::default()));
    if let Some(file) = file {
        if !file.is_file() {
            return Err(ConfigError::Missing(file.display().to_string()));
        }
        figment = figment.merge(Toml::file_exact(file));
    }
    figment = figment.merge(Env::prefixed(ENVIRONMENT_PREFIX).split("__"));
    for (key, value) in overrides {
        figment = figment.merge(Serialized::default(key, value));
    }
    figment.extract().map_err(|errors| {
        let lines: Vec<String> = errors.into_iter().map(|error| error.to_string()).collect();
        ConfigError::Invalid(lines.join("; "))
    })
}

/// A secret that is never printed. It is redacted when it is serialized, too.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the one place that needs it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// For `#[serde(with = "modelyard_common::config::duration")]`: a [`std::time::Duration`] written as `30s` or `10m`.
pub mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes the duration as text.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    /// Reads the duration from text.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|error| {
            D::Error::custom(format!(
                "`{text}` is not a duration ({error}): write it as in 30s or 10m"
            ))
        })
    }
}

/// For `#[serde(with = "modelyard_common::config::size")]`: a number of bytes written as `64MiB`.
pub mod size {
    use bytesize::ByteSize;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes the size as text that reads back as the same number.
    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let unit = UNITS
            .iter()
            .find(|(unit, _)| *value >= *unit && value.is_multiple_of(*unit));
        match unit {
            Some((unit, name)) => serializer.collect_str(&format_args!("{}{name}", value / unit)),
            None => serializer.collect_str(&format_args!("{value}B")),
        }
    }

    /// Reads the size from text.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse::<ByteSize>()
            .map(|size| size.as_u64())
            .map_err(|error| D::Error::custom(format!("`{text}` is not a size ({error}): write it as in 64MiB")))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Example {
        #[serde(with = "duration")]
        interval: Duration,
        #[serde(with = "size")]
        limit: u64,
        token: Secret,
    }

    impl Default for Example {
        fn default() -> Self {
            Self {
                interval: Duration::from_secs(30),
                limit: 64 << 20,
                token: Secret::default(),
            }
        }
    }

    fn read(toml: &str) -> Result<Example, ConfigError> {
        let file = std::env::temp_dir().join(format!("modelyard-config-{}.toml", uuid_of(toml)));
        std::fs::write(&file, toml).unwrap();
        let result = load(Some(&file), &[]);
        std::fs::remove_file(&file).unwrap();
        result
    }

    fn uuid_of(text: &str) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        (text, std::process::id()).hash(&mut hasher);
        hasher.finish()
    }

    #[test]
    fn units_are_read_and_written() {
        let example = read("interval = '10m'\nlimit = '1GiB'").unwrap();
        assert_eq!(example.interval, Duration::from_mins(10));
        assert_eq!(example.limit, 1 << 30);
        let json = serde_json::to_value(&example).unwrap();
        assert_eq!(json["interval"], "10m");
        assert_eq!(json["limit"], "1GiB");
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_named() {
        let error = read("intervall = '10m'").unwrap_err().to_string();
        assert!(error.contains("intervall"), "{error}");
        let error = read("interval = 'soon'").unwrap_err().to_string();
        assert!(error.contains("`soon` is not a duration"), "{error}");
    }

    #[test]
    fn secrets_are_never_printed() {
        let example = read("token = 'hunter2'").unwrap();
        assert_eq!(example.token.reveal(), "hunter2");
        assert!(!format!("{example:?}").contains("hunter2"));
        assert!(!serde_json::to_string(&example).unwrap().contains("hunter2"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load::<Example>(Some(Path::new("/nowhere/x.toml")), &[]).unwrap_err();
        assert!(error.to_string().contains("/nowhere/x.toml"));
    }
}

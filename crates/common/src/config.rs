//! Configuration: defaults, then one TOML file, then the environment, then the command line. Unknown keys are errors.

use std::{borrow::Cow, fmt, path::Path, time::Duration};

use bytesize::ByteSize;
use figment::{
    Figment,
    providers::{Env, Format, Serialized, Toml},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _},
};

/// The prefix of environment variables: `MODELYARD__SECTION__KEY`.
pub const ENVIRONMENT_PREFIX: &str = "MODELYARD__";

/// What stands between the sections and the key in the name of an environment variable.
pub const ENVIRONMENT_SEPARATOR: &str = "__";

const SECONDS_PER_DAY: u64 = 24 * 60 * 60;

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
    figment = figment.merge(Env::prefixed(ENVIRONMENT_PREFIX).split(ENVIRONMENT_SEPARATOR));
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

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "writeOnly": true})
    }
}

/// What a text must be like to be read as a duration, for the schema.
pub const DURATION_PATTERN: &str = concat!(
    "^([0-9]{1,9} ?(ns|nsec|nanos|us|usec|ms|msec|millis|s|secs?|seconds?|m|mins?|minutes?",
    "|h|hrs?|hours?|d|days?|w|wks?|weeks?|M|months?|y|yrs?|years?) ?){1,8}$"
);

/// For `#[serde(with = "duration")]`: a [`Duration`] written as `30s` or `10m`. It is a type and no module, so that the
/// schema of a field that is written by it comes from the same word.
#[derive(Debug)]
#[expect(non_camel_case_types, reason = "it stands where serde expects the name of a module")]
pub enum duration {}

impl duration {
    /// Writes the duration as text, in days and what is below: months and years have no fixed length.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        let days = value.as_secs() / SECONDS_PER_DAY;
        let rest = value.saturating_sub(Duration::from_secs(days * SECONDS_PER_DAY));
        let plural = if days == 1 { "" } else { "s" };
        match (days, rest.is_zero()) {
            (0, _) => serializer.collect_str(&humantime::format_duration(rest)),
            (_, true) => serializer.collect_str(&format_args!("{days}day{plural}")),
            (_, false) => {
                serializer.collect_str(&format_args!("{days}day{plural} {}", humantime::format_duration(rest)))
            }
        }
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

impl JsonSchema for duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": DURATION_PATTERN})
    }
}

/// What a text must be like to be read as a size, for the schema.
pub const SIZE_PATTERN: &str = "^([0-9]{1,12}|[0-9]{1,9}([.][0-9]{1,3})? ?([bB]|[kKmMgGtTpPeE][iI]?[bB]?))$";

/// For `#[serde(with = "size")]`: a number of bytes written as `64MiB`. A type for the reason that [`duration`] is one.
#[derive(Debug)]
#[expect(non_camel_case_types, reason = "it stands where serde expects the name of a module")]
pub enum size {}

impl size {
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

impl JsonSchema for size {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": SIZE_PATTERN})
    }
}

/// A type that is written and read as another is, where there may be none.
macro_rules! maybe {
    ($(#[$about:meta])* $name:ident, $of:literal, $value:ty, $schema:literal, $pattern:ident) => {
        $(#[$about])*
        #[derive(Debug)]
        #[expect(non_camel_case_types, reason = "it stands where serde expects the name of a module")]
        pub enum $name {}

        impl $name {
            /// Writes the value as text, if there is one.
            pub fn serialize<S: Serializer>(value: &Option<$value>, serializer: S) -> Result<S::Ok, S::Error> {
                #[derive(Serialize)]
                struct Written(#[serde(with = $of)] $value);
                value.map(Written).serialize(serializer)
            }

            /// Reads the value from text, if there is one.
            pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<$value>, D::Error> {
                #[derive(Deserialize)]
                struct Written(#[serde(with = $of)] $value);
                Ok(Option::<Written>::deserialize(deserializer)?.map(|written| written.0))
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $schema.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": ["string", "null"], "pattern": $pattern})
            }
        }
    };
}

maybe!(
    /// [`duration`], where there may be none; with `#[serde(default)]` beside it.
    maybe_duration, "duration", Duration, "MaybeDuration", DURATION_PATTERN
);
maybe!(
    /// [`size`], where there may be none; with `#[serde(default)]` beside it.
    maybe_size, "size", u64, "MaybeSize", SIZE_PATTERN
);

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, string::string_regex};
    use serde_json::json;

    use super::*;

    #[derive(Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Example {
        /// How often.
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

    #[test]
    fn durations_are_written_in_days_and_below() {
        for (seconds, text) in [
            (30, "30s"),
            (5400, "1h 30m"),
            (86_400, "1day"),
            (365 * 86_400, "365days"),
            (730 * 86_400 + 61, "730days 1m 1s"),
        ] {
            let interval = Duration::from_secs(seconds);
            let json = serde_json::to_value(Example {
                interval,
                ..Example::default()
            })
            .unwrap();
            assert_eq!(json["interval"], text);
            assert_eq!(serde_json::from_value::<Example>(json).unwrap().interval, interval);
        }
    }

    #[test]
    fn the_schema_comes_with_the_derive() {
        let schema = schemars::schema_for!(Example).to_value();
        assert_eq!(
            schema["properties"],
            json!({
                "interval": {"description": "How often.", "type": "string", "pattern": DURATION_PATTERN, "default": "30s"},
                "limit": {"type": "string", "pattern": SIZE_PATTERN, "default": "64MiB"},
                "token": {"type": "string", "writeOnly": true, "default": "***"},
            })
        );
        assert_eq!(schema["additionalProperties"], false);
    }

    /// Texts of a pattern of the schema.
    fn texts_of(pattern: &str) -> impl Strategy<Value = String> + use<> {
        string_regex(pattern.trim_start_matches('^').trim_end_matches('$')).unwrap()
    }

    proptest! {
        #[test]
        fn what_the_schema_admits_is_read(interval in texts_of(DURATION_PATTERN), limit in texts_of(SIZE_PATTERN)) {
            let example = json!({"interval": interval, "limit": limit});
            prop_assert!(serde_json::from_value::<Example>(example.clone()).is_ok(), "{}", example);
        }

        #[test]
        fn what_is_written_is_read_as_the_same(seconds in 0..u64::from(u32::MAX), nanos in 0..1_000_000_000_u32, limit: u64) {
            let example = Example { interval: Duration::new(seconds, nanos), limit, token: Secret::default() };
            let read: Example = serde_json::from_value(serde_json::to_value(&example).unwrap()).unwrap();
            prop_assert_eq!((read.interval, read.limit), (example.interval, limit));
        }
    }
}

//! The configuration of `serve`, and `config print`.

use anyhow::Context;
use modelyard_common::config as common;
use serde_json::{Value, json};

use super::{ServeArguments, UsageError, output};
use crate::serve::Config;

/// Reads the configuration: defaults, file, environment, command line.
pub fn load(arguments: &ServeArguments) -> anyhow::Result<Config> {
    let mut overrides: Vec<(&str, Value)> = Vec::new();
    if let Some(folder) = &arguments.data_dir {
        overrides.push(("data_dir", json!(folder)));
    }
    if let Some(address) = arguments.listen {
        overrides.push(("listen", json!(address)));
    }
    if let Some(address) = arguments.internal_listen {
        overrides.push(("internal_listen", json!(address)));
    }
    if let Some(roles) = &arguments.roles {
        overrides.push(("roles", json!(roles)));
    }
    let overrides: Vec<_> = overrides
        .into_iter()
        .map(|(key, value)| Ok((key, figment::value::Value::serialize(value)?)))
        .collect::<anyhow::Result<_>>()
        .context("the command line cannot be read as configuration")?;
    common::load(arguments.config.as_deref(), &overrides).map_err(|error| UsageError(error.to_string()).into())
}

/// Prints the configuration as JSON, which is what the types are written as everywhere; secrets are `***`.
pub fn print(arguments: &ServeArguments) -> anyhow::Result<()> {
    let config = load(arguments)?;
    config.validate()?;
    output::print_json(&config)
}

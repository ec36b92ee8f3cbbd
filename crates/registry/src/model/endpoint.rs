//! Endpoints as they are declared.

use std::collections::BTreeSet;

use modelyard_common::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    error::{Error, Result},
    model::{
        alias::Reference,
        desired::{Route, RouteRole},
        report::EndpointStatus,
    },
};

/// The most live routes, and the most shadow routes, of an endpoint.
pub const MAX_ROUTES: usize = 16;
/// The weight of a live route that does not say.
pub const DEFAULT_WEIGHT: f64 = 100.0;
/// The greatest weight of a live route.
pub const MAX_WEIGHT: f64 = 1e6;

/// The name of an endpoint with its project.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointKey {
    /// The project.
    pub project: String,
    /// The name.
    pub name: String,
}

/// What an endpoint shall be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointSpec {
    /// The model versions that answer, 1 to 16.
    pub routes: Vec<LiveRoute>,
    /// The model versions that get copies of requests; their answers are logged and thrown away.
    #[serde(default)]
    pub shadow: Vec<ShadowRoute>,
    /// What is logged.
    #[serde(default)]
    pub log: LogSpec,
}

/// A model version that answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LiveRoute {
    /// `MODEL@ALIAS` or `MODEL/VERSION`.
    pub model: String,
    /// Its share of the traffic, relative to the other live routes.
    #[serde(default = "default_weight")]
    pub weight: f64,
}

/// A model version that gets copies of requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShadowRoute {
    /// `MODEL@ALIAS` or `MODEL/VERSION`.
    pub model: String,
    /// The share of the requests that it gets, above 0 and up to 1.
    #[serde(default = "default_sample")]
    pub sample: f64,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogSpec {
    /// Whether predictions go to the inference log.
    pub predictions: bool,
}

impl Default for LogSpec {
    fn default() -> Self {
        Self { predictions: true }
    }
}

const fn default_weight() -> f64 {
    DEFAULT_WEIGHT
}

const fn default_sample() -> f64 {
    1.0
}

/// A route of a valid spec.
#[derive(Debug, Clone, PartialEq)]
pub struct DeclaredRoute {
    /// Live or shadow.
    pub role: RouteRole,
    /// Which version it means.
    pub reference: Reference,
    /// Live: its share of the traffic.
    pub weight: f64,
    /// Shadow: the share of the requests.
    pub sample: f64,
}

impl EndpointSpec {
    /// Reads and checks the spec of the endpoint `name`. The error names everything that is wrong.
    pub fn read(name: &str, spec: &Value) -> Result<Self> {
        let mut problems = Vec::new();
        let read = Self::collect(spec, &mut problems);
        if problems.is_empty() {
            return Ok(read);
        }
        Err(Error::Spec {
            what: "endpoint",
            name: name.to_owned(),
            problems,
        })
    }

    /// Takes the spec apart, so that a mistake in one place does not hide those in others.
    fn collect(spec: &Value, problems: &mut Vec<String>) -> Self {
        let mut read = Self {
            routes: Vec::new(),
            shadow: Vec::new(),
            log: LogSpec::default(),
        };
        let Some(fields) = spec.as_object() else {
            problems.push("the spec is not an object: write {\"routes\": [{\"model\": \"NAME@ALIAS\"}]}".to_owned());
            return read;
        };
        for (key, value) in fields {
            match key.as_str() {
                "routes" => read.routes = entries(key, value, problems),
                "shadow" => read.shadow = entries(key, value, problems),
                "log" => match LogSpec::deserialize(value) {
                    Ok(log) => read.log = log,
                    Err(error) => problems.push(format!("log: {error}")),
                },
                _ => problems.push(format!("unknown field `{key}`, expected `routes`, `shadow` or `log`")),
            }
        }
        let routes = fields.get("routes").and_then(Value::as_array).map_or(0, Vec::len);
        if !(1..=MAX_ROUTES).contains(&routes) {
            problems.push(format!("{routes} routes: write 1 to {MAX_ROUTES}"));
        }
        if read.shadow.len() > MAX_ROUTES {
            problems.push(format!(
                "{} shadow routes: write at most {MAX_ROUTES}",
                read.shadow.len()
            ));
        }
        read.check_routes(problems);
        read
    }

    fn check_routes(&self, problems: &mut Vec<String>) {
        let mut seen = BTreeSet::new();
        for route in &self.routes {
            if !(route.weight > 0.0 && route.weight <= MAX_WEIGHT) {
                problems.push(format!(
                    "route `{}` has weight {}: write a number above 0, at most {MAX_WEIGHT}",
                    route.model, route.weight
                ));
            }
            check_reference(&route.model, &mut seen, problems);
        }
        let mut seen = BTreeSet::new();
        for route in &self.shadow {
            if !(route.sample > 0.0 && route.sample <= 1.0) {
                problems.push(format!(
                    "shadow route `{}` has sample {}: write a number above 0, at most 1",
                    route.model, route.sample
                ));
            }
            check_reference(&route.model, &mut seen, problems);
        }
    }

    /// The routes, live ones first.
    pub fn declared(&self) -> Result<Vec<DeclaredRoute>> {
        let live = self.routes.iter().map(|route| {
            Ok(DeclaredRoute {
                role: RouteRole::Live,
                reference: route.model.parse()?,
                weight: route.weight,
                sample: 0.0,
            })
        });
        let shadow = self.shadow.iter().map(|route| {
            Ok(DeclaredRoute {
                role: RouteRole::Shadow,
                reference: route.model.parse()?,
                weight: 0.0,
                sample: route.sample,
            })
        });
        live.chain(shadow).collect()
    }
}

fn entries<T: serde::de::DeserializeOwned>(key: &str, value: &Value, problems: &mut Vec<String>) -> Vec<T> {
    let Some(list) = value.as_array() else {
        problems.push(format!("{key}: not a list"));
        return Vec::new();
    };
    let mut read = Vec::new();
    for (index, entry) in list.iter().enumerate().take(MAX_ROUTES + 1) {
        match T::deserialize(entry) {
            Ok(entry) => read.push(entry),
            Err(error) => problems.push(format!("{key}[{index}]: {error}")),
        }
    }
    read
}

fn check_reference<'a>(reference: &'a str, seen: &mut BTreeSet<&'a str>, problems: &mut Vec<String>) {
    if let Err(error) = reference.parse::<Reference>() {
        problems.push(error.to_string());
    }
    if !seen.insert(reference) {
        problems.push(format!("route `{reference}` is there twice: add up the weights in one"));
    }
}

/// An endpoint as the API returns it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct EndpointResource {
    /// `Endpoint`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The project.
    pub project: String,
    /// What it shall be.
    pub spec: EndpointSpec,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its spec was changed last.
    pub updated_at: Timestamp,
    /// Its routes with their references followed.
    pub resolved: Vec<Route>,
    /// What the gateways made of it.
    pub status: EndpointStatus,
}

/// What declaring a resource did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is new.
    Created,
    /// It was another before.
    Updated,
    /// It was like this before.
    Unchanged,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_are_filled_in() {
        let spec = EndpointSpec::read(
            "e",
            &json!({"routes": [{"model": "m@champion"}], "shadow": [{"model": "m/1"}]}),
        )
        .unwrap();
        let live = LiveRoute {
            model: "m@champion".to_owned(),
            weight: DEFAULT_WEIGHT,
        };
        let shadow = ShadowRoute {
            model: "m/1".to_owned(),
            sample: 1.0,
        };
        assert_eq!((&spec.routes[..], &spec.shadow[..]), (&[live][..], &[shadow][..]));
        assert!(spec.log.predictions);
        let declared = spec.declared().unwrap();
        assert_eq!(declared[0].role, RouteRole::Live);
        assert_eq!(declared[1].reference.to_string(), "m/1");
        let again = EndpointSpec::read("e", &serde_json::to_value(&spec).unwrap()).unwrap();
        assert_eq!(again, spec);
    }

    #[test]
    fn every_problem_is_named() {
        let route = json!({"model": "m@a"});
        let many: Vec<_> = (1..=17)
            .map(|version| json!({"model": format!("m/{version}")}))
            .collect();
        let cases = [
            (json!(null), vec!["not an object"]),
            (json!({}), vec!["0 routes"]),
            (json!({"routes": {}}), vec!["routes: not a list", "0 routes"]),
            (json!({"routes": many}), vec!["17 routes"]),
            (
                json!({"routes": [{"modle": "m@a"}, {"model": "m"}], "rollout": {}, "log": {"all": 1}}),
                vec![
                    "routes[0]: unknown field `modle`",
                    "`m` names no model version",
                    "unknown field `rollout`",
                    "log: unknown field `all`",
                ],
            ),
            (
                json!({"routes": [{"model": "m@a", "weight": 0}, {"model": "m/1", "weight": -1}, {"model": "m/2", "weight": "x"}]}),
                vec!["`m@a` has weight 0", "`m/1` has weight -1", "routes[2]: invalid type"],
            ),
            (json!({"routes": [route, route]}), vec!["route `m@a` is there twice"]),
            (
                json!({"routes": [route], "shadow": [{"model": "m/1", "sample": 1.5}, {"model": "m/2", "sample": 0}]}),
                vec!["`m/1` has sample 1.5", "`m/2` has sample 0"],
            ),
        ];
        for (spec, named) in cases {
            let error = EndpointSpec::read("e", &spec).unwrap_err().to_string();
            assert!(error.starts_with("endpoint `e` is not valid: "), "{error}");
            for part in named {
                assert!(error.contains(part), "{part}: {error}");
            }
        }
    }
}

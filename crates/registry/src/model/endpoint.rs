//! Endpoints as they are declared.

use std::{collections::BTreeSet, time::Duration};

use modelyard_common::{Timestamp, config::maybe_duration};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    error::{Error, Result},
    model::{
        alias::Reference,
        desired::{Route, RouteRole},
        endpoint_options::{
            Attribute, BatchingSpec, CacheSpec, Condition, LimitsSpec, LogSpec, check_conditions, check_unload_after,
        },
        report::EndpointStatus,
        rollout::RolloutSpec,
        traffic::Traffic,
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
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
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
    /// What keeps a request with its route: requests with the same value take the same one, and a route whose weight
    /// grows only gains. None: the request's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Attribute>,
    /// Answers that are kept. None: none are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheSpec>,
    /// How requests are merged.
    #[serde(default, skip_serializing_if = "is_default")]
    pub batching: BatchingSpec,
    /// What the endpoint may take of a gateway.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: LimitsSpec,
    /// How new routes come to serve. None: at once, when the gateways have loaded them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutSpec>,
    /// After this time without a request, such as `15m`, the models are let go of until the next one, which waits for
    /// them. None: never.
    #[serde(default, with = "maybe_duration", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub unload_after: Option<Duration>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A model version that answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LiveRoute {
    /// `MODEL@ALIAS` or `MODEL/VERSION`.
    pub model: String,
    /// Its share of the traffic, relative to the other live routes. None: 100, or none at all for a route with
    /// conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Requests for which all of these hold take this route, whatever the weights; the first such route in the list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Condition>,
}

impl LiveRoute {
    /// Its share of the traffic, relative to the other live routes.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.weight
            .unwrap_or(if self.when.is_empty() { DEFAULT_WEIGHT } else { 0.0 })
    }
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

/// What a spec is made of, for those who mistyped it.
const FIELDS: &str = "`routes`, `shadow`, `log`, `sticky`, `cache`, `batching`, `limits`, `rollout` or `unload_after`";

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
        let mut read = Self::default();
        let Some(fields) = spec.as_object() else {
            problems.push("the spec is not an object: write {\"routes\": [{\"model\": \"NAME@ALIAS\"}]}".to_owned());
            return read;
        };
        for (key, value) in fields {
            match key.as_str() {
                "routes" => read.routes = entries(key, value, problems),
                "shadow" => read.shadow = entries(key, value, problems),
                "log" => read.log = option(key, value, problems),
                "sticky" => read.sticky = option(key, value, problems),
                "cache" => read.cache = option(key, value, problems),
                "batching" => read.batching = option(key, value, problems),
                "limits" => read.limits = option(key, value, problems),
                "rollout" => read.rollout = option(key, value, problems),
                "unload_after" => read.unload_after = option::<UnloadAfter>(key, value, problems).0,
                _ => problems.push(format!("unknown field `{key}`, expected {FIELDS}")),
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
        for route in &mut read.routes {
            route.weight = Some(route.share());
        }
        read.check_routes(problems);
        read.check_options(problems);
        read
    }

    fn check_options(&self, problems: &mut Vec<String>) {
        if let Some(sticky) = &self.sticky {
            sticky.check("sticky", problems);
        }
        if let Some(cache) = &self.cache {
            cache.check(problems);
        }
        if let Some(rollout) = &self.rollout {
            rollout.check(problems);
        }
        self.batching.check(problems);
        self.limits.check(problems);
        self.log.check(problems);
        check_unload_after(self.unload_after, problems);
    }

    fn check_routes(&self, problems: &mut Vec<String>) {
        let mut seen = BTreeSet::new();
        for route in &self.routes {
            // A route that conditions lead to needs no share of the rest.
            let share = route.share();
            let is_share = share > 0.0 || (share == 0.0 && !route.when.is_empty());
            if !(is_share && share <= MAX_WEIGHT) {
                problems.push(format!(
                    "route `{}` has weight {share}: write a number above 0, at most {MAX_WEIGHT}",
                    route.model
                ));
            }
            check_conditions(&route.model, &route.when, problems);
            check_reference(&route.model, &mut seen, problems);
        }
        if !self.routes.is_empty() && self.routes.iter().all(|route| route.share() == 0.0) {
            problems.push("no route has a weight: requests without a matching condition need one".to_owned());
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
                weight: route.share(),
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

/// [`EndpointSpec::unload_after`] alone.
#[derive(Default, Deserialize)]
struct UnloadAfter(#[serde(with = "maybe_duration")] Option<Duration>);

fn option<T: serde::de::DeserializeOwned + Default>(key: &str, value: &Value, problems: &mut Vec<String>) -> T {
    T::deserialize(value).unwrap_or_else(|error| {
        problems.push(format!("{key}: {error}"));
        T::default()
    })
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
    /// What serves, what served before, and what is on its way; null: nothing has served yet.
    pub traffic: Option<Traffic>,
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
            weight: Some(DEFAULT_WEIGHT),
            when: Vec::new(),
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
    fn options_survive_being_written() {
        let written = json!({
            "routes": [
                {"model": "m/1", "weight": 90.0},
                {"model": "m/2", "weight": 10.0},
                {"model": "m/3", "weight": 0.0, "when": [{"header": "x-beta", "equals": "yes"}, {"parameter": "tenant", "equals": "7"}]}
            ],
            "shadow": [],
            "log": {"predictions": true, "sample": 0.25, "redact": ["age"], "max_record_bytes": "64KiB"},
            "sticky": {"header": "x-user"},
            "cache": {"time_to_live": "1m"},
            "batching": {"max_rows": 32, "max_delay": "2ms", "ragged": [{"tensor": "ids", "axis": 1, "fill": 0.0}]},
            "limits": {"timeout": "2s", "max_queued_requests": 100, "max_queue_time": "500ms"},
            "rollout": {"steps": [5.0, 50.0], "interval": "10m", "min_requests": 20, "guards": [
                {"metric": "error_rate", "max": 0.01}, {"metric": "p99_latency", "max": "50ms"}, {"alert": "drift"}]},
            "unload_after": "15m"
        });
        let spec = EndpointSpec::read("e", &written).unwrap();
        assert_eq!(serde_json::to_value(&spec).unwrap(), written);
        assert_eq!(
            (spec.routes[2].share(), spec.unload_after),
            (0.0, Some(Duration::from_mins(15)))
        );
        assert_eq!(
            spec.routes[2].when[1].attribute(),
            Some(Attribute::Parameter("tenant".to_owned()))
        );
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
                json!({"routes": [{"modle": "m@a"}, {"model": "m"}], "rolout": {}, "log": {"all": 1}}),
                vec![
                    "routes[0]: unknown field `modle`",
                    "`m` names no model version",
                    "unknown field `rolout`",
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
            (
                json!({"routes": [{"model": "m@a", "when": [{"header": "a", "parameter": "b", "equals": "c"}, {"equals": "c"}]}],
                       "sticky": {"cookie": "x"}, "cache": {"time_to_live": "0s"}, "unload_after": "1ms"}),
                vec![
                    "no route has a weight",
                    "route `m@a` names both",
                    "route `m@a` names neither",
                    "sticky: unknown variant `cookie`",
                    "cache.time_to_live",
                    "unload_after is below",
                ],
            ),
            (
                json!({"routes": [route], "rollout": {"steps": [50, 5], "interval": "0s", "guards": [
                    {"metric": "error_rate", "max": "50ms"}, {"metric": "p99_latency", "max": 0.5}, {"alert": "a", "max": 1},
                    {"metric": "p50_latency", "max": "soon"}]}}),
                vec![
                    "rollout.steps",
                    "rollout.interval is 0ns",
                    "rollout.guards[0]: error_rate",
                    "rollout.guards[1]: a latency",
                    "rollout.guards[2]: write",
                    "rollout.guards[3]: `soon` is no time",
                ],
            ),
            (
                json!({"routes": [route], "log": {"sample": 0, "redact": [""], "max_record_bytes": "0"},
                       "limits": {"timeout": "25h", "max_queued_requests": 0, "max_queue_time": "soon"},
                       "batching": {"max_rows": 0, "max_delay": "1h", "ragged": [{"tensor": "x", "axis": 0}, {"tensor": "x", "axis": 0}]}}),
                vec![
                    "log.sample is 0",
                    "log.redact: a name has 0 bytes",
                    "log.max_record_bytes is 0",
                    "limits: `soon` is not a duration",
                    "batching.max_rows is 0",
                    "batching.max_delay is 3600s",
                    "axis 0 of `x`",
                    "is there twice",
                ],
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

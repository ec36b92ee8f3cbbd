//! Where things come from and what became of them, as a graph.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fmt::{self, Write as _},
    str::FromStr,
};

use modelyard_auth::{Action, Kind};
use modelyard_common::{Timestamp, name::check_name};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::alias::check_alias;
use crate::error::{Error, Result};

/// How far lineage is followed where that is not said.
pub const DEFAULT_DEPTH: u32 = 10;
/// How far it is followed at most.
pub const MAX_DEPTH: u32 = 50;
/// The most nodes of an answer.
pub const MAX_NODES: usize = 500;
/// The most edges of an answer.
pub const MAX_EDGES: usize = 2000;
/// The longest address, in bytes.
const MAX_ADDRESS_BYTES: usize = 2048;

/// How objects are addressed, for whoever wrote something else.
const FORMS: &str = "write run/ID, experiment/ID, pipeline-run/ID, logged-model/ID, model/NAME/VERSION, model/NAME@ALIAS, \
                     dataset/NAME/VERSION, dataset-input/NAME/DIGEST, endpoint/NAME, or \
                     prediction/ENDPOINT/MODEL/VERSION";

/// Something that has a lineage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// An experiment.
    Experiment(u64),
    /// A run.
    Run(String),
    /// A run of a pipeline, as runs and versions name it. The orchestrator knows more of it.
    PipelineRun(String),
    /// A version of a dataset.
    DatasetVersion(String, u32),
    /// A dataset that a client described, by name and digest.
    DatasetInput(String, String),
    /// A logged model.
    LoggedModel(String),
    /// A version of a registered model.
    ModelVersion(String, u32),
    /// An endpoint.
    Endpoint(String),
    /// What a version answered at an endpoint: the endpoint, the model and the version.
    Prediction(String, String, u32),
}

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum ObjectKind {
    Experiment,
    Run,
    PipelineRun,
    DatasetVersion,
    DatasetInput,
    LoggedModel,
    ModelVersion,
    Endpoint,
    Prediction,
}

impl Object {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> ObjectKind {
        match self {
            Self::Experiment(_) => ObjectKind::Experiment,
            Self::Run(_) => ObjectKind::Run,
            Self::PipelineRun(_) => ObjectKind::PipelineRun,
            Self::DatasetVersion(..) => ObjectKind::DatasetVersion,
            Self::DatasetInput(..) => ObjectKind::DatasetInput,
            Self::LoggedModel(_) => ObjectKind::LoggedModel,
            Self::ModelVersion(..) => ObjectKind::ModelVersion,
            Self::Endpoint(_) => ObjectKind::Endpoint,
            Self::Prediction(..) => ObjectKind::Prediction,
        }
    }

    /// What a caller needs to see it: what it needs to read the thing itself. A prediction shows here which endpoint and
    /// version answered, and nothing of what was asked. Without a kind and a name it is the project that is asked for.
    #[must_use]
    pub fn permission(&self) -> (Action, Option<(Kind, Cow<'_, str>)>) {
        let named = |kind, name| Some((kind, Cow::Borrowed(name)));
        match self {
            Self::DatasetInput(..) | Self::LoggedModel(_) => (Action::RunRead, None),
            Self::Experiment(id) => (Action::RunRead, Some((Kind::Experiment, id.to_string().into()))),
            Self::Run(id) => (Action::RunRead, named(Kind::Run, id.as_str())),
            Self::PipelineRun(id) => (Action::PipelineRead, named(Kind::PipelineRun, id)),
            Self::DatasetVersion(name, _) => (Action::DatasetRead, named(Kind::Dataset, name)),
            Self::ModelVersion(name, _) => (Action::ModelRead, named(Kind::Model, name)),
            Self::Endpoint(name) | Self::Prediction(name, ..) => (Action::EndpointRead, named(Kind::Endpoint, name)),
        }
    }

    /// The path of the API that tells everything about it, where there is one.
    #[must_use]
    pub fn href(&self, project: &str) -> Option<String> {
        let below = |path: String| Some(format!("/api/v1/projects/{}/{path}", encoded(project)));
        match self {
            Self::Experiment(id) => Some(format!("/api/2.0/mlflow/experiments/get?experiment_id={id}")),
            Self::Run(id) => below(format!("runs/{}", encoded(id))),
            Self::PipelineRun(id) => below(format!("pipeline-runs/{}", encoded(id))),
            Self::DatasetVersion(name, version) => below(format!("datasets/{}/versions/{version}", encoded(name))),
            Self::LoggedModel(id) => Some(format!("/api/2.0/mlflow/logged-models/{}", encoded(id))),
            Self::ModelVersion(name, version) if check_name("a model", name).is_ok() => {
                below(format!("models/{}/versions/{version}", encoded(name)))
            }
            // MLflow's clients give names that this server's own API does not take.
            Self::ModelVersion(name, version) => Some(format!(
                "/api/2.0/mlflow/model-versions/get?name={}&version={version}",
                encoded(name)
            )),
            Self::Endpoint(name) => below(format!("endpoints/{}", encoded(name))),
            Self::DatasetInput(..) | Self::Prediction(..) => None,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Experiment(id) => write!(f, "experiment/{id}"),
            Self::Run(id) => write!(f, "run/{id}"),
            Self::PipelineRun(id) => write!(f, "pipeline-run/{id}"),
            Self::DatasetVersion(name, version) => write!(f, "dataset/{name}/{version}"),
            Self::DatasetInput(name, digest) => write!(f, "dataset-input/{name}/{digest}"),
            Self::LoggedModel(id) => write!(f, "logged-model/{id}"),
            Self::ModelVersion(name, version) => write!(f, "model/{name}/{version}"),
            Self::Endpoint(name) => write!(f, "endpoint/{name}"),
            Self::Prediction(endpoint, model, version) => write!(f, "prediction/{endpoint}/{model}/{version}"),
        }
    }
}

/// A text as one segment of a path.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// What a caller wrote to mean an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// The object itself.
    Object(Object),
    /// The version that an alias of a model points at.
    Alias(String, String),
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            let shown: String = text.chars().take(128).collect();
            Error::request(format!("`{}` names no object: {FORMS}", shown.escape_debug()))
        };
        if text.len() > MAX_ADDRESS_BYTES || text.contains('\0') {
            return Err(bad());
        }
        let (kind, name) = text.split_once('/').ok_or_else(bad)?;
        if name.is_empty() {
            return Err(bad());
        }
        let versioned = |name: &str| {
            let (name, version) = name.rsplit_once('/')?;
            let version = version.parse::<u32>().ok().filter(|version| *version > 0)?;
            (!name.is_empty()).then(|| (name.to_owned(), version))
        };
        let name_of = |name: &str| name.to_owned();
        let object = match kind {
            "experiment" => Object::Experiment(
                name.parse()
                    .ok()
                    .filter(|id| i64::try_from(*id).is_ok())
                    .ok_or_else(bad)?,
            ),
            "run" => Object::Run(name_of(name)),
            "pipeline-run" => Object::PipelineRun(name_of(name)),
            "logged-model" => Object::LoggedModel(name_of(name)),
            "endpoint" => Object::Endpoint(name_of(name)),
            "dataset" => {
                let (name, version) = versioned(name).ok_or_else(bad)?;
                Object::DatasetVersion(name, version)
            }
            "dataset-input" => {
                let (name, digest) = name.rsplit_once('/').ok_or_else(bad)?;
                Object::DatasetInput(name_of(name), name_of(digest))
            }
            "model" => match (versioned(name), name.rsplit_once('@')) {
                (Some((name, version)), _) => Object::ModelVersion(name, version),
                (None, Some((name, alias))) => {
                    check_alias(alias)?;
                    return Ok(Self::Alias(name_of(name), name_of(alias)));
                }
                (None, None) => return Err(bad()),
            },
            "prediction" => {
                let (endpoint, rest) = name.split_once('/').ok_or_else(bad)?;
                let (model, version) = versioned(rest).ok_or_else(bad)?;
                Object::Prediction(name_of(endpoint), model, version)
            }
            _ => return Err(bad()),
        };
        Ok(Self::Object(object))
    }
}

/// Which way lineage is followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To what it was made from.
    Upstream,
    /// To what was made from it.
    Downstream,
    /// Each way by itself: not to what else was made from what it was made from.
    #[default]
    Both,
}

impl Direction {
    /// The ways, upstream being true.
    #[must_use]
    pub const fn ways(self) -> &'static [bool] {
        match self {
            Self::Upstream => &[true],
            Self::Downstream => &[false],
            Self::Both => &[true, false],
        }
    }
}

/// What the end of an edge is to its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// A run of the experiment.
    PartOf,
    /// A run within the run.
    NestedIn,
    /// A run or version that the pipeline's run made.
    MadeBy,
    /// A run that read it, or a version that was, for training.
    TrainedOn,
    /// A run or logged model that was measured on it.
    EvaluatedOn,
    /// A run that read it for something else.
    Read,
    /// A logged model or version that the run made.
    ProducedBy,
    /// The version as which the logged model was registered.
    RegisteredFrom,
    /// A copy.
    CopiedFrom,
    /// An endpoint that serves the version.
    Serves,
    /// A prediction that the endpoint, or the version, answered.
    AnsweredBy,
}

impl Relation {
    /// What a run is to a dataset, by what it says it was read for.
    #[must_use]
    pub fn of_context(context: &str) -> Self {
        let context = context.to_lowercase();
        if context.contains("train") {
            Self::TrainedOn
        } else if ["eval", "test", "valid"].iter().any(|word| context.contains(word)) {
            Self::EvaluatedOn
        } else {
            Self::Read
        }
    }
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its name, for people.
    pub name: String,
    /// Where it is in its life.
    pub state: Option<String>,
    /// When it began.
    pub created_at: Option<Timestamp>,
    /// When it ended, or was changed last.
    pub updated_at: Option<Timestamp>,
}

/// An object that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which one.
    pub object: Object,
    /// What is known of it.
    pub facts: Facts,
}

/// What leads from one object to what was made from it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// What is upstream.
    pub from: Object,
    /// What is downstream.
    pub to: Object,
    /// What `to` is to `from`.
    pub relation: Relation,
    /// More about it, such as what a dataset was read for; often empty.
    pub detail: String,
}

/// A bound that an answer met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// There is more beyond the depth.
    Depth,
    /// There are more nodes.
    Nodes,
    /// There are more edges.
    Edges,
}

/// What was found around an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    /// The object that was asked for, then the others.
    pub objects: Vec<Found>,
    /// What leads from one to another.
    pub links: Vec<Link>,
    /// The bounds that were met.
    pub bounds: BTreeSet<Bound>,
}

/// A node of the graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct LineageNode {
    /// The kind of the object.
    pub kind: ObjectKind,
    /// Its address, by which its own lineage is asked for.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where it is in its life, in the words of its kind; null: that is not known here.
    pub state: Option<String>,
    /// When it began; null: that is not known here.
    pub created_at: Option<Timestamp>,
    /// When it ended, or was changed last; null: not yet, or that is not known here.
    pub updated_at: Option<Timestamp>,
    /// The path that tells everything about it; null: there is none.
    pub href: Option<String>,
    /// How many edges lead to it from what was asked for, at least; upstream is negative.
    pub distance: i32,
}

/// An edge of the graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct LineageEdge {
    /// What is upstream.
    pub from: String,
    /// What is downstream.
    pub to: String,
    /// What `to` is to `from`.
    pub relation: Relation,
    /// More about it, such as what a dataset was read for, or by which route an endpoint serves; null: nothing.
    pub detail: Option<String>,
}

/// The lineage of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Lineage {
    /// The address of the object.
    pub of: String,
    /// Which way it was followed.
    pub direction: Direction,
    /// How far.
    pub depth: u32,
    /// The object and what was found, nearest first.
    pub nodes: Vec<LineageNode>,
    /// What leads from one to another.
    pub edges: Vec<LineageEdge>,
    /// Whether there is more than this answer has.
    pub truncated: bool,
    /// The bounds that cut it off.
    pub truncated_by: Vec<Bound>,
    /// Whether something was left out that the caller may not see, with what only it leads to.
    pub hidden: bool,
}

impl Graph {
    /// The answer, without what is not `visible` and what only that leads to.
    #[must_use]
    pub fn into_lineage(self, project: &str, direction: Direction, depth: u32, visible: &BTreeSet<Object>) -> Lineage {
        let Some(root) = self.objects.first().map(|found| found.object.clone()) else {
            return Lineage {
                of: String::new(),
                direction,
                depth,
                nodes: Vec::new(),
                edges: Vec::new(),
                truncated: false,
                truncated_by: Vec::new(),
                hidden: false,
            };
        };
        let hidden = self.objects.iter().any(|found| !visible.contains(&found.object));
        let mut distances = std::collections::BTreeMap::from([(root.clone(), 0_i32)]);
        let mut kept = BTreeSet::new();
        for upstream in direction.ways() {
            let ends = |link: &'_ Link| {
                if *upstream {
                    (link.to.clone(), link.from.clone())
                } else {
                    (link.from.clone(), link.to.clone())
                }
            };
            let mut seen = BTreeSet::from([root.clone()]);
            let mut level = vec![root.clone()];
            let mut distance = 0_i32;
            while !level.is_empty() {
                distance += if *upstream { -1 } else { 1 };
                let here: BTreeSet<Object> = level.drain(..).collect();
                for (position, link) in self.links.iter().enumerate() {
                    let (near, far) = ends(link);
                    if !here.contains(&near) || !visible.contains(&far) {
                        continue;
                    }
                    kept.insert(position);
                    if seen.insert(far.clone()) {
                        distances.entry(far.clone()).or_insert(distance);
                        level.push(far);
                    }
                }
            }
        }
        let mut nodes: Vec<LineageNode> = Vec::new();
        for found in self.objects {
            let Some(distance) = distances.get(&found.object) else {
                continue;
            };
            nodes.push(LineageNode {
                kind: found.object.kind(),
                id: found.object.to_string(),
                href: found.object.href(project),
                name: found.facts.name,
                state: found.facts.state,
                created_at: found.facts.created_at,
                updated_at: found.facts.updated_at,
                distance: *distance,
            });
        }
        nodes.sort_by(|a, b| {
            let key = |node: &LineageNode| (node.distance.abs(), node.distance, node.kind);
            key(a).cmp(&key(b)).then_with(|| a.id.cmp(&b.id))
        });
        let links = self.links.into_iter().enumerate();
        let edges = links
            .filter(|(position, _)| kept.contains(position))
            .map(|(_, link)| LineageEdge {
                from: link.from.to_string(),
                to: link.to.to_string(),
                relation: link.relation,
                detail: Some(link.detail).filter(|detail| !detail.is_empty()),
            });
        Lineage {
            of: root.to_string(),
            direction,
            depth,
            nodes,
            edges: edges.collect(),
            truncated: !self.bounds.is_empty(),
            truncated_by: self.bounds.into_iter().collect(),
            hidden,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_experiment_is_asked_for_by_its_number() {
        let named = Some((Kind::Experiment, Cow::Borrowed("7")));
        assert_eq!(Object::Experiment(7).permission(), (Action::RunRead, named));
        assert_eq!(
            Object::LoggedModel("m-1".to_owned()).permission(),
            (Action::RunRead, None)
        );
    }

    #[test]
    fn addresses_are_read_and_written() {
        for text in [
            "experiment/3",
            "run/abc",
            "pipeline-run/p",
            "dataset/flights/2",
            "dataset-input/a/b/c/0123",
            "logged-model/m-1",
            "model/a b@c/7",
            "endpoint/e",
            "prediction/e/m/1",
        ] {
            let Address::Object(object) = text.parse().unwrap() else {
                panic!("{text}");
            };
            assert_eq!(object.to_string(), text);
        }
        let alias = Address::Alias("m".to_owned(), "champion".to_owned());
        assert_eq!("model/m@champion".parse::<Address>().unwrap(), alias);
        for text in [
            "",
            "run",
            "run/",
            "model/m",
            "model/m/0",
            "model/m@v1",
            "thing/x",
            "dataset/d/x",
            "experiment/-1",
            "experiment/99999999999999999999",
            "prediction/e/m",
            "dataset-input/x",
            "run/a\0",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        assert_eq!(
            Object::ModelVersion("a".to_owned(), 1).href("p").as_deref(),
            Some("/api/v1/projects/p/models/a/versions/1")
        );
        assert_eq!(
            Object::ModelVersion("a b/ü".to_owned(), 1).href("p").as_deref(),
            Some("/api/2.0/mlflow/model-versions/get?name=a%20b%2F%C3%BC&version=1")
        );
    }

    #[test]
    fn what_may_not_be_seen_hides_what_only_it_leads_to() {
        let run = |id: &str| Object::Run(id.to_owned());
        let found = |id: &str| Found {
            object: run(id),
            facts: Facts {
                name: id.to_owned(),
                state: None,
                created_at: None,
                updated_at: None,
            },
        };
        let link = |from: &str, to: &str| Link {
            from: run(from),
            to: run(to),
            relation: Relation::NestedIn,
            detail: String::new(),
        };
        let graph = Graph {
            objects: ["a", "b", "c", "d"].map(found).to_vec(),
            links: vec![link("a", "b"), link("b", "c"), link("a", "d"), link("d", "a")],
            bounds: BTreeSet::new(),
        };
        let visible: BTreeSet<Object> = ["a", "c", "d"].map(run).into();
        let lineage = graph.into_lineage("p", Direction::Downstream, 3, &visible);
        let ids: Vec<&str> = lineage.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!((ids, lineage.edges.len(), lineage.hidden), (vec!["a", "d"], 2, true));
    }
}

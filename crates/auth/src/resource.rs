//! What something is done to, as decisions and the audit chain name it.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! kinds {
    ($($variant:ident = $name:literal,)*) => {
        /// The kind of a resource. The names are those of the entity types in the schema and of the audit chain.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[expect(missing_docs, reason = "the names say it")]
        pub enum Kind { $($variant,)* }

        impl Kind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name of the entity type.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)* }
            }

            /// The name on the command line and in URLs.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The kind of a name, in either form.
            #[must_use]
            pub fn find(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|kind| kind.as_str() == name || kind.word() == name)
            }
        }
    };
}

kinds! {
    Installation = "installation",
    Project = "project",
    Alert = "alert",
    AlertRule = "alert-rule",
    Artifact = "artifact",
    Dataset = "dataset",
    Endpoint = "endpoint",
    EvaluationDataset = "evaluation-dataset",
    Experiment = "experiment",
    Model = "model",
    Monitor = "monitor",
    Pipeline = "pipeline",
    PipelineRun = "pipeline-run",
    Prediction = "prediction",
    Run = "run",
    Secret = "secret",
    Trigger = "trigger",
    Webhook = "webhook",
}

/// A resource: the installation, a project, or something in a project. It need not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Resource<'a> {
    kind: Kind,
    project: &'a str,
    name: &'a str,
}

impl<'a> Resource<'a> {
    /// The whole installation.
    pub const INSTALLATION: Resource<'static> = Resource {
        kind: Kind::Installation,
        project: "",
        name: "",
    };

    /// A project: for lists, and for what has no name yet.
    #[must_use]
    pub const fn project(project: &'a str) -> Self {
        Self {
            kind: Kind::Project,
            project,
            name: project,
        }
    }

    /// Something in a project.
    #[must_use]
    pub const fn named(kind: Kind, project: &'a str, name: &'a str) -> Self {
        Self { kind, project, name }
    }

    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The project that it is in, or is; empty for the installation.
    #[must_use]
    pub const fn project_name(&self) -> &'a str {
        self.project
    }

    /// Its name within the project.
    #[must_use]
    pub const fn name(&self) -> &'a str {
        self.name
    }
}

impl fmt::Display for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Installation => f.write_str("the installation"),
            Kind::Project => write!(f, "project `{}`", self.name.escape_debug()),
            kind => write!(f, "{} `{}`", kind.word(), self.name.escape_debug()),
        }
    }
}

//! What can be done, one name for each operation or group of operations that belong together.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! actions {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// Something that somebody may or may not do. The schema tells on what, and which roles have it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Action {
            $($(#[doc = $doc])* #[serde(rename = $name)] $variant,)*
        }

        impl Action {
            /// All actions.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in policies, in the audit chain and on the command line.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it is, in a sentence for people.
            #[must_use]
            pub fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),*).trim_start(),)* }
            }

            /// The action of a name.
            #[must_use]
            pub fn find(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

actions! {
    /// See a project.
    ProjectRead = "project.read",
    /// Create, change and remove projects.
    ProjectWrite = "project.write",
    /// See alerts.
    AlertRead = "alert.read",
    /// See alert rules.
    AlertRuleRead = "alert-rule.read",
    /// Declare and remove alert rules.
    AlertRuleWrite = "alert-rule.write",
    /// Point aliases at model versions.
    AliasWrite = "alias.write",
    /// Fetch artifacts.
    ArtifactRead = "artifact.read",
    /// Upload artifacts.
    ArtifactWrite = "artifact.write",
    /// See datasets.
    DatasetRead = "dataset.read",
    /// Make versions of datasets.
    DatasetWrite = "dataset.write",
    /// See endpoints, and what they take and give.
    EndpointRead = "endpoint.read",
    /// Declare and remove endpoints.
    EndpointWrite = "endpoint.write",
    /// Call endpoints.
    EndpointPredict = "endpoint.predict",
    /// Follow what happens.
    EventRead = "event.read",
    /// Send labels.
    LabelWrite = "label.write",
    /// See models, their versions and aliases.
    ModelRead = "model.read",
    /// Make versions of models.
    ModelWrite = "model.write",
    /// See monitors and their windows.
    MonitorRead = "monitor.read",
    /// Declare and remove monitors.
    MonitorWrite = "monitor.write",
    /// See pipelines and their runs.
    PipelineRead = "pipeline.read",
    /// Declare and remove pipelines.
    PipelineWrite = "pipeline.write",
    /// Start and cancel pipeline runs.
    PipelineRun = "pipeline.run",
    /// See single predictions.
    PredictionRead = "prediction.read",
    /// See experiments and runs.
    RunRead = "run.read",
    /// Make runs and log to them.
    RunWrite = "run.write",
    /// See which secrets there are; nobody reads their values.
    SecretRead = "secret.read",
    /// Set and remove secrets.
    SecretWrite = "secret.write",
    /// See how much a project stores, and what was freed.
    StorageRead = "storage.read",
    /// Free what was deleted; set how much a project may store.
    StorageWrite = "storage.write",
    /// See triggers.
    TriggerRead = "trigger.read",
    /// Declare and remove triggers.
    TriggerWrite = "trigger.write",
    /// See webhooks and what became of their deliveries.
    WebhookRead = "webhook.read",
    /// Make, change, test and remove webhooks.
    WebhookWrite = "webhook.write",
    /// See users, service accounts and their tokens.
    IdentityRead = "identity.read",
    /// Create, change and remove users, service accounts and their tokens.
    IdentityWrite = "identity.write",
    /// See roles, bindings, policies and what is marked sensitive.
    AccessRead = "access.read",
    /// Change roles, bindings, policies and what is marked sensitive.
    AccessWrite = "access.write",
    /// Read and verify the audit chain.
    AuditRead = "audit.read",
    /// Sign the head of the audit chain.
    AuditSign = "audit.sign",
    /// Services: follow identities and policies.
    AccessWatch = "access.watch",
    /// Services: hand over what they did.
    AuditAppend = "audit.append",
    /// Services: follow the desired state of endpoints, and report on it.
    EndpointWatch = "endpoint.watch",
    /// Services: take a secret's value.
    SecretOpen = "secret.open",
    /// Services: hand over the inference log.
    SegmentWrite = "segment.write",
    /// Services: fire triggers.
    TriggerFire = "trigger.fire",
}

impl Action {
    /// Whether it only looks.
    #[must_use]
    pub fn is_read(self) -> bool {
        self.as_str().strip_suffix(".read").is_some()
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

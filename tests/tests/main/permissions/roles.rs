//! Who asks, and what each may: written out here, not taken from the product's policies.

/// What only looks.
const VIEW: &[&str] = &[
    "alert-rule.read",
    "alert.read",
    "artifact.read",
    "dataset.read",
    "endpoint.read",
    "event.read",
    "model.read",
    "monitor.read",
    "pipeline.read",
    "prediction.read",
    "project.read",
    "run.read",
    "storage.read",
    "trigger.read",
];
const CONTRIBUTE: &[&str] = &[
    "artifact.write",
    "dataset.write",
    "label.write",
    "model.write",
    "pipeline.run",
    "pipeline.write",
    "run.write",
];
const DEPLOY: &[&str] = &[
    "alert-rule.write",
    "alias.write",
    "endpoint.write",
    "monitor.write",
    "secret.read",
    "secret.write",
    "trigger.write",
];
const CALL: &[&str] = &["endpoint.predict", "endpoint.read"];
const AUDIT: &[&str] = &["audit.read", "audit.sign"];
const ADMINISTER: &[&str] = &[
    "access.read",
    "access.write",
    "identity.read",
    "identity.write",
    "project.write",
    "webhook.read",
    "webhook.write",
    "storage.write",
];
/// What services do among themselves.
const SERVE: &[&str] = &[
    "access.watch",
    "audit.append",
    "endpoint.watch",
    "secret.open",
    "segment.write",
    "trigger.fire",
];
/// The role of this test's making: it calls, but does not see.
pub const TUNER: &str = "tuner";
pub const TUNE: &[&str] = &["alias.write", "endpoint.predict"];
/// The role of Modelyard's services, which nobody else can hold.
const SERVICE: &str = "a service";

/// The table of roles.
const ROLES: &[(&str, &[&[&str]])] = &[
    ("viewer", &[VIEW]),
    ("contributor", &[VIEW, CONTRIBUTE]),
    ("deployer", &[VIEW, DEPLOY, CALL]),
    ("approver", &[VIEW]),
    ("auditor", &[AUDIT]),
    ("caller", &[CALL]),
    ("admin", &[VIEW, CONTRIBUTE, DEPLOY, CALL, AUDIT, ADMINISTER]),
    (TUNER, &[TUNE]),
    (SERVICE, &[VIEW, SERVE]),
];

fn has(role: &str, action: &str) -> bool {
    let found = ROLES.iter().find(|(name, _)| *name == role);
    found.is_some_and(|(_, groups)| groups.iter().any(|group| group.contains(&action)))
}

/// The project that everything is asked about, one in which others have roles, and one that does not exist. Names of one
/// length, so that answers can be compared.
pub const TARGET: &str = "matrix-target";
pub const OTHER: &str = "matrix-others";
pub const NOWHERE: &str = "matrix-absent";
/// The endpoint that exists in the target.
pub const SERVED: &str = "served";

/// Where a role is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Everywhere,
    InTarget,
    InOther,
    OnServed,
}

impl Place {
    /// As bindings and scopes write it.
    pub fn text(self) -> String {
        match self {
            Self::Everywhere => "*".to_owned(),
            Self::InTarget => TARGET.to_owned(),
            Self::InOther => OTHER.to_owned(),
            Self::OnServed => format!("{TARGET}/endpoints/{SERVED}"),
        }
    }
}

/// What is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spot {
    Installation,
    Target,
    Other,
    Served,
}

type Grant = (&'static str, Place);

fn covers(place: Place, spot: Spot) -> bool {
    match place {
        Place::Everywhere => true,
        Place::InTarget => matches!(spot, Spot::Target | Spot::Served),
        Place::InOther => spot == Spot::Other,
        Place::OnServed => spot == Spot::Served,
    }
}

/// What an operation asks for.
#[derive(Debug, Clone, Copy)]
pub enum Need {
    /// Nothing.
    Public,
    /// To be known.
    SignedIn,
    /// All of these actions on the installation.
    Installation(&'static [&'static str]),
    /// All of these actions on the project, or on something in it.
    Project(&'static [&'static str]),
    /// This action on the endpoint that exists.
    Endpoint(&'static str),
    /// This action on the project where the caller has a role in it, else on the installation.
    SeenProject(&'static str),
    /// This action anywhere.
    Anywhere(&'static str),
}

/// How an answer is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// 403.
    Denied,
    /// The 404 of a project that does not exist or is not seen.
    Unseen,
    /// 401.
    Unknown,
    /// What must never be: a fault of ours, or a route that is not there.
    Broken,
}

/// Who comes in, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entrance {
    /// With no credentials at all.
    Nobody,
    /// With a token of a service account.
    ServiceAccount,
    /// With a token of a user, and a password.
    User,
    /// With the token of a user who was disabled since.
    Disabled,
    /// As one of Modelyard's services, where those are believed.
    Service,
}

/// A column of the matrix.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub title: &'static str,
    /// The name of the identity.
    pub name: &'static str,
    pub entrance: Entrance,
    pub grants: &'static [Grant],
    /// The most that the token opens.
    pub scope: Option<&'static [Grant]>,
    /// Whether the grants are held by a group that it is a member of.
    pub by_group: bool,
}

const fn column(title: &'static str, name: &'static str, grants: &'static [Grant]) -> Column {
    Column {
        title,
        name,
        entrance: Entrance::ServiceAccount,
        grants,
        scope: None,
        by_group: false,
    }
}

/// All columns.
pub const COLUMNS: &[Column] = &[
    Column {
        entrance: Entrance::Nobody,
        ..column("nobody", "", &[])
    },
    Column {
        entrance: Entrance::User,
        ..column("viewer", "m-viewer", &[("viewer", Place::InTarget)])
    },
    Column {
        by_group: true,
        ..column("contributor", "m-contributor", &[("contributor", Place::InTarget)])
    },
    column("deployer", "m-deployer", &[("deployer", Place::InTarget)]),
    column("approver", "m-approver", &[("approver", Place::InTarget)]),
    column("auditor", "m-auditor", &[("auditor", Place::InTarget)]),
    column("caller", "m-caller", &[("caller", Place::InTarget)]),
    column("caller of one", "m-caller-of-one", &[("caller", Place::OnServed)]),
    column("admin of project", "m-admin", &[("admin", Place::InTarget)]),
    column("admin of all", "m-root", &[("admin", Place::Everywhere)]),
    column("auditor of all", "m-root-auditor", &[("auditor", Place::Everywhere)]),
    column("custom role", "m-tuner", &[(TUNER, Place::InTarget)]),
    column("admin elsewhere", "m-elsewhere", &[("admin", Place::InOther)]),
    column("without roles", "m-without", &[]),
    Column {
        scope: Some(&[("viewer", Place::InTarget)]),
        ..column("admin, as viewer", "m-scoped", &[("admin", Place::InTarget)])
    },
    Column {
        scope: Some(&[("admin", Place::Everywhere)]),
        ..column("viewer, as admin", "m-scoped-wide", &[("viewer", Place::InTarget)])
    },
    Column {
        scope: Some(&[("admin", Place::InOther)]),
        ..column("root, elsewhere", "m-scoped-away", &[("admin", Place::Everywhere)])
    },
    Column {
        entrance: Entrance::Disabled,
        ..column("disabled", "m-disabled", &[("admin", Place::Everywhere)])
    },
];

/// One of Modelyard's services, at its own work.
pub const A_SERVICE: Column = Column {
    entrance: Entrance::Service,
    ..column("a service", "", &[(SERVICE, Place::Everywhere)])
};

impl Column {
    /// As it is named in bindings, and by services that act for it.
    pub fn principal(&self) -> String {
        let kind = match self.entrance {
            Entrance::User | Entrance::Disabled => "user",
            _ => "service-account",
        };
        format!("{kind}:{}", self.name)
    }

    fn all_grants(&self) -> impl Iterator<Item = &'static [Grant]> {
        std::iter::once(self.grants).chain(self.scope)
    }

    fn may(&self, action: &str, spot: Spot) -> bool {
        self.all_grants().all(|grants| {
            let mut grants = grants.iter();
            grants.any(|(role, place)| has(role, action) && covers(*place, spot))
        })
    }

    /// Whether it has any role in the target.
    pub fn sees_target(&self) -> bool {
        self.all_grants()
            .all(|grants| grants.iter().any(|(_, place)| *place != Place::InOther))
    }

    /// The answer that it must get.
    pub fn expected(&self, need: Need) -> Verdict {
        if matches!(need, Need::Public) {
            return Verdict::Allowed;
        }
        if matches!(self.entrance, Entrance::Nobody | Entrance::Disabled) {
            return Verdict::Unknown;
        }
        let all = |actions: &[&str], spot| actions.iter().all(|action| self.may(action, spot));
        let verdict = |allowed| if allowed { Verdict::Allowed } else { Verdict::Denied };
        let in_project = |allowed| {
            if self.sees_target() {
                verdict(allowed)
            } else {
                Verdict::Unseen
            }
        };
        match need {
            Need::Public | Need::SignedIn => Verdict::Allowed,
            Need::Installation(actions) => verdict(all(actions, Spot::Installation)),
            Need::Project(actions) => in_project(all(actions, Spot::Target)),
            Need::Endpoint(action) => in_project(self.may(action, Spot::Served)),
            Need::SeenProject(action) if self.sees_target() => verdict(self.may(action, Spot::Target)),
            Need::SeenProject(action) => verdict(self.may(action, Spot::Installation)),
            Need::Anywhere(action) => {
                let spots = [Spot::Installation, Spot::Target, Spot::Other];
                verdict(spots.into_iter().any(|spot| self.may(action, spot)))
            }
        }
    }
}

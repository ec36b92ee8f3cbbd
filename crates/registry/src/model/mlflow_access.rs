//! What MLflow asks of users and roles, in the words of roles and bindings: numbers for names, and levels for actions.

use modelyard_auth::{Action, Kind};
use sha2::{Digest as _, Sha256};

/// How MLflow's clients write a service account where they name a user: no user's name has a colon.
pub const SERVICE_ACCOUNT_PREFIX: &str = "service-account:";

/// The first eight bytes of the SHA-256 of the parts.
fn digest_of(parts: &[&str]) -> u64 {
    let mut sha256 = Sha256::new();
    for part in parts {
        sha256.update(part.as_bytes());
        // No name has it, so that what is beside each other is never taken for one name.
        sha256.update([0]);
    }
    let digest = sha256.finalize();
    digest
        .iter()
        .take(8)
        .fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// A number for what has only a name here, the same at all times: MLflow's clients want numbers.
#[must_use]
pub fn number_of(parts: &[&str]) -> i64 {
    (digest_of(parts) >> 1).cast_signed()
}

/// The name of the binding by which MLflow's clients give a role, the same for the same subject, role and place.
#[must_use]
pub fn binding_name(subject: &str, role: &str, place: &str) -> String {
    format!("mlflow-{:016x}", digest_of(&["binding", subject, role, place]))
}

/// The number of a role at a place: a half for each, so that it is found again without trying all pairs.
#[must_use]
pub fn role_number(role: &str, place: &str) -> i64 {
    let role = digest_of(&["role", role]) >> 33;
    let place = digest_of(&["place", place]) >> 32;
    ((role << 32) | place).cast_signed()
}

/// The only pair with this number.
pub fn find_role<'a>(
    number: i64,
    roles: impl Iterator<Item = &'a str>,
    places: impl Iterator<Item = &'a str>,
) -> Option<(&'a str, &'a str)> {
    let number = number.cast_unsigned();
    let mut roles = roles.filter(|role| role_number(role, "").cast_unsigned() >> 32 == number >> 32);
    let mut places = places.filter(|place| digest_of(&["place", place]) >> 32 == number & u64::from(u32::MAX));
    match (roles.next(), roles.next(), places.next(), places.next()) {
        (Some(role), None, Some(place), None) => Some((role, place)),
        _ => None,
    }
}

/// How much somebody may, in MLflow's words: never more than they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Nothing.
    None,
    /// Look.
    Read,
    /// Use what is there, and add to it.
    Use,
    /// Change.
    Edit,
    /// Change, and give roles to others.
    Manage,
}

impl Level {
    /// MLflow's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "NO_PERMISSIONS",
            Self::Read => "READ",
            Self::Use => "USE",
            Self::Edit => "EDIT",
            Self::Manage => "MANAGE",
        }
    }

    /// Whether MLflow would say that it is allowed, which takes more than looking.
    #[must_use]
    pub const fn is_use(self) -> bool {
        matches!(self, Self::Use | Self::Edit | Self::Manage)
    }
}

/// Something of which MLflow's permissions speak and that is here, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceType {
    /// MLflow's word.
    pub word: &'static str,
    /// What it is here.
    pub kind: Kind,
    /// What looking takes.
    pub read: Action,
    /// What changing takes.
    pub write: Action,
    /// Whether MLflow speaks of single ones.
    pub has_single: bool,
}

const fn of_runs(word: &'static str, has_single: bool) -> ResourceType {
    ResourceType {
        word,
        kind: Kind::Experiment,
        read: Action::RunRead,
        write: Action::RunWrite,
        has_single,
    }
}

const fn of_models(word: &'static str, has_single: bool) -> ResourceType {
    ResourceType {
        word,
        kind: Kind::Model,
        read: Action::ModelRead,
        write: Action::ModelWrite,
        has_single,
    }
}

/// MLflow's word for a whole project.
pub const WORKSPACE: &str = "workspace";
/// The types for which there are roles here. The first two are what a role's permissions are listed for: the others follow them.
pub const RESOURCE_TYPES: [ResourceType; 9] = [
    of_runs("experiment", true),
    of_models("registered_model", true),
    of_models("prompt", true),
    of_runs("run", false),
    of_runs("trace", false),
    of_runs("assessment", false),
    of_runs("logged_model", false),
    of_models("registered_model_version", false),
    of_models("prompt_version", false),
];
/// How many of them are listed.
const LISTED_TYPES: usize = 2;
/// What MLflow knows beside these.
const OTHER_TYPES: [&str; 9] = [
    "gateway_endpoint",
    "gateway_model_definition",
    "gateway_secret",
    "mcp_server",
    "mcp_server_version",
    "review_queue",
    "scorer",
    "scorer_version",
    WORKSPACE,
];

impl ResourceType {
    /// The type of MLflow's word.
    #[must_use]
    pub fn find(word: &str) -> Option<Self> {
        RESOURCE_TYPES.into_iter().find(|known| known.word == word)
    }

    /// How much whoever has these actions may do with it.
    pub fn level(&self, has: impl Fn(Action) -> bool) -> Level {
        match (has(self.read), has(self.write)) {
            (false, _) => Level::None,
            (true, false) => Level::Read,
            (true, true) if has(Action::AccessWrite) => Level::Manage,
            (true, true) => Level::Edit,
        }
    }
}

/// All of MLflow's types, as its refusal lists them.
#[must_use]
pub fn all_types() -> Vec<&'static str> {
    let mut words: Vec<&str> = RESOURCE_TYPES.iter().map(|known| known.word).collect();
    words.extend(OTHER_TYPES);
    words.sort_unstable();
    words
}

/// What a role with these actions is in MLflow's words: types and levels.
pub fn levels_of(has: impl Fn(Action) -> bool) -> Vec<(&'static str, Level)> {
    let adds = has(Action::ProjectRead) && has(Action::RunWrite) && has(Action::ModelWrite);
    let workspace = match (adds, has(Action::AccessWrite)) {
        (true, true) => Level::Manage,
        (true, false) => Level::Use,
        (false, _) => Level::None,
    };
    let listed = RESOURCE_TYPES.iter().take(LISTED_TYPES);
    let mut levels: Vec<_> = listed.map(|known| (known.word, known.level(&has))).collect();
    levels.push((WORKSPACE, workspace));
    levels.retain(|(_, level)| *level != Level::None);
    levels
}

#[cfg(test)]
mod tests {
    use modelyard_auth::{BUILT_IN_ROLES, actions_of_built_in_role};

    use super::*;

    #[test]
    fn a_role_is_found_by_its_number() {
        let places = ["*", "default", "team-a", "team-b"];
        for role in BUILT_IN_ROLES {
            for place in places {
                let number = role_number(role, place);
                assert!(number >= 0);
                let found = find_role(number, BUILT_IN_ROLES.into_iter(), places.into_iter());
                assert_eq!(found, Some((role, place)));
            }
        }
        let absent = role_number("viewer", "team-c");
        assert_eq!(find_role(absent, BUILT_IN_ROLES.into_iter(), places.into_iter()), None);
        assert_eq!(find_role(-1, BUILT_IN_ROLES.into_iter(), places.into_iter()), None);
        // What has the same number is never taken for one of them.
        let twice = find_role(
            role_number("viewer", "*"),
            ["viewer", "viewer"].into_iter(),
            places.into_iter(),
        );
        assert_eq!(twice, None);
    }

    #[test]
    fn numbers_are_those_of_the_whole_name() {
        assert_ne!(number_of(&["a", "bc"]), number_of(&["ab", "c"]));
        assert!(number_of(&["user:alice"]) >= 0);
        assert_eq!(
            binding_name("user:alice", "viewer", "default").len(),
            "mlflow-".len() + 16
        );
    }

    #[test]
    fn levels_say_no_more_than_the_role_gives() {
        let levels = |role: &str| {
            let actions = actions_of_built_in_role(role).unwrap();
            levels_of(|action| actions.contains(&action))
        };
        let viewer = [("experiment", Level::Read), ("registered_model", Level::Read)];
        assert_eq!(levels("viewer"), viewer);
        let contributor = [
            ("experiment", Level::Edit),
            ("registered_model", Level::Edit),
            ("workspace", Level::Use),
        ];
        assert_eq!(levels("contributor"), contributor);
        let admin = [
            ("experiment", Level::Manage),
            ("registered_model", Level::Manage),
            ("workspace", Level::Manage),
        ];
        assert_eq!(levels("admin"), admin);
        assert!(levels("caller").is_empty());
    }

    #[test]
    fn every_type_of_mlflow_is_known_once() {
        let mut all = all_types();
        assert_eq!(all.len(), 18);
        all.dedup();
        assert_eq!(all.len(), 18);
        assert!(ResourceType::find("experiment").is_some() && ResourceType::find("workspace").is_none());
    }
}

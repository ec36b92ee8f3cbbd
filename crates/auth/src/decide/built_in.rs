//! What the built-in roles may do, read from their policies.

use cedar_policy::{ActionConstraint, EntityUid};

use super::{BUILT_IN_POLICIES, PolicyError, Types, parse_policies, parse_schema};
use crate::{action::Action, state::BUILT_IN_ROLES};

/// Whether a role is built in.
#[must_use]
pub fn is_built_in_role(name: &str) -> bool {
    BUILT_IN_ROLES.contains(&name)
}

/// The actions of a built-in role, in the order of [`Action::ALL`]; none of any other name.
///
/// # Errors
/// None that can happen: policies and schema are in the program.
pub fn actions_of_built_in_role(name: &str) -> Result<Vec<Action>, PolicyError> {
    let broken = |error: cedar_policy::entities_errors::EntitiesError| PolicyError::BuiltIn(error.to_string());
    let (types, known) = (Types::new()?, parse_schema()?.action_entities().map_err(broken)?);
    let id = format!("role-{name}");
    let policies = parse_policies("built-in", BUILT_IN_POLICIES).map_err(PolicyError::BuiltIn)?;
    let Some(policy) = policies.iter().find(|policy| policy.id().to_string() == id) else {
        return Ok(Vec::new());
    };
    let groups: Vec<EntityUid> = match policy.action_constraint() {
        ActionConstraint::Any => return Ok(Action::ALL.to_vec()),
        ActionConstraint::In(groups) => groups,
        ActionConstraint::Eq(action) => vec![action],
    };
    let has = |action: &&Action| {
        let uid = types.uid("Action", action.as_str());
        uid.is_some_and(|uid| groups.iter().any(|group| known.is_ancestor_of(group, &uid)))
    };
    Ok(Action::ALL.iter().filter(has).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_roles_have_the_actions_of_their_policies() {
        let of = |name: &str| actions_of_built_in_role(name).unwrap();
        assert_eq!(of("caller"), [Action::EndpointRead, Action::EndpointPredict]);
        assert_eq!(of("auditor"), [Action::AuditRead, Action::AuditSign]);
        assert_eq!(of("viewer"), of("approver"));
        assert!(of("viewer").iter().all(|action| action.is_read()));
        for name in BUILT_IN_ROLES {
            let actions = of(name);
            assert!(!actions.is_empty(), "{name}");
            assert!(actions.iter().all(|action| of("admin").contains(action)), "{name}");
            // What is between services, nobody else may.
            assert!(!actions.contains(&Action::AccessWatch), "{name}");
        }
        assert!(of("admin").contains(&Action::AccessWrite));
        assert!(of("nobody").is_empty());
    }
}

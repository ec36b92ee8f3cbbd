use std::collections::BTreeSet;

use super::*;
use crate::state::{Binding, Identity};

/// Alice holds the grants, and is a member of the group `team`, which holds those with `team:`.
fn snapshot(grants: &[&str], change: impl FnOnce(&mut State)) -> Snapshot {
    let alice = Principal::user("alice");
    let mut state = State {
        projects: ["a", "b"].map(str::to_owned).into(),
        ..State::default()
    };
    let identity = Identity {
        enabled: true,
        groups: ["team".to_owned()].into(),
        password_revision: 0,
    };
    state.identities.insert(alice.clone(), identity);
    for (index, text) in grants.iter().enumerate() {
        let (subject, grant) = match text.strip_prefix("team:") {
            Some(grant) => (Subject::Group("team".to_owned()), grant),
            None => (Subject::Principal(alice.clone()), *text),
        };
        state.bindings.push(Binding {
            name: index.to_string(),
            subject,
            grant: grant.parse().unwrap(),
        });
    }
    change(&mut state);
    Snapshot::new(1, state).unwrap()
}

fn ask(snapshot: &Snapshot, action: Action, resource: Resource<'_>, scope: Option<&[Grant]>) -> Arc<Decision> {
    snapshot.decide(&Question {
        principal: &Principal::user("alice"),
        scope,
        via: Via::Token,
        action,
        resource,
    })
}

fn model(project: &str) -> Resource<'_> {
    Resource::named(Kind::Model, project, "m")
}

#[test]
fn roles_count_where_they_are_held() {
    let known = snapshot(&["viewer@a", "team:deployer@b"], |_| {});
    let may = |action, resource| ask(&known, action, resource, None).allowed;
    assert!(may(Action::ModelRead, model("a")) && may(Action::ModelRead, model("b")));
    assert!(may(Action::AliasWrite, model("b")) && !may(Action::AliasWrite, model("a")));
    assert!(!may(Action::ModelWrite, model("b")) && !may(Action::IdentityRead, Resource::INSTALLATION));
    let endpoint = snapshot(&["caller@a/endpoints/x"], |_| {});
    let call = |name| {
        ask(
            &endpoint,
            Action::EndpointPredict,
            Resource::named(Kind::Endpoint, "a", name),
            None,
        )
        .allowed
    };
    assert!(call("x") && !call("y"));
}

/// A newer registry may know more than this process does, whose other changes must count nevertheless.
#[test]
fn actions_that_are_not_known_yet_take_nothing_else_away() {
    let known = snapshot(&["newer@a", "newest@a"], |state| {
        let roles = [
            ("newer", vec!["model.read", "model.dream"]),
            ("newest", vec!["model.dream"]),
        ];
        for (name, actions) in roles {
            let actions = actions.into_iter().map(str::to_owned).collect();
            state.roles.insert(name.to_owned(), actions);
        }
    });
    assert!(ask(&known, Action::ModelRead, model("a"), None).allowed);
    assert!(!ask(&known, Action::ModelWrite, model("a"), None).allowed);
    let error = check_role("newer", &["model.dream".to_owned()]).unwrap_err();
    assert!(error.to_string().contains("model.dream"), "{error}");
}

#[test]
fn nobody_may_anything_without_a_role() {
    let known = snapshot(&[], |_| {});
    for action in Action::ALL {
        for resource in [Resource::INSTALLATION, Resource::project("a"), model("a")] {
            assert!(!ask(&known, *action, resource, None).allowed, "{action}");
        }
    }
}

#[test]
fn a_scope_takes_away_and_never_adds() {
    let known = snapshot(&["viewer@*"], |_| {});
    let scope: Vec<Grant> = vec!["admin@a".parse().unwrap()];
    let may = |action, resource| ask(&known, action, resource, Some(&scope)).allowed;
    assert!(may(Action::ModelRead, model("a")));
    assert!(!may(Action::ModelWrite, model("a")) && !may(Action::ModelRead, model("b")));
    assert!(!ask(&known, Action::ModelRead, model("a"), Some(&[])).allowed);
}

#[test]
fn what_is_between_services_is_opened_by_nothing() {
    let everything = Action::ALL.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    let known = snapshot(&["admin@*", "everything@*"], |state| {
        state.roles.insert("everything".to_owned(), everything);
        let all = "permit (principal, action, resource);".to_owned();
        state.policies.insert("all".to_owned(), all);
    });
    let secret = Resource::named(Kind::Secret, "a", "s");
    assert!(!ask(&known, Action::SecretOpen, secret, None).allowed);
    assert!(!ask(&known, Action::AuditAppend, Resource::INSTALLATION, None).allowed);
    assert!(ask(&known, Action::SecretWrite, secret, None).allowed);
    let service = known.decide(&Question {
        principal: &Principal::service("orchestrator"),
        scope: None,
        via: Via::Service,
        action: Action::SecretOpen,
        resource: secret,
    });
    assert!(service.allowed, "{service:?}");
}

#[test]
fn policies_of_an_admin_permit_and_forbid() {
    let text = r#"forbid (principal, action == Action::"alias.write", resource == Model::"a/m") unless { context.via == "session" };"#;
    check_policy("careful", text).unwrap();
    let known = snapshot(&["deployer@a"], |state| {
        state.policies.insert("careful".to_owned(), text.to_owned());
    });
    let refused = ask(&known, Action::AliasWrite, model("a"), None);
    assert!(!refused.allowed);
    assert_eq!(refused.policies, ["policy-careful"]);
    let other = Resource::named(Kind::Model, "a", "other");
    assert_eq!(ask(&known, Action::AliasWrite, other, None).policies, ["role-deployer"]);
}

#[test]
fn no_policy_locks_out_those_who_could_mend_it() {
    let known = snapshot(&["admin@*"], |state| {
        let all = "forbid (principal, action, resource);".to_owned();
        state.policies.insert("mistake".to_owned(), all);
    });
    assert!(!ask(&known, Action::ModelRead, model("a"), None).allowed);
    assert!(ask(&known, Action::AccessWrite, Resource::INSTALLATION, None).allowed);
    assert!(!ask(&known, Action::AccessWrite, Resource::project("a"), None).allowed);
    let service = known.decide(&Question {
        principal: &Principal::service("gateway"),
        scope: None,
        via: Via::Service,
        action: Action::EndpointWatch,
        resource: Resource::INSTALLATION,
    });
    assert!(service.allowed);
}

#[test]
fn every_action_and_kind_is_in_the_schema() {
    let schema = parse_schema().unwrap();
    let declared: BTreeSet<String> = schema
        .actions()
        .map(|action| action.id().unescaped().to_owned())
        .collect();
    for action in Action::ALL {
        assert!(declared.contains(action.as_str()), "{action}");
    }
    for kind in Kind::ALL {
        assert!(
            SCHEMA.contains(&format!("entity {} ", kind.as_str()))
                || SCHEMA.contains(&format!("entity {};", kind.as_str()))
        );
    }
}

//! Audit events in the words of the Open Cybersecurity Schema Framework, version 1.2.0, for security data lakes and SIEMs.
//!
//! | Event | Class |
//! | --- | --- |
//! | `sign-in`, `token.exchange`, `sign-out` | Authentication (3002) |
//! | a change of a user or service account | Account Change (3001) |
//! | a change of a role binding | User Access Management (3005) |
//! | a change of a role, policy, token, secret or webhook | Entity Management (3004) |
//! | everything else, and all that only looks | API Activity (6003) |
//!
//! What was done is the event's detail [`Operation`]; what was refused has none.
//!
//! Everything that OCSF has no attribute for is under `unmapped`, the hashes of the chain, too.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::{
    event::{AuditEvent, Outcome},
    operation::Operation,
};

/// The version of the schema.
pub const OCSF_VERSION: &str = "1.2.0";

const PRODUCT: &str = "Modelyard";
/// What stands for a value that is not known, where the schema requires one.
const UNKNOWN: &str = "unknown";
/// The activity that the schema has no number for.
const OTHER: u32 = 99;

/// The classes that events are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    AccountChange,
    Authentication,
    EntityManagement,
    UserAccess,
    ApiActivity,
}

impl Class {
    const fn uid(self) -> u32 {
        match self {
            Self::AccountChange => 3001,
            Self::Authentication => 3002,
            Self::EntityManagement => 3004,
            Self::UserAccess => 3005,
            Self::ApiActivity => 6003,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::AccountChange => "Account Change",
            Self::Authentication => "Authentication",
            Self::EntityManagement => "Entity Management",
            Self::UserAccess => "User Access Management",
            Self::ApiActivity => "API Activity",
        }
    }

    const fn category(self) -> &'static str {
        match self {
            Self::ApiActivity => "Application Activity",
            _ => "Identity & Access Management",
        }
    }
}

/// The event as an OCSF event, by a product of this version.
#[must_use]
pub fn to_ocsf(event: &AuditEvent, product_version: &str) -> Value {
    let (class, (activity_id, activity)) = classify(event);
    let class_uid = class.uid();
    let (status_id, status, severity_id, severity) = match event.outcome {
        Outcome::Success => (1, "Success", 1, "Informational"),
        Outcome::Denied | Outcome::Failed => (2, "Failure", 2, "Low"),
    };
    let activity_name = if activity_id == OTHER {
        detail(event, "operation").unwrap_or(&event.action)
    } else {
        activity
    };
    let mut ocsf = json!({
        "activity_id": activity_id,
        "activity_name": activity_name,
        "category_uid": class_uid / 1000,
        "category_name": class.category(),
        "class_uid": class_uid,
        "class_name": class.name(),
        "type_uid": class_uid * 100 + activity_id,
        "type_name": format!("{}: {activity}", class.name()),
        "time": event.at.as_millis(),
        "severity_id": severity_id,
        "severity": severity,
        "status_id": status_id,
        "status": status,
        "status_code": event.outcome.as_str(),
        "message": message(event),
        "metadata": metadata(event, product_version),
        "actor": actor(event),
        "src_endpoint": source(event),
        "unmapped": unmapped(event),
    });
    if let Some(reason) = &event.reason {
        ocsf["status_detail"] = json!(reason);
    }
    match class {
        Class::ApiActivity => {
            ocsf["api"] = json!({"operation": event.action, "service": {"name": PRODUCT, "version": product_version}});
            if let Some(request_id) = &event.request_id {
                ocsf["api"]["request"] = json!({"uid": request_id});
            }
            ocsf["resources"] = json!([resource(event)]);
        }
        Class::Authentication => {
            ocsf["user"] = user(event.on_behalf_of.as_deref().unwrap_or(&event.actor));
            ocsf["service"] = json!({"name": PRODUCT, "version": product_version});
        }
        Class::AccountChange => {
            // The kind is the first part of a principal's name, too.
            ocsf["user"] = user(&format!("{}:{}", event.resource_kind, event.resource));
        }
        Class::EntityManagement => {
            ocsf["entity"] = resource(event);
        }
        Class::UserAccess => {
            ocsf["user"] = user(detail(event, "subject").unwrap_or(UNKNOWN));
            ocsf["privileges"] = json!([detail(event, "role").unwrap_or(UNKNOWN)]);
            ocsf["resource"] = resource(event);
        }
    }
    ocsf
}

fn detail<'a>(event: &'a AuditEvent, name: &str) -> Option<&'a str> {
    event.details.get(name)?.as_str()
}

/// The class, and the activity with its caption.
fn classify(event: &AuditEvent) -> (Class, (u32, &'static str)) {
    match event.action.as_str() {
        "sign-in" | "token.exchange" => return (Class::Authentication, LOGON),
        "sign-out" => return (Class::Authentication, LOGOFF),
        _ => {}
    }
    let operation = detail(event, "operation").and_then(Operation::find);
    let change = change(event, operation);
    if change == READ {
        return (Class::ApiActivity, change);
    }
    match event.resource_kind.as_str() {
        "user" | "service-account" => (Class::AccountChange, account_change(operation, change)),
        "role-binding" if detail(event, "subject").is_some() && detail(event, "role").is_some() => (
            Class::UserAccess,
            if change == DELETE {
                (2, "Revoke Privileges")
            } else {
                (1, "Assign Privileges")
            },
        ),
        "role-binding" | "role" | "policy" | "token" | "secret" | "webhook" => (Class::EntityManagement, change),
        _ => (Class::ApiActivity, change),
    }
}

const LOGON: (u32, &str) = (1, "Logon");
const LOGOFF: (u32, &str) = (2, "Logoff");
const CREATE: (u32, &str) = (1, "Create");
const READ: (u32, &str) = (2, "Read");
const UPDATE: (u32, &str) = (3, "Update");
const DELETE: (u32, &str) = (4, "Delete");

/// API Activity and Entity Management share these numbers.
fn change(event: &AuditEvent, operation: Option<Operation>) -> (u32, &'static str) {
    match operation {
        Some(Operation::Create) => CREATE,
        Some(Operation::Read | Operation::Export) => READ,
        Some(Operation::Delete | Operation::Revoke) => DELETE,
        Some(Operation::Apply) if event.before_digest.is_none() => CREATE,
        Some(
            Operation::Apply
            | Operation::Cancel
            | Operation::Restore
            | Operation::Finish
            | Operation::ChangePassword
            | Operation::MarkSensitive
            | Operation::UnmarkSensitive,
        ) => UPDATE,
        // What was refused has no operation; what only looks is known by its permission.
        None if event.action.strip_suffix(".read").is_some() => READ,
        Some(Operation::Sign) | None => (OTHER, "Other"),
    }
}

fn account_change(operation: Option<Operation>, change: (u32, &'static str)) -> (u32, &'static str) {
    match (operation, change) {
        (Some(Operation::ChangePassword), _) => (3, "Password Change"),
        (_, CREATE) => (1, "Create"),
        (_, DELETE) => (6, "Delete"),
        _ => (OTHER, "Other"),
    }
}

fn message(event: &AuditEvent) -> String {
    let resource = if event.resource.is_empty() {
        "the installation"
    } else {
        &event.resource
    };
    format!(
        "{}: {} of {resource} by {}",
        event.outcome.as_str(),
        event.action,
        event.actor
    )
}

fn metadata(event: &AuditEvent, product_version: &str) -> Value {
    let mut metadata = json!({
        "version": OCSF_VERSION,
        "product": {"name": PRODUCT, "vendor_name": PRODUCT, "version": product_version},
        "uid": event.id.to_string(),
        "sequence": event.seq,
        "original_time": event.at.to_string(),
        "log_name": "audit",
        "event_code": event.action,
    });
    if let Some(request_id) = &event.request_id {
        metadata["correlation_uid"] = json!(request_id);
    }
    metadata
}

fn user(principal: &str) -> Value {
    let (kind, name) = principal.split_once(':').unwrap_or(("", principal));
    let (type_id, kind) = match kind {
        "user" => (1, "User"),
        "service" => (3, "System"),
        "service-account" => (99, "Service Account"),
        "group" => (99, "Group"),
        _ => (0, "Unknown"),
    };
    json!({"name": name, "uid": principal, "type_id": type_id, "type": kind})
}

fn actor(event: &AuditEvent) -> Value {
    // A service that speaks for somebody is the application by which that user acted.
    let service = event.actor.strip_prefix("service:");
    match (&event.on_behalf_of, service) {
        (Some(principal), Some(service)) => json!({"user": user(principal), "app_name": service}),
        (None, Some(service)) => json!({"user": user(&event.actor), "app_name": service}),
        _ => json!({"user": user(&event.actor)}),
    }
}

fn source(event: &AuditEvent) -> Value {
    match &event.source_address {
        Some(address) if address.parse::<IpAddr>().is_ok() => json!({"ip": address}),
        Some(address) => json!({"name": address}),
        // What a service does by itself comes from itself.
        None => json!({"svc_name": event.actor.strip_prefix("service:").unwrap_or(UNKNOWN)}),
    }
}

fn resource(event: &AuditEvent) -> Value {
    // An entity has a name; the installation has none.
    let name = if event.resource.is_empty() {
        event.resource_kind.as_str()
    } else {
        &event.resource
    };
    let uid = if event.project.is_empty() {
        name.to_owned()
    } else {
        format!("{}/{name}", event.project)
    };
    json!({"name": name, "type": event.resource_kind, "uid": uid})
}

fn unmapped(event: &AuditEvent) -> Value {
    let mut unmapped = Map::new();
    for (key, value) in [
        ("project", Some(&event.project).filter(|project| !project.is_empty())),
        ("before_digest", event.before_digest.as_ref()),
        ("after_digest", event.after_digest.as_ref()),
    ] {
        if let Some(value) = value {
            unmapped.insert(key.to_owned(), json!(value));
        }
    }
    unmapped.insert("details".to_owned(), event.details.clone());
    unmapped.insert("prev_hash".to_owned(), json!(event.prev_hash));
    unmapped.insert("hash".to_owned(), json!(event.hash));
    Value::Object(unmapped)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{GENESIS, NewEvent, fixture, link},
        *,
    };

    fn ocsf(event: NewEvent) -> Value {
        to_ocsf(&link(&GENESIS, event, 1).unwrap(), "0.1.0")
    }

    fn of(action: &str, operation: &str, kind: &str, resource: &str) -> NewEvent {
        NewEvent {
            details: json!({"operation": operation}),
            action: action.to_owned(),
            resource_kind: kind.to_owned(),
            resource: resource.to_owned(),
            ..fixture::new_event(1)
        }
    }

    /// What OCSF 1.2.0 requires: of every event, of its class, and inside the objects.
    fn check_required(event: &Value) {
        for key in [
            "activity_id",
            "category_uid",
            "class_uid",
            "severity_id",
            "time",
            "type_uid",
        ] {
            assert!(event[key].is_i64() || event[key].is_u64(), "{key}: {event}");
        }
        let number = |key: &str| event[key].as_u64().unwrap();
        assert_eq!(number("type_uid"), number("class_uid") * 100 + number("activity_id"));
        assert_eq!(number("category_uid"), number("class_uid") / 1000);
        for path in [
            "/metadata/version",
            "/metadata/product/vendor_name",
            "/metadata/product/name",
            "/message",
        ] {
            assert!(event.pointer(path).is_some_and(Value::is_string), "{path}: {event}");
        }
        // At least one of each list.
        let one_of = |object: &str, keys: &[&str]| {
            let has = |key: &&str| event.pointer(&format!("{object}/{key}")).is_some();
            assert!(keys.iter().any(has), "{object}: {event}");
        };
        one_of("/actor", &["user", "app_name"]);
        one_of("/actor/user", &["name", "uid"]);
        one_of("/src_endpoint", &["ip", "name", "svc_name"]);
        match number("class_uid") {
            6003 => {
                assert!(event.pointer("/api/operation").is_some_and(Value::is_string), "{event}");
                one_of("/resources/0", &["name", "uid"]);
            }
            3001 => one_of("/user", &["name", "uid"]),
            3002 => {
                one_of("/user", &["name", "uid"]);
                one_of("/service", &["name", "uid"]);
            }
            3004 => one_of("/entity", &["name", "uid"]),
            3005 => {
                one_of("/user", &["name", "uid"]);
                assert!(
                    event["privileges"]
                        .as_array()
                        .is_some_and(|privileges| !privileges.is_empty()),
                    "{event}"
                );
            }
            other => panic!("class {other}"),
        }
    }

    #[test]
    fn actions_have_their_classes() {
        for (action, operation, kind, type_uid) in [
            ("sign-in", "", "user", 300_201),
            ("token.exchange", "", "service-account", 300_201),
            ("sign-out", "revoke", "user", 300_202),
            ("identity.write", "apply", "user", 300_101),
            ("identity.write", "create", "user", 300_101),
            ("identity.write", "change-password", "user", 300_103),
            ("identity.write", "delete", "service-account", 300_106),
            ("identity.write", "cancel", "user", 300_199),
            ("identity.write", "revoke", "token", 300_404),
            ("access.write", "apply", "role", 300_401),
            ("access.write", "delete", "policy", 300_404),
            ("secret.write", "delete", "secret", 300_404),
            ("secret.open", "read", "secret", 600_302),
            ("alias.write", "apply", "model", 600_301),
            ("endpoint.write", "delete", "endpoint", 600_304),
            ("pipeline.run", "cancel", "pipeline-run", 600_303),
            ("prediction.read", "read", "prediction", 600_302),
            ("access.write", "mark-sensitive", "model", 600_303),
            ("audit.read", "export", "installation", 600_302),
            ("audit.sign", "sign", "installation", 600_399),
            // Refused.
            ("identity.read", "", "installation", 600_302),
            ("endpoint.write", "", "endpoint", 600_399),
            ("odd", "odd", "", 600_399),
        ] {
            let event = ocsf(of(action, operation, kind, "thing"));
            assert_eq!(event["type_uid"], type_uid, "{action} {operation}");
            check_required(&event);
        }
        let mut binding = of("access.write", "apply", "role-binding", "deployers");
        assert_eq!(ocsf(binding.clone())["class_uid"], 3004);
        binding.details["subject"] = json!("group:ml");
        binding.details["role"] = json!("deployer");
        let event = ocsf(binding);
        assert_eq!(event["type_uid"], 300_501);
        assert_eq!(event["privileges"], json!(["deployer"]));
        check_required(&event);
    }

    #[test]
    fn every_operation_is_found_by_its_word() {
        for operation in Operation::ALL {
            assert_eq!(Operation::find(operation.as_str()), Some(*operation));
        }
    }

    #[test]
    fn digests_tell_a_change_from_the_first_time() {
        let event = NewEvent {
            before_digest: Some("sha256:00".to_owned()),
            ..of("endpoint.write", "apply", "endpoint", "delay")
        };
        assert_eq!(ocsf(event)["type_uid"], 600_303);
    }

    #[test]
    fn a_refusal_is_a_failure_with_its_reason() {
        let event = ocsf(NewEvent {
            outcome: Outcome::Denied,
            reason: Some("PERMISSION_DENIED".to_owned()),
            ..of("endpoint.write", "", "endpoint", "delay")
        });
        assert_eq!((&event["status_id"], &event["severity_id"]), (&json!(2), &json!(2)));
        assert_eq!(event["status_detail"], "PERMISSION_DENIED");
    }

    #[test]
    fn a_whole_event_is_as_documented() {
        let mut event = fixture::new_event(1);
        event.add_detail("operation", "apply");
        let linked = link(&GENESIS, event, 1).unwrap();
        let expected = json!({
            "activity_id": 1, "activity_name": "Create", "category_uid": 6, "category_name": "Application Activity",
            "class_uid": 6003, "class_name": "API Activity", "type_uid": 600_301, "type_name": "API Activity: Create",
            "time": fixture::START + 1000, "severity_id": 1, "severity": "Informational",
            "status_id": 1, "status": "Success", "status_code": "success",
            "message": "success: alias.write of flight-delay@champion by user:alice",
            "metadata": {
                "version": "1.2.0", "product": {"name": "Modelyard", "vendor_name": "Modelyard", "version": "0.1.0"},
                "uid": "00000000-0000-0000-0000-000000000001", "sequence": 1, "original_time": "2026-01-02T03:04:06Z",
                "log_name": "audit", "event_code": "alias.write", "correlation_uid": "request-1",
            },
            "actor": {"user": {"name": "alice", "uid": "user:alice", "type_id": 1, "type": "User"}},
            "src_endpoint": {"ip": "192.0.2.1"},
            "api": {
                "operation": "alias.write", "service": {"name": "Modelyard", "version": "0.1.0"},
                "request": {"uid": "request-1"},
            },
            "resources": [{"name": "flight-delay@champion", "type": "model", "uid": "default/flight-delay@champion"}],
            "unmapped": {
                "project": "default", "after_digest": "sha256:01",
                "details": {"via": "token", "operation": "apply", "count": 1},
                "prev_hash": GENESIS, "hash": linked.hash,
            },
        });
        assert_eq!(to_ocsf(&linked, "0.1.0"), expected);
    }

    #[test]
    fn services_act_for_somebody_or_themselves() {
        let mut event = of("pipeline.run", "create", "pipeline-run", "1");
        event.actor = "service:orchestrator".to_owned();
        event.source_address = None;
        let own = ocsf(event.clone());
        assert_eq!(own["src_endpoint"], json!({"svc_name": "orchestrator"}));
        assert_eq!(own["actor"]["user"]["type"], "System");
        event.on_behalf_of = Some("user:alice".to_owned());
        let event = ocsf(event);
        assert_eq!(
            (&event["actor"]["app_name"], &event["actor"]["user"]["name"]),
            (&json!("orchestrator"), &json!("alice"))
        );
    }

    proptest! {
        #[test]
        fn any_event_has_what_is_required(event in fixture::any_event()) {
            check_required(&ocsf(event));
        }
    }
}

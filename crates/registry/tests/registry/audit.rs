//! The audit chain: it signs itself, is only added to, and shows what was changed under it.

use http::Method;
use modelyard_common::Timestamp;
use modelyard_db::Database;
use modelyard_proto::registry::v1::{AppendEventsRequest, audit_service_client::AuditServiceClient};
use modelyard_testkit::{access::event, wait};
use serde_json::Value;

use crate::{
    access::{done, guarded},
    openid::database,
    support::{PATIENCE, execute},
};

#[tokio::test]
async fn the_chain_signs_itself_after_every_thousand_events() {
    const EVENTS: usize = 1000;
    for (place, registry, admin) in guarded().await {
        let now: Timestamp = "2013-03-01T00:00:00Z".parse().unwrap();
        let events = (0..EVENTS)
            .map(|_| serde_json::to_string(&event(now)).unwrap())
            .collect();
        AuditServiceClient::new(registry.services.clone())
            .append_events(AppendEventsRequest { events })
            .await
            .unwrap();
        let database = database(&place, &registry).await;
        let signed = wait::until("the head of the chain is signed", PATIENCE, || async {
            let checkpoints = "SELECT CAST(seq AS TEXT) FROM audit_checkpoint";
            crate::openid::column(&database, checkpoints).await.pop()
        })
        .await;
        assert!(signed.parse::<usize>().unwrap() >= EVENTS, "{signed}");
        let report = done(&registry, &admin, Method::POST, "audit/verify", Value::Null).await;
        assert_eq!(report["intact"], true, "{report}");
        registry.stop().await;
    }
}

#[tokio::test]
async fn the_chain_is_only_added_to_and_shows_what_was_changed_under_it() {
    for (place, registry, admin) in guarded().await {
        let append = async |texts: Vec<String>| {
            let mut client = AuditServiceClient::new(registry.services.clone());
            client
                .append_events(AppendEventsRequest { events: texts })
                .await
                .unwrap();
        };
        let now: Timestamp = "2013-03-01T00:00:00Z".parse().unwrap();
        let texts: Vec<String> = (0..20).map(|_| serde_json::to_string(&event(now)).unwrap()).collect();
        append(texts.clone()).await;
        append(texts).await;
        let query = "audit/events?action=test&limit=100";
        let found = done(&registry, &admin, Method::GET, query, Value::Null).await;
        assert_eq!(found["items"].as_array().unwrap().len(), 20);
        done(&registry, &admin, Method::POST, "audit/checkpoints", Value::Null).await;
        let verify = async || done(&registry, &admin, Method::POST, "audit/verify", Value::Null).await;
        let report = verify().await;
        assert_eq!(report["intact"], true, "{report}");
        let database = database(&place, &registry).await;
        for change in [
            "UPDATE audit_event SET actor = 'user:mallory' WHERE seq = 3",
            "DELETE FROM audit_event WHERE seq = 3",
            "DELETE FROM audit_checkpoint",
        ] {
            assert!(execute(&database, change).await.is_err(), "{change}");
        }
        // Whoever owns the database can still take the guard away. That is what the chain is for.
        let guard = match &database {
            Database::Sqlite(_) => "DROP TRIGGER audit_event_stays",
            Database::Postgres(_) => "DROP TRIGGER audit_event_stays ON audit_event",
        };
        execute(&database, guard).await.unwrap();
        if matches!(database, Database::Postgres(_)) {
            execute(&database, "GRANT UPDATE ON audit_event TO CURRENT_USER")
                .await
                .unwrap();
        }
        execute(&database, "UPDATE audit_event SET actor = 'user:mallory' WHERE seq = 3")
            .await
            .unwrap();
        let report = verify().await;
        assert_eq!(report["intact"], false);
        assert!(report["problems"][0].as_str().unwrap().contains('3'), "{report}");
        // What cannot even be read is named, too, and does not hide the rest.
        execute(
            &database,
            "UPDATE audit_event SET details = '{', hash = '' WHERE seq = 5",
        )
        .await
        .unwrap();
        execute(&database, "UPDATE audit_event SET outcome = 'fine' WHERE seq = 7")
            .await
            .unwrap();
        let report = verify().await;
        let problems = report["problems"].as_array().unwrap();
        for seq in [3, 5, 7] {
            let named = format!("event {seq} was changed");
            assert!(
                problems
                    .iter()
                    .any(|problem| problem.as_str().unwrap().starts_with(&named)),
                "{report}"
            );
        }
        registry.stop().await;
    }
}

//! A service alone, where everybody is an admin and the audit chain is a list.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use modelyard_auth::{
    Access,
    audit::{NewEvent, Outcome},
};
use modelyard_common::{Context, Timestamp};
use serde_json::json;
use uuid::Uuid;

/// What the audit chain was told, in its order.
#[derive(Clone, Default)]
pub struct Told(Arc<Mutex<Vec<NewEvent>>>);

impl Told {
    /// The events so far.
    #[must_use]
    pub fn events(&self) -> Vec<NewEvent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A handle for which everybody is an admin of the project `default`.
///
/// # Panics
/// The built-in policies cannot be read.
#[must_use]
#[expect(clippy::expect_used, reason = "for tests")]
pub fn open(context: &Context) -> (Access, Told) {
    let access = Access::open(["default"], Arc::clone(&context.clock), Arc::clone(&context.ids))
        .expect("the built-in policies can be read");
    let told = Told::default();
    let chain = told.clone();
    access.deliver_events_by(Arc::new(move |events| {
        chain.0.lock().unwrap_or_else(PoisonError::into_inner).extend(events);
        Box::pin(std::future::ready(Ok(())))
    }));
    (access, told)
}

/// The audit event of something that a test does to a store; each has an id of its own.
#[must_use]
pub fn event(at: Timestamp) -> NewEvent {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NewEvent {
        id: Uuid::from_u128(NEXT.fetch_add(1, Ordering::Relaxed).into()),
        at,
        project: "default".to_owned(),
        actor: "user:test".to_owned(),
        on_behalf_of: None,
        action: "test".to_owned(),
        resource_kind: "project".to_owned(),
        resource: "default".to_owned(),
        outcome: Outcome::Success,
        reason: None,
        before_digest: None,
        after_digest: None,
        request_id: None,
        source_address: None,
        details: json!({}),
    }
}

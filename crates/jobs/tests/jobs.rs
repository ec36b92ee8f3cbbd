//! The behaviour of the queue, on each database that can be tested.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "jobs/model.rs"]
mod model;
#[path = "jobs/suite.rs"]
mod suite;
#[path = "jobs/work.rs"]
mod work;

use std::{sync::Arc, time::Duration};

use modelyard_common::{Timestamp, config::Secret};
use modelyard_db::{Database, DatabaseConfig};
use modelyard_jobs::{ClaimRequest, Job, JobId, JobStore, NewJob};
use modelyard_testkit::postgres::{TestDatabase, test_databases};
use uuid::Uuid;

const LEASE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);

/// A queue on a fresh database.
struct Place {
    store: Arc<dyn JobStore>,
    database: Database,
    /// Keeps the folder.
    _folder: TestDatabase,
}

async fn places() -> Vec<Place> {
    let mut places = Vec::new();
    for place in test_databases().await.unwrap() {
        let config = DatabaseConfig {
            url: place.url.clone().map(Secret::new),
            ..DatabaseConfig::default()
        };
        let database = Database::open(&config, place.data_dir(), "work").await.unwrap();
        database.migrate(&[modelyard_jobs::MIGRATIONS]).await.unwrap();
        places.push(Place {
            store: modelyard_jobs::open(&database),
            database,
            _folder: place,
        });
    }
    places
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(1_000_000) + Duration::from_secs(seconds)
}

#[expect(
    clippy::disallowed_methods,
    reason = "ids that sort as they are made, which decides between jobs that are equal otherwise"
)]
fn new_id() -> JobId {
    Uuid::now_v7().into()
}

fn job(queue: &str, run_at: Timestamp) -> NewJob {
    NewJob::new(new_id(), queue, serde_json::json!({"n": 1}), run_at)
}

async fn claim(store: &dyn JobStore, queue: &str, node: &str, limit: usize, now: Timestamp) -> Vec<Job> {
    let request = ClaimRequest {
        queues: &[queue.to_owned()],
        node,
        lease: LEASE,
        limit,
    };
    store.claim(&request, now).await.unwrap()
}

async fn claim_one(store: &dyn JobStore, queue: &str, node: &str, now: Timestamp) -> Option<Job> {
    claim(store, queue, node, 1, now).await.pop()
}

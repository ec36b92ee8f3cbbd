//! `flights bench`: what knowing the caller costs, and how fast the audit chain is written and verified.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use modelyard_auth::{
    Access, Action, Binding, Credentials, Facts, Identity, Kind, Mode, Principal, Resource, State, Subject, TokenEntry,
    audit::{NewEvent, Outcome},
    token::{Token, TokenKind},
};
use modelyard_common::{
    Timestamp,
    clock::{Clock as _, SystemClock},
    id::{IdSource as _, RandomIds},
};
use modelyard_proto::registry::v1::{AppendEventsRequest, audit_service_client::AuditServiceClient};
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;
use tonic::{Request, transport::Channel};

/// How many tokens the installation has.
const TOKENS: usize = 10_000;
/// How many requests are authorized.
const REQUESTS: usize = 200_000;
/// How many hand over one event at a time.
const WRITERS: usize = 256;
/// How long they do so.
const WRITING: Duration = Duration::from_secs(5);
/// How long the chain is that is verified.
const CHAIN: u64 = 1_000_000;
/// How many events are handed over at once to make it that long.
const BATCH: usize = 1000;
/// How many do so at the same time.
const FILLERS: usize = 4;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Evidence {
    /// Microseconds to find out whose token a request has and whether it may predict: the median.
    pub authorize_p50_us: f64,
    /// Events a second that many clients hand over one by one, each on the disk before its answer.
    pub events_per_second: f64,
    /// The length of the chain that was verified.
    pub verified_events: u64,
    /// How long that took, in seconds.
    pub verify_seconds: f64,
}

/// Measures at a server that asks nobody to sign in.
pub async fn measure(public: &str, internal: &str) -> Result<Evidence> {
    let authorize_p50_us = authorize().await?;
    let channel = Channel::from_shared(internal.to_owned())?.connect().await?;
    let client = AuditServiceClient::new(channel);
    let events_per_second = write_one_by_one(&client).await?;
    fill(&client).await?;
    let started = Instant::now();
    let http = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let report: serde_json::Value = http
        .post(format!("{public}/api/v1/audit/verify"))
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    let verify_seconds = started.elapsed().as_secs_f64();
    let number = report.get("events").and_then(serde_json::Value::as_u64);
    ensure!(
        report.get("intact") == Some(&json!(true)),
        "the chain is not intact: {report}"
    );
    Ok(Evidence {
        authorize_p50_us,
        events_per_second,
        verified_events: number.context("the report counts no events")?,
        verify_seconds,
    })
}

async fn authorize() -> Result<f64> {
    let clock = Arc::new(SystemClock);
    let access = Access::new(Mode::SignIn, None, clock.clone(), RandomIds::new(clock))?;
    let mut state = State {
        projects: ["default".to_owned()].into(),
        ..State::default()
    };
    let mut last = None;
    for index in 0..TOKENS {
        let name = format!("client-{index}");
        let owner = Principal::service_account(&name);
        let identity = Identity {
            enabled: true,
            groups: [].into(),
            password_revision: 0,
        };
        state.identities.insert(owner.clone(), identity);
        state.bindings.push(Binding {
            name: name.clone(),
            subject: Subject::Principal(owner.clone()),
            grant: "caller@default/endpoints/flight-delay".parse()?,
        });
        let token = Token::generate(TokenKind::Api)?;
        let entry = TokenEntry {
            id: name,
            owner,
            kind: TokenKind::Api,
            scope: None,
            expires_at: None,
        };
        state.tokens.insert(token.hash(), entry);
        last = Some(token);
    }
    access.set(1, state)?;
    let token = last.context("no token was made")?;
    let facts = Facts {
        request_id: None,
        source: None,
    };
    let endpoint = Resource::named(Kind::Endpoint, "default", "flight-delay");
    let mut took = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let started = Instant::now();
        let caller = access.authenticate(Credentials::Bearer(token.reveal()), facts).await?;
        caller.authorize(Action::EndpointPredict, endpoint)?;
        took.push(started.elapsed());
    }
    took.sort_unstable();
    let median = took.get(REQUESTS / 2).copied().unwrap_or_default();
    Ok(median.as_secs_f64() * 1e6)
}

fn event(at: Timestamp) -> Result<String> {
    let event = NewEvent {
        id: RandomIds::new(Arc::new(SystemClock)).next(),
        at,
        project: "default".to_owned(),
        actor: "service:orchestrator".to_owned(),
        on_behalf_of: Some("user:alice".to_owned()),
        action: "pipeline.run".to_owned(),
        resource_kind: "pipeline".to_owned(),
        resource: "flight-delay".to_owned(),
        outcome: Outcome::Success,
        reason: None,
        before_digest: None,
        after_digest: Some("sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".to_owned()),
        request_id: Some("0199f6a5-7a3e-7c11-9a55-0d6c1a3f7b10".to_owned()),
        source_address: Some("192.0.2.17".to_owned()),
        details: json!({"via": "token", "token": "0199f6a5-7a3e-7c11-9a55-0d6c1a3f7b11"}),
    };
    Ok(serde_json::to_string(&event)?)
}

async fn append(client: &mut AuditServiceClient<Channel>, count: usize) -> Result<()> {
    let now = SystemClock.now();
    let events = (0..count).map(|_| event(now)).collect::<Result<Vec<_>>>()?;
    let mut request = Request::new(AppendEventsRequest { events });
    request
        .metadata_mut()
        .insert("modelyard-service", "orchestrator".parse()?);
    client.append_events(request).await?;
    Ok(())
}

async fn write_one_by_one(client: &AuditServiceClient<Channel>) -> Result<f64> {
    let end = Instant::now() + WRITING;
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let mut client = client.clone();
        writers.spawn(async move {
            let mut written = 0_u64;
            while Instant::now() < end {
                append(&mut client, 1).await?;
                written += 1;
            }
            anyhow::Ok(written)
        });
    }
    let mut written = 0;
    while let Some(ended) = writers.join_next().await {
        written += ended??;
    }
    Ok(written as f64 / WRITING.as_secs_f64())
}

async fn fill(client: &AuditServiceClient<Channel>) -> Result<()> {
    let batches = CHAIN as usize / BATCH / FILLERS;
    let mut fillers = JoinSet::new();
    for _ in 0..FILLERS {
        let mut client = client.clone();
        fillers.spawn(async move {
            for _ in 0..batches {
                append(&mut client, BATCH).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = fillers.join_next().await {
        ended??;
    }
    Ok(())
}

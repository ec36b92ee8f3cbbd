//! Tokens for workloads: a signed token of their platform, and a rule that says which service account it opens.

use std::{sync::Arc, time::Duration};

use modelyard_auth::{Grant, Place};
use modelyard_common::clock::SharedClock;
use openidconnect::core::CoreJwsSigningAlgorithm;
use serde_json::Value;

use super::{
    claims::Claims,
    config::{Rule, SignIn, Workload, asymmetric_algorithms},
    error::Error,
    fetch::{Fetch, FetchError},
    glob::fits,
    issuer::Issuer,
    verify::{Expected, MAX_TOKEN_BYTES, Refusal, payload, verify_of},
};

/// The longest text of a claim that is compared with a pattern, in bytes.
const MAX_CLAIM_BYTES: usize = 2048;

/// What a workload is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The name of the issuer in the configuration.
    pub workload: String,
    /// Who the workload is there.
    pub subject: String,
    /// The service account.
    pub service_account: String,
    /// The most that the token opens; none: all that the service account may.
    pub scope: Option<Vec<Grant>>,
    /// How long it lives.
    pub lifetime: Duration,
}

struct Platform {
    workload: Workload,
    audience: String,
    issuer: Issuer,
}

/// The issuers whose tokens workloads exchange.
pub struct Workloads {
    issuers: Vec<Platform>,
    algorithms: Vec<CoreJwsSigningAlgorithm>,
    clock: SharedClock,
}

impl Workloads {
    /// The issuers of a configuration. Nothing is asked of them yet.
    pub fn new(
        config: &SignIn,
        clock: SharedClock,
        fetch: impl Fn(&Workload) -> Result<Arc<dyn Fetch>, FetchError>,
    ) -> Result<Self, Error> {
        let mut issuers = Vec::new();
        for workload in &config.workloads {
            let source = workload.key_source().map_err(Error::Config)?;
            let fetch = fetch(workload).map_err(|error| Error::Config(error.to_string()))?;
            let audience = workload.audience.as_deref().or(config.origin()).unwrap_or_default();
            issuers.push(Platform {
                audience: audience.to_owned(),
                issuer: Issuer::new(&workload.name, &workload.issuer, source, fetch, Arc::clone(&clock)),
                workload: workload.clone(),
            });
        }
        Ok(Self {
            issuers,
            algorithms: asymmetric_algorithms(),
            clock,
        })
    }

    /// Verifies a token and finds what it opens. Several entries may name one issuer; the first one that accepts the token
    /// counts, and where none does, the last one's reason is told.
    pub async fn accept(&self, token: &str) -> Result<Accepted, Error> {
        let refused = |refusal| Error::Token {
            name: "a workload".to_owned(),
            refusal,
        };
        if token.len() > MAX_TOKEN_BYTES {
            return Err(refused(Refusal::Malformed));
        }
        // Which issuer is to be asked; whether it made the token is seen by the signature.
        let claims = Claims::new(payload(token).ok_or_else(|| refused(Refusal::Malformed))?);
        let issuer = claims.text("iss").unwrap_or_default();
        let mut error = refused(Refusal::Issuer);
        for from in self.issuers.iter().filter(|from| from.workload.issuer == issuer) {
            match self.accept_from(from, token).await {
                Ok(accepted) => return Ok(accepted),
                Err(reason) => error = reason,
            }
        }
        Err(error)
    }

    async fn accept_from(&self, from: &Platform, token: &str) -> Result<Accepted, Error> {
        let expected = Expected {
            audience: &from.audience,
            algorithms: &self.algorithms,
            secret: None,
            nonce: None,
        };
        let workload = &from.workload;
        let claims = verify_of(&from.issuer, &workload.name, token, &expected, self.clock.now()).await?;
        let subject = claims.subject().ok_or_else(|| Error::Token {
            name: workload.name.clone(),
            refusal: Refusal::Malformed,
        })?;
        let rule = workload.rules.iter().find(|rule| is_for(rule, &claims));
        let rule = rule.ok_or_else(|| Error::NoRule(workload.name.clone()))?;
        Ok(Accepted {
            workload: workload.name.clone(),
            subject: subject.to_owned(),
            service_account: rule.service_account.clone(),
            scope: rule.scope.clone(),
            lifetime: workload.lifetime,
        })
    }
}

/// Whether all claims are as the rule wants them. Only texts, and what is written as one word, can fit.
fn is_for(rule: &Rule, claims: &Claims) -> bool {
    rule.claims.iter().all(|(name, pattern)| match claims.get(name) {
        Some(Value::String(text)) => text.len() <= MAX_CLAIM_BYTES && fits(pattern, text),
        Some(value @ (Value::Bool(_) | Value::Number(_))) => fits(pattern, &value.to_string()),
        _ => false,
    })
}

impl Accepted {
    /// Narrows the scope to what was asked for; none where more was asked for than there is.
    #[must_use]
    pub fn narrowed(mut self, wanted: Vec<Grant>) -> Option<Self> {
        if let Some(scope) = &self.scope
            && !wanted
                .iter()
                .all(|wanted| scope.iter().any(|held| covers(held, wanted)))
        {
            return None;
        }
        self.scope = Some(wanted);
        Some(self)
    }
}

/// Whether a grant opens everything that another one does.
fn covers(held: &Grant, wanted: &Grant) -> bool {
    let is_within = match (&held.place, &wanted.place) {
        (Place::Installation, _) => true,
        (Place::Project(held), Place::Project(wanted) | Place::Endpoint { project: wanted, .. }) => held == wanted,
        (held, wanted) => held == wanted,
    };
    held.role == wanted.role && is_within
}

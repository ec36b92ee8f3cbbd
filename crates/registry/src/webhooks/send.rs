//! One attempt: signed, to an address that is allowed, with an answer of bounded size, and no redirects.

use std::{fs, sync::OnceLock, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use modelyard_common::Timestamp;
use reqwest::{Certificate, redirect::Policy};
use ring::hmac;
use url::Url;

use super::{
    address::{Lookup, Rules, is_refused},
    config::Webhooks,
    sources,
};
use crate::error::{Error, Result};

/// The longest that connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of an answer is read, in bytes.
const MAX_ANSWER_BYTES: usize = 16 << 10;
/// What receivers see of us.
const USER_AGENT: &str = concat!("modelyard/", env!("CARGO_PKG_VERSION"));
const SIGNATURE: &str = "X-MLflow-Signature";
const TIMESTAMP: &str = "X-MLflow-Timestamp";
const DELIVERY_ID: &str = "X-MLflow-Delivery-Id";
const MICROS_PER_SECOND: i64 = 1_000_000;

/// What is sent.
pub(crate) struct Message<'a> {
    /// Where to.
    pub(crate) url: &'a str,
    /// The same in every attempt, so that a receiver knows what it has.
    pub(crate) delivery_id: &'a str,
    /// The content, as JSON.
    pub(crate) body: String,
    /// What it is signed with; none: it is not.
    pub(crate) secret: Option<Vec<u8>>,
    /// When it is sent: receivers refuse what is old.
    pub(crate) now: Timestamp,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: u16,
    /// How long the receiver wants to be left alone.
    pub(crate) retry_after: Option<Duration>,
    /// The beginning of the body.
    pub(crate) body: String,
}

/// A message without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    /// It may not go there: another attempt does not help.
    #[error("{0}")]
    Refused(String),
    /// The way there.
    #[error("{0}")]
    Network(String),
}

/// Sends messages.
pub(crate) struct Sender {
    rules: Rules,
    timeout: Duration,
    certificates: Vec<Certificate>,
    /// Made when it is needed, so that a registry without webhooks has none.
    client: OnceLock<reqwest::Client>,
}

impl Sender {
    /// Reads what the configuration names.
    pub(crate) fn new(config: &Webhooks) -> Result<Self> {
        let certificates = match &config.ca_file {
            None => Vec::new(),
            Some(path) => {
                let failed = |problem: String| {
                    Error::Request(format!(
                        "the certificates `{}` of `registry.webhooks.ca_file` cannot be read: {problem}",
                        path.display()
                    ))
                };
                let pem = fs::read(path).map_err(|error| failed(error.to_string()))?;
                let read = Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.to_string()))?;
                if read.is_empty() {
                    return Err(failed("there is no certificate in it".to_owned()));
                }
                read
            }
        };
        Ok(Self {
            rules: Rules {
                allow_http: config.allow_http,
                allow_private: config.allow_private_addresses,
            },
            timeout: config.timeout,
            certificates,
            client: OnceLock::new(),
        })
    }

    /// Refuses an address to which nothing would be sent.
    pub(crate) async fn check(&self, url: &str) -> Result<()> {
        let url = self.rules.read(url)?;
        self.rules.check_name(&url).await
    }

    fn client(&self) -> Result<reqwest::Client, SendError> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        // No redirects and no proxies: either would send elsewhere than where it was checked.
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(Policy::none())
            .no_proxy()
            .dns_resolver(Lookup(self.rules))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(self.timeout);
        if !self.certificates.is_empty() {
            builder = builder.tls_certs_merge(self.certificates.clone());
        }
        let made = builder.build().map_err(|error| SendError::Network(sources(&error)))?;
        Ok(self.client.get_or_init(|| made).clone())
    }

    /// Sends a message once.
    pub(crate) async fn send(&self, message: Message<'_>) -> Result<Answer, SendError> {
        // The configuration may have changed since the webhook was made.
        let url: Url = self
            .rules
            .read(message.url)
            .map_err(|error| SendError::Refused(error.to_string()))?;
        let timestamp = (message.now.as_micros() / MICROS_PER_SECOND).to_string();
        let mut request = self
            .client()?
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header(DELIVERY_ID, message.delivery_id)
            .header(TIMESTAMP, &timestamp);
        if let Some(secret) = &message.secret {
            let signature = signature(secret, message.delivery_id, &timestamp, &message.body);
            request = request.header(SIGNATURE, signature);
        }
        let failed = |error: &reqwest::Error| {
            if is_refused(error) {
                SendError::Refused(sources(error))
            } else {
                SendError::Network(sources(error))
            }
        };
        let mut answer = request
            .body(message.body)
            .send()
            .await
            .map_err(|error| failed(&error))?;
        let retry_after = answer.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let status = answer.status().as_u16();
        let mut body = Vec::new();
        // What is cut off, or breaks off, does not matter: the status is the answer.
        while let Ok(Some(chunk)) = answer.chunk().await {
            let room = MAX_ANSWER_BYTES - body.len();
            body.extend(chunk.iter().take(room));
            if body.len() >= MAX_ANSWER_BYTES {
                break;
            }
        }
        Ok(Answer {
            status,
            retry_after: retry_after.map(Duration::from_secs),
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}

/// What MLflow's receivers compare.
fn signature(secret: &[u8], delivery_id: &str, timestamp: &str, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let signed = hmac::sign(&key, format!("{delivery_id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(signed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_mlflows() {
        // As its `_generate_hmac_signature` gives it.
        let expected = "v1,cXba7k2h2S9JgnqN7BcpWvnFMfMoFMqAonfzn9WFZBg=";
        assert_eq!(signature(b"s3cret", "d-1", "1700000000", "{\"a\": 1}"), expected);
    }
}

//! Deliveries as jobs: a delivery is enqueued together with what it tells of, and tried until it is taken or given up. It can
//! come twice, with the same id, where the answer to an attempt was lost.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use modelyard_auth::seal::KeyRing;
use modelyard_common::clock::SharedClock;
use modelyard_jobs::{Handler, Job, Outcome, Running};

use super::{Answer, Message, SendError, Sender, open_secret};
use crate::{
    error::Result,
    metrics,
    model::{
        mlflow_registry::shown,
        webhook::{AttemptEnd, DeliveryState, MAX_ERROR_CHARS, WebhookStatus},
    },
    store::WebhookStore,
};

/// The wait after the first attempt.
pub(super) const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait between two attempts.
pub(super) const LONGEST_WAIT: Duration = Duration::from_mins(10);
/// The longest wait that a receiver can ask for.
const LONGEST_ASKED_WAIT: Duration = Duration::from_hours(1);

/// Delivers.
pub(super) struct Delivering {
    pub(super) store: Arc<dyn WebhookStore>,
    pub(super) sender: Arc<Sender>,
    pub(super) keys: Arc<KeyRing>,
    pub(super) clock: SharedClock,
    pub(super) max_attempts: u32,
}

#[async_trait]
impl Handler for Delivering {
    async fn run(&self, job: &Job, running: &Running) -> Outcome {
        match self.deliver(job, running).await {
            Ok(outcome) => outcome,
            // The database, or keys that are missing: both come back.
            Err(error) => Outcome::retry(modelyard_common::error::Chain(&error)),
        }
    }
}

impl Delivering {
    async fn deliver(&self, job: &Job, running: &Running) -> Result<Outcome> {
        let id = job.id.to_string();
        let Some(pending) = self.store.find_pending(&id).await? else {
            // The webhook was removed, or an attempt before was the last one.
            return Ok(Outcome::Done);
        };
        let webhook = &pending.webhook;
        let (end, after) = if webhook.status == WebhookStatus::Active {
            let secret = open_secret(&self.keys, &webhook.project, &webhook.id, pending.secret.as_deref())?;
            let message = Message {
                url: &webhook.url,
                delivery_id: &id,
                body: pending.body,
                secret,
                now: self.clock.now(),
            };
            let result = self.sender.send(message).await;
            decide(result, pending.attempts + 1 >= self.max_attempts)
        } else {
            (given_up("the webhook was disabled before it was sent"), None)
        };
        let (state, error) = (end.state, end.error.clone());
        ::metrics::counter!(metrics::WEBHOOK_ATTEMPTS, metrics::STATE => state.as_str()).increment(1);
        tracing::info!(
            project = webhook.project,
            webhook = webhook.id,
            delivery = id,
            state = state.as_str(),
            status = end.response_status,
            "webhook's delivery tried"
        );
        let now = self.clock.now();
        if state == DeliveryState::Pending {
            self.store.end_attempt(&id, &end, None, now).await?;
            return Ok(Outcome::Retry { after, error });
        }
        self.store.end_attempt(&id, &end, Some(&running.claim), now).await?;
        Ok(Outcome::Settled)
    }
}

/// Nothing was sent, and nothing will be.
fn given_up(error: &str) -> AttemptEnd {
    AttemptEnd {
        state: DeliveryState::Failed,
        is_sent: false,
        response_status: None,
        error: error.to_owned(),
    }
}

/// What an attempt's result means, and how long to wait where the receiver says that.
fn decide(result: Result<Answer, SendError>, is_last: bool) -> (AttemptEnd, Option<Duration>) {
    let (is_transient, status, error, after) = match result {
        Ok(answer) if (200..300).contains(&answer.status) => {
            let end = AttemptEnd {
                state: DeliveryState::Delivered,
                is_sent: true,
                response_status: Some(answer.status),
                error: String::new(),
            };
            return (end, None);
        }
        Ok(answer) => {
            let is_transient = answer.status == 429 || answer.status >= 500;
            let error = refusal(&answer);
            (is_transient, Some(answer.status), error, answer.retry_after)
        }
        Err(SendError::Refused(error)) => (false, None, error, None),
        Err(SendError::Network(error)) => (true, None, error, None),
    };
    let will_be_tried = is_transient && !is_last;
    let end = AttemptEnd {
        state: if will_be_tried {
            DeliveryState::Pending
        } else {
            DeliveryState::Failed
        },
        is_sent: true,
        response_status: status,
        error: error.chars().take(MAX_ERROR_CHARS).collect(),
    };
    (
        end,
        after
            .filter(|wait| !wait.is_zero())
            .map(|wait| wait.min(LONGEST_ASKED_WAIT)),
    )
}

/// Why an answer is no success.
fn refusal(answer: &Answer) -> String {
    let said = shown(answer.body.trim());
    match (answer.status, said.as_str()) {
        (300..400, _) => format!(
            "it answered {}, and redirects are not followed: name the target",
            answer.status
        ),
        (status, "") => format!("it answered {status}"),
        (status, said) => format!("it answered {status}: {said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "it stands beside errors")]
    fn answer(status: u16) -> Result<Answer, SendError> {
        Ok(Answer {
            status,
            retry_after: None,
            body: "no\nroom".to_owned(),
        })
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        for (result, expected) in [
            (answer(200), DeliveryState::Delivered),
            (answer(204), DeliveryState::Delivered),
            (answer(302), DeliveryState::Failed),
            (answer(400), DeliveryState::Failed),
            (answer(404), DeliveryState::Failed),
            (answer(429), DeliveryState::Pending),
            (answer(500), DeliveryState::Pending),
            (answer(503), DeliveryState::Pending),
            (Err(SendError::Network("gone".to_owned())), DeliveryState::Pending),
            (Err(SendError::Refused("inside".to_owned())), DeliveryState::Failed),
        ] {
            let (end, _) = decide(result.clone(), false);
            assert_eq!(end.state, expected, "{result:?}");
            let (end, _) = decide(result.clone(), true);
            assert_ne!(end.state, DeliveryState::Pending, "{result:?}");
        }
        assert_eq!(decide(answer(400), false).0.error, "it answered 400: noroom");
    }

    #[test]
    fn a_receiver_can_ask_for_time_but_not_for_ever() {
        let wait = |seconds| {
            let answer = Answer {
                status: 429,
                retry_after: Some(Duration::from_secs(seconds)),
                body: String::new(),
            };
            decide(Ok(answer), false).1
        };
        assert_eq!(wait(0), None);
        assert_eq!(wait(30), Some(Duration::from_secs(30)));
        assert_eq!(wait(u64::MAX), Some(LONGEST_ASKED_WAIT));
    }
}

//! How a run moves: a pure function from what is, and what happened, to what is then, and what is to be done.

use std::time::Duration;

use modelyard_common::Timestamp;

use super::{
    plan::Plan,
    run::{RunStatus, StepStatus},
};

/// The state of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunState {
    /// Where it stands.
    pub status: RunStatus,
    /// Why it failed.
    pub error: Option<String>,
    /// When its first step began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Its steps, at the places that they have in the plan.
    pub steps: Vec<StepState>,
}

/// The state of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepState {
    /// Where it stands.
    pub status: StepStatus,
    /// The latest attempt; 0 before the first.
    pub attempt: u32,
    /// Why it failed or was skipped, or why its last attempt failed.
    pub error: Option<String>,
    /// When its first attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

impl RunState {
    /// The state of a run before [`Event::Created`].
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let step = StepState {
            status: StepStatus::Pending,
            attempt: 0,
            error: None,
            started_at: None,
            finished_at: None,
        };
        Self {
            status: RunStatus::Queued,
            error: None,
            started_at: None,
            finished_at: None,
            steps: vec![step; plan.steps.len()],
        }
    }
}

/// What happened. Steps go by their place in the plan; `since` is when the attempt began.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The run was made.
    Created,
    /// An attempt is being worked on. Attempts that end at once need not say so.
    StepStarted {
        /// Which step.
        step: usize,
        /// Which attempt.
        attempt: u32,
        /// Since when.
        since: Timestamp,
    },
    /// An attempt gave outputs.
    StepSucceeded {
        /// Which step.
        step: usize,
        /// Which attempt.
        attempt: u32,
        /// Since when.
        since: Timestamp,
    },
    /// The condition of the step did not hold.
    StepSkipped {
        /// Which step.
        step: usize,
        /// Which attempt.
        attempt: u32,
        /// Since when.
        since: Timestamp,
    },
    /// An attempt failed.
    StepFailed {
        /// Which step.
        step: usize,
        /// Which attempt.
        attempt: u32,
        /// Since when.
        since: Timestamp,
        /// Why.
        error: String,
    },
    /// The run was called off.
    Cancelled,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Work on an attempt of a step.
    Enqueue {
        /// Which step.
        step: usize,
        /// Which attempt.
        attempt: u32,
        /// Not before this time has passed.
        after: Duration,
    },
    /// Stop working on a step.
    Stop {
        /// Which step.
        step: usize,
    },
}

/// The event is about something that is over: an attempt that another has replaced, or a run that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the run or the attempt is over")]
pub struct Stale;

/// What becomes of a run when something happens.
pub fn decide(plan: &Plan, state: &RunState, event: &Event, now: Timestamp) -> Result<(RunState, Vec<Command>), Stale> {
    if state.status.is_finished() {
        return Err(Stale);
    }
    let mut next = state.clone();
    let mut commands = Vec::new();
    match event {
        Event::Created => {}
        Event::StepStarted { step, attempt, since } => {
            live(&mut next, *step, *attempt, *since)?.status = StepStatus::Running;
        }
        Event::StepSucceeded { step, attempt, since } => {
            let step = live(&mut next, *step, *attempt, *since)?;
            step.error = None;
            end(step, StepStatus::Succeeded, now);
        }
        Event::StepSkipped { step, attempt, since } => {
            let step = live(&mut next, *step, *attempt, *since)?;
            step.error = Some("its condition did not hold".to_owned());
            end(step, StepStatus::Skipped, now);
        }
        Event::StepFailed {
            step: place,
            attempt,
            since,
            error,
        } => {
            let step = live(&mut next, *place, *attempt, *since)?;
            step.error = Some(error.clone());
            let planned = plan.steps.get(*place).ok_or(Stale)?;
            if *attempt < planned.attempts {
                step.status = StepStatus::Queued;
                step.attempt += 1;
                commands.push(Command::Enqueue {
                    step: *place,
                    attempt: step.attempt,
                    after: planned.backoff(step.attempt),
                });
            } else {
                end(step, StepStatus::Failed, now);
            }
        }
        Event::Cancelled => {
            for (place, step) in next.steps.iter_mut().enumerate() {
                if matches!(step.status, StepStatus::Queued | StepStatus::Running) {
                    commands.push(Command::Stop { step: place });
                }
                if !step.status.is_finished() {
                    end(step, StepStatus::Cancelled, now);
                }
            }
            next.status = RunStatus::Cancelled;
            next.finished_at = Some(now);
            return Ok((next, commands));
        }
    }
    advance(plan, &mut next, &mut commands, now);
    conclude(plan, &mut next, now);
    Ok((next, commands))
}

/// The step, if this attempt of it is the one that counts; from then on it has begun, and the run with it.
fn live(state: &mut RunState, place: usize, attempt: u32, since: Timestamp) -> Result<&mut StepState, Stale> {
    let step = state.steps.get_mut(place).ok_or(Stale)?;
    let is_live = matches!(step.status, StepStatus::Queued | StepStatus::Running) && step.attempt == attempt;
    if !is_live {
        return Err(Stale);
    }
    step.started_at.get_or_insert(since);
    state.started_at.get_or_insert(since);
    state.status = RunStatus::Running;
    Ok(step)
}

fn end(step: &mut StepState, status: StepStatus, now: Timestamp) {
    step.status = status;
    step.finished_at = Some(now);
}

/// Begins what can begin, and skips what never will, until nothing changes.
fn advance(plan: &Plan, state: &mut RunState, commands: &mut Vec<Command>, now: Timestamp) {
    let mut changed = true;
    while changed {
        changed = false;
        for (place, planned) in plan.steps.iter().enumerate() {
            if state.steps[place].status != StepStatus::Pending {
                continue;
            }
            let mut ready = true;
            let mut obstacle = None;
            for &need in &planned.needs {
                match state.steps[need].status {
                    StepStatus::Succeeded => {}
                    StepStatus::Failed => obstacle = Some((need, "failed")),
                    StepStatus::Skipped | StepStatus::Cancelled => obstacle = obstacle.or(Some((need, "was skipped"))),
                    StepStatus::Pending | StepStatus::Queued | StepStatus::Running => ready = false,
                }
            }
            let step = &mut state.steps[place];
            if let Some((need, what)) = obstacle {
                step.error = Some(format!("it needs `{}`, which {what}", plan.steps[need].name));
                end(step, StepStatus::Skipped, now);
                changed = true;
            } else if ready {
                step.status = StepStatus::Queued;
                step.attempt = 1;
                commands.push(Command::Enqueue {
                    step: place,
                    attempt: 1,
                    after: Duration::ZERO,
                });
            }
        }
    }
}

/// Ends the run when all its steps have ended.
fn conclude(plan: &Plan, state: &mut RunState, now: Timestamp) {
    if !state.steps.iter().all(|step| step.status.is_finished()) {
        return;
    }
    let failed = state.steps.iter().position(|step| step.status == StepStatus::Failed);
    if let Some(place) = failed {
        let why = state.steps[place].error.as_deref().unwrap_or("no reason was given");
        state.error = Some(format!("step `{}` failed: {why}", plan.steps[place].name));
        state.status = RunStatus::Failed;
    } else {
        state.status = RunStatus::Succeeded;
    }
    state.finished_at = Some(now);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Map;

    use super::*;
    use crate::model::PlannedStep;

    fn step(place: usize, needs: Vec<usize>, attempts: u32) -> PlannedStep {
        PlannedStep {
            name: format!("s{place}"),
            op: "value".to_owned(),
            with: Map::new(),
            when: None,
            needs,
            attempts,
            backoff_ms: 1_000,
            timeout_ms: None,
            heavy: false,
        }
    }

    fn time(tick: i64) -> Timestamp {
        Timestamp::from_micros(tick)
    }

    /// A DAG: each step needs some of those before it.
    fn plans() -> impl Strategy<Value = Plan> {
        proptest::collection::vec(
            (proptest::collection::vec(any::<prop::sample::Index>(), 0..4), 1_u32..4),
            1..16,
        )
        .prop_map(|shapes| {
            let steps = shapes.into_iter().enumerate().map(|(place, (needs, attempts))| {
                let mut needs: Vec<usize> = match place {
                    0 => Vec::new(),
                    _ => needs.iter().map(|index| index.index(place)).collect(),
                };
                needs.sort_unstable();
                needs.dedup();
                step(place, needs, attempts)
            });
            Plan { steps: steps.collect() }
        })
    }

    #[derive(Debug, Clone, Copy)]
    enum Fate {
        Succeed,
        Fail,
        Skip,
        Start,
    }

    fn fates() -> impl Strategy<Value = Vec<(prop::sample::Index, Fate)>> {
        let fate =
            prop_oneof![4 => Just(Fate::Succeed), 2 => Just(Fate::Fail), 1 => Just(Fate::Skip), 2 => Just(Fate::Start)];
        proptest::collection::vec((any::<prop::sample::Index>(), fate), 0..200)
    }

    fn event(fate: Fate, step: usize, attempt: u32, since: Timestamp) -> Event {
        match fate {
            Fate::Succeed => Event::StepSucceeded { step, attempt, since },
            Fate::Skip => Event::StepSkipped { step, attempt, since },
            Fate::Start => Event::StepStarted { step, attempt, since },
            Fate::Fail => Event::StepFailed {
                step,
                attempt,
                since,
                error: "broken".to_owned(),
            },
        }
    }

    /// The attempts that are being worked on, as commands say.
    fn enqueued(commands: &[Command]) -> Vec<(usize, u32)> {
        let enqueued = commands.iter().filter_map(|command| match command {
            Command::Enqueue { step, attempt, .. } => Some((*step, *attempt)),
            Command::Stop { .. } => None,
        });
        enqueued.collect()
    }

    proptest! {
        #[test]
        fn every_run_ends_and_no_step_begins_before_its_needs(plan in plans(), fates in fates()) {
            let (mut state, commands) = decide(&plan, &RunState::new(&plan), &Event::Created, time(0)).unwrap();
            let mut work = enqueued(&commands);
            let mut seen = work.clone();
            let mut fates = fates.into_iter();
            for tick in 1_i64.. {
                if work.is_empty() {
                    break;
                }
                // When the fates are used up, everything succeeds.
                let (place, fate) = match fates.next() {
                    Some((index, fate)) => (index.index(work.len()), fate),
                    None => (0, Fate::Succeed),
                };
                let (step, attempt) = work[place];
                let (next, commands) = decide(&plan, &state, &event(fate, step, attempt, time(tick)), time(tick)).unwrap();
                // A started attempt goes on; every other one is over, and can never report again.
                if !matches!(fate, Fate::Start) {
                    work.remove(place);
                    let again = decide(&plan, &next, &event(Fate::Succeed, step, attempt, time(tick)), time(tick));
                    prop_assert_eq!(again, Err(Stale));
                }
                for (step, attempt) in enqueued(&commands) {
                    prop_assert!(!seen.contains(&(step, attempt)), "an attempt was enqueued twice");
                    prop_assert!(plan.steps[step].needs.iter().all(|&need| next.steps[need].status == StepStatus::Succeeded));
                    seen.push((step, attempt));
                    work.push((step, attempt));
                }
                state = next;
            }
            prop_assert!(state.status.is_finished());
            prop_assert!(state.steps.iter().all(|step| step.status.is_finished() && step.finished_at.is_some()));
            let failed = state.steps.iter().any(|step| step.status == StepStatus::Failed);
            prop_assert_eq!(state.status == RunStatus::Failed, failed);
            prop_assert_eq!(state.error.is_some(), failed);
            for (place, step) in state.steps.iter().enumerate() {
                let needs_met = plan.steps[place].needs.iter().all(|&need| state.steps[need].status == StepStatus::Succeeded);
                prop_assert_eq!(step.attempt > 0, needs_met, "a step runs exactly when all that it needs succeeded");
                prop_assert!(step.attempt <= plan.steps[place].attempts);
            }
        }

        #[test]
        fn a_cancelled_run_stops_what_was_under_way(plan in plans(), fates in fates()) {
            let (mut state, commands) = decide(&plan, &RunState::new(&plan), &Event::Created, time(0)).unwrap();
            let mut work = enqueued(&commands);
            for (index, fate) in fates {
                if work.is_empty() || matches!(fate, Fate::Start) {
                    break;
                }
                let (step, attempt) = work.remove(index.index(work.len()));
                let (next, commands) = decide(&plan, &state, &event(fate, step, attempt, time(1)), time(1)).unwrap();
                work.extend(enqueued(&commands));
                state = next;
            }
            let cancelled = decide(&plan, &state, &Event::Cancelled, time(2));
            if state.status.is_finished() {
                prop_assert_eq!(cancelled, Err(Stale));
            } else {
                let (next, commands) = cancelled.unwrap();
                let mut stopped: Vec<usize> = commands.iter().map(|command| match command {
                    Command::Stop { step } => *step,
                    Command::Enqueue { step, .. } => panic!("step {step} was enqueued"),
                }).collect();
                let mut under_way: Vec<usize> = work.iter().map(|(step, _)| *step).collect();
                stopped.sort_unstable();
                under_way.sort_unstable();
                prop_assert_eq!(stopped, under_way);
                prop_assert_eq!(next.status, RunStatus::Cancelled);
                prop_assert!(next.steps.iter().all(|step| step.status.is_finished()));
            }
        }
    }

    #[test]
    fn a_failed_attempt_is_followed_by_a_later_one_after_a_growing_wait() {
        let plan = Plan {
            steps: vec![step(0, vec![], 3)],
        };
        let (mut state, _) = decide(&plan, &RunState::new(&plan), &Event::Created, time(0)).unwrap();
        let mut waits = Vec::new();
        for attempt in 1..=3 {
            let (next, commands) = decide(&plan, &state, &event(Fate::Fail, 0, attempt, time(1)), time(2)).unwrap();
            waits.extend(commands.iter().map(|command| match command {
                Command::Enqueue { after, .. } => after.as_secs(),
                Command::Stop { .. } => 0,
            }));
            state = next;
        }
        assert_eq!(waits, [1, 2]);
        assert_eq!(state.error.as_deref(), Some("step `s0` failed: broken"));
    }
}

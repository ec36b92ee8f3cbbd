//! How the traffic of an endpoint stands: what serves, what served before, and what is on its way to serve. Pure.
//!
//! What the spec of an endpoint means changes when the spec does or when an alias moves. Without rules for a rollout the
//! change holds at once, and what served before is remembered. With them the new routes become the candidate of a rollout:
//! it gets the share of the traffic that it is given, until it is promoted or rejected.

use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    error::{Error, Result},
    model::desired::Route,
};

/// How the traffic of an endpoint stands.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Traffic {
    /// The routes that serve, but for the candidate's share.
    pub stable: Vec<Route>,
    /// The routes that served before: what a rollback brings back.
    pub previous: Option<Vec<Route>>,
    /// What is on its way, or was refused.
    pub candidate: Option<Candidate>,
}

/// Routes that are to serve.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Candidate {
    /// The revision at which they came up; it names the rollout.
    pub revision: u64,
    /// The routes.
    pub routes: Vec<Route>,
    /// How much of the traffic they get, in percent.
    pub share: f64,
    /// Whether they were refused: they get no traffic until something else is declared.
    pub rejected: bool,
}

impl Traffic {
    /// The beginning: there is nothing to be careful about.
    #[must_use]
    pub const fn new(routes: Vec<Route>) -> Self {
        Self {
            stable: routes,
            previous: None,
            candidate: None,
        }
    }

    /// What comes of it when the spec means these routes now. `gradually`: the endpoint has rules for a rollout.
    #[must_use]
    pub fn follow(self, routes: Vec<Route>, revision: u64, gradually: bool) -> Self {
        if are_same(&self.stable, &routes) {
            return Self {
                stable: routes,
                candidate: None,
                ..self
            };
        }
        match self.candidate {
            // It was on its way already, or was refused.
            Some(candidate) if are_same(&candidate.routes, &routes) && (gradually || candidate.rejected) => Self {
                // What they lead to may have been signed since then.
                candidate: Some(Candidate { routes, ..candidate }),
                ..self
            },
            _ if gradually => Self {
                candidate: Some(Candidate {
                    revision,
                    routes,
                    share: 0.0,
                    rejected: false,
                }),
                ..self
            },
            _ => Self {
                previous: Some(self.stable),
                stable: routes,
                candidate: None,
            },
        }
    }

    /// The live routes as gateways shall serve them.
    #[must_use]
    pub fn effective(&self) -> Vec<Route> {
        match &self.candidate {
            Some(candidate) if !candidate.rejected && candidate.share > 0.0 => {
                mix(&self.stable, &candidate.routes, candidate.share)
            }
            _ => self.stable.clone(),
        }
    }

    /// Gives the candidate a share of the traffic, in percent.
    pub fn with_share(mut self, revision: u64, share: f64) -> Result<Self> {
        if !(0.0..=100.0).contains(&share) {
            return Err(Error::request(format!("a share of {share} percent: choose 0 to 100")));
        }
        let candidate = self.candidate_of(revision)?;
        candidate.share = share;
        Ok(self)
    }

    /// The candidate serves from now on. Saying so twice changes nothing.
    pub fn promoted(mut self, revision: u64) -> Result<Self> {
        let routes = std::mem::take(&mut self.candidate_of(revision)?.routes);
        Ok(Self {
            previous: Some(self.stable),
            stable: routes,
            candidate: None,
        })
    }

    /// The candidate gets no traffic, until something else is declared.
    pub fn rejected(mut self, revision: u64) -> Result<Self> {
        if let Some(candidate) = &mut self.candidate
            && candidate.revision == revision
        {
            candidate.rejected = true;
            candidate.share = 0.0;
            return Ok(self);
        }
        Err(no_candidate(revision))
    }

    /// Back to what served before: away from the candidate, or, where there is none, away from what serves.
    pub fn rolled_back(self, endpoint: &str, now: u64) -> Result<Self> {
        match (self.candidate, self.previous) {
            (Some(candidate), previous) if !candidate.rejected => Ok(Self {
                stable: self.stable,
                previous,
                candidate: Some(Candidate {
                    share: 0.0,
                    rejected: true,
                    ..candidate
                }),
            }),
            (_, Some(previous)) => Ok(Self {
                stable: previous,
                previous: None,
                candidate: Some(Candidate {
                    revision: now,
                    routes: self.stable,
                    share: 0.0,
                    rejected: true,
                }),
            }),
            (_, None) => Err(Error::State(format!(
                "endpoint `{endpoint}` has nothing to go back to: it has served nothing else"
            ))),
        }
    }

    fn candidate_of(&mut self, revision: u64) -> Result<&mut Candidate> {
        self.candidate
            .as_mut()
            .filter(|candidate| candidate.revision == revision && !candidate.rejected)
            .ok_or_else(|| no_candidate(revision))
    }
}

fn no_candidate(revision: u64) -> Error {
    Error::State(format!(
        "there is no rollout {revision} any more: it was ended, or something else was declared"
    ))
}

/// Whether routes lead to the same versions in the same way.
fn are_same(one: &[Route], other: &[Route]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|(one, other)| {
            one.target() == other.target() && one.weight.total_cmp(&other.weight).is_eq() && one.when == other.when
        })
}

/// The routes of both, so that the candidate's get `share` percent of the traffic together.
fn mix(stable: &[Route], candidate: &[Route], share: f64) -> Vec<Route> {
    let scaled = |routes: &[Route], percent: f64| -> Vec<Route> {
        let total: f64 = routes.iter().map(|route| route.weight).sum();
        let scale = |route: &Route| Route {
            weight: if total > 0.0 {
                route.weight / total * percent
            } else {
                0.0
            },
            ..route.clone()
        };
        routes.iter().map(scale).collect()
    };
    let mut mixed = scaled(stable, 100.0 - share);
    for route in scaled(candidate, share) {
        let same = |known: &&mut Route| known.target() == route.target();
        match mixed.iter_mut().find(same) {
            Some(known) => known.weight += route.weight,
            None => mixed.push(route),
        }
    }
    mixed.retain(|route| route.weight > 0.0 || !route.when.is_empty());
    mixed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::desired::RouteRole;

    fn route(version: u32, weight: f64) -> Route {
        Route {
            role: RouteRole::Live,
            reference: format!("m/{version}"),
            weight,
            sample: 0.0,
            when: Vec::new(),
            model: Some("m".to_owned()),
            version: Some(version),
            artifact_digest: Some(format!("digest of {version}")),
            bundle_digest: None,
            artifact_size_bytes: Some(1),
            unresolved: None,
        }
    }

    fn shares(routes: &[Route]) -> Vec<(u32, f64)> {
        let total: f64 = routes.iter().map(|route| route.weight).sum();
        let each = routes
            .iter()
            .map(|route| (route.version.unwrap(), route.weight / total));
        each.collect()
    }

    #[test]
    fn without_rules_a_change_holds_at_once_and_can_be_taken_back() {
        let first = Traffic::new(vec![route(1, 100.0)]);
        let second = first.follow(vec![route(2, 100.0)], 7, false);
        assert_eq!(shares(&second.effective()), [(2, 1.0)]);
        let back = second.rolled_back("e", 8).unwrap();
        assert_eq!(shares(&back.effective()), [(1, 1.0)]);
        // What was rolled back does not come again by itself.
        let still = back.follow(vec![route(2, 100.0)], 9, false);
        assert_eq!(shares(&still.effective()), [(1, 1.0)]);
        assert!(still.clone().rolled_back("e", 10).is_err());
        let third = still.follow(vec![route(3, 100.0)], 11, false);
        assert_eq!(shares(&third.effective()), [(3, 1.0)]);
    }

    #[test]
    fn with_rules_a_candidate_gets_its_share() {
        let traffic = Traffic::new(vec![route(1, 3.0), route(2, 1.0)]);
        let traffic = traffic.follow(vec![route(2, 50.0), route(3, 50.0)], 7, true);
        assert_eq!(
            shares(&traffic.effective()),
            [(1, 0.75), (2, 0.25)],
            "until it is given some"
        );
        let traffic = traffic.with_share(7, 20.0).unwrap();
        let found = shares(&traffic.effective());
        let expected = [(1, 0.6), (2, 0.2 + 0.1), (3, 0.1)];
        for ((version, share), (wanted, expected)) in found.iter().zip(expected) {
            assert!(*version == wanted && (share - expected).abs() < 1e-9, "{found:?}");
        }
        assert!(traffic.clone().with_share(6, 50.0).is_err(), "of another rollout");
        assert!(traffic.clone().with_share(7, 101.0).is_err());
        let promoted = traffic.clone().promoted(7).unwrap();
        assert_eq!(shares(&promoted.effective()), [(2, 0.5), (3, 0.5)]);
        assert_eq!(
            shares(&promoted.rolled_back("e", 8).unwrap().effective()),
            [(1, 0.75), (2, 0.25)]
        );
        let rejected = traffic.rejected(7).unwrap();
        assert_eq!(shares(&rejected.effective()), [(1, 0.75), (2, 0.25)]);
        assert!(rejected.clone().with_share(7, 5.0).is_err());
        // The same again is still refused; anything else is another rollout.
        let same = rejected.follow(vec![route(2, 50.0), route(3, 50.0)], 9, true);
        assert!(same.candidate.as_ref().unwrap().rejected);
        let other = same.follow(vec![route(4, 1.0)], 10, true);
        assert_eq!(other.candidate.unwrap().revision, 10);
    }

    #[test]
    fn going_back_by_hand_ends_a_rollout() {
        let traffic = Traffic::new(vec![route(1, 1.0)]).follow(vec![route(2, 1.0)], 7, true);
        let traffic = traffic.with_share(7, 50.0).unwrap();
        let back = traffic.follow(vec![route(1, 1.0)], 8, true);
        assert_eq!((shares(&back.effective()), back.candidate), (vec![(1, 1.0)], None));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Follow(u32, bool),
        Share(f64),
        Promote,
        Reject,
        RollBack,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1_u32..4, any::<bool>()).prop_map(|(version, gradually)| Step::Follow(version, gradually)),
            (0.0..100.0_f64).prop_map(Step::Share),
            Just(Step::Promote),
            Just(Step::Reject),
            Just(Step::RollBack),
        ]
    }

    proptest! {
        /// Whatever happens, something serves, and a refused candidate gets nothing.
        #[test]
        fn something_always_serves(steps in proptest::collection::vec(step(), 0..20)) {
            let mut traffic = Traffic::new(vec![route(1, 1.0)]);
            for (revision, step) in (1_u64..).zip(steps) {
                let current = traffic.candidate.as_ref().map_or(0, |candidate| candidate.revision);
                let before = traffic.clone();
                let after = match step {
                    Step::Follow(version, gradually) => Ok(traffic.follow(vec![route(version, 1.0)], revision, gradually)),
                    Step::Share(share) => traffic.with_share(current, share),
                    Step::Promote => traffic.promoted(current),
                    Step::Reject => traffic.rejected(current),
                    Step::RollBack => traffic.rolled_back("e", revision),
                };
                traffic = after.unwrap_or(before);
                let effective = traffic.effective();
                prop_assert!(!effective.is_empty());
                prop_assert!(effective.iter().all(|route| route.weight > 0.0));
                if let Some(candidate) = &traffic.candidate && candidate.rejected {
                    prop_assert_eq!(&effective, &traffic.stable);
                }
            }
        }
    }
}

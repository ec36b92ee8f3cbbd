//! What `/readyz` answers.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

/// The conditions that must hold before the process takes traffic.
#[derive(Clone, Default)]
pub struct Readiness {
    conditions: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

/// One condition, owned by the part that knows about it. It starts as not met.
pub struct Gate {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Adds a condition, named like `registry.database`.
    #[must_use]
    pub fn gate(&self, name: &'static str) -> Gate {
        self.set(name, Some("starting".to_owned()));
        Gate {
            name,
            readiness: self.clone(),
        }
    }

    /// The conditions that are not met, as `name: why`; empty when ready.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let conditions = self.conditions.lock();
        let unmet = conditions
            .iter()
            .filter_map(|(name, why)| why.as_ref().map(|why| format!("{name}: {why}")));
        unmet.collect()
    }

    fn set(&self, name: &'static str, why: Option<String>) {
        self.conditions.lock().insert(name, why);
    }
}

impl Gate {
    /// The condition is met.
    pub fn open(&self) {
        self.readiness.set(self.name, None);
    }

    /// The condition is not met any more.
    pub fn close(&self, why: impl Into<String>) {
        self.readiness.set(self.name, Some(why.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_gate_is_open() {
        let readiness = Readiness::default();
        let (first, second) = (readiness.gate("first"), readiness.gate("second"));
        first.open();
        assert_eq!(readiness.missing(), ["second: starting"]);
        second.open();
        assert!(readiness.missing().is_empty());
        first.close("gone");
        assert_eq!(readiness.missing(), ["first: gone"]);
    }
}

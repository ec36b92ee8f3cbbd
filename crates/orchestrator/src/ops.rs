//! What steps can do. Each op is a type of its own in a file of its own, and [`Ops`] is the list of them; an op that is added
//! there can be used in pipelines, and nothing else has to know about it.

mod context;
mod dataset;
mod evaluate;
mod gate;
mod held_out;
mod parity;
mod register;
mod set_alias;
mod table;
mod train;
mod value;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub(crate) use context::{StepContext, StepError, Tools};

use crate::model::{OpCatalog, OpShape};

/// What a step does.
#[async_trait]
pub(crate) trait Op: Send + Sync + 'static {
    /// The word for it in a pipeline.
    fn name(&self) -> &'static str;
    /// What is known before it runs.
    fn shape(&self) -> OpShape;
    /// What is wrong with values that hold no expressions, as `KEY: PROBLEM`.
    fn check(&self, literals: &Map<String, Value>) -> Vec<String>;
    /// Does the work and gives the outputs, an object. It can be dropped at any `await`, and can be called again for the
    /// same attempt after a crash: what it does elsewhere must bear that.
    async fn run(&self, step: &StepContext) -> Result<Value, StepError>;
}

/// The ops by name.
#[derive(Clone)]
pub(crate) struct Ops {
    ops: Arc<BTreeMap<&'static str, Arc<dyn Op>>>,
}

impl Ops {
    /// All that are built in.
    pub(crate) fn built_in() -> Self {
        let all: [Arc<dyn Op>; 7] = [
            Arc::new(dataset::Dataset),
            Arc::new(train::Train),
            Arc::new(evaluate::Evaluate),
            Arc::new(gate::Gate),
            Arc::new(register::Register),
            Arc::new(set_alias::SetAlias),
            Arc::new(value::ValueOp),
        ];
        let ops = all.into_iter().map(|op| (op.name(), op)).collect();
        Self { ops: Arc::new(ops) }
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Arc<dyn Op>> {
        self.ops.get(name)
    }
}

impl OpCatalog for Ops {
    fn names(&self) -> Vec<&'static str> {
        self.ops.keys().copied().collect()
    }

    fn shape(&self, op: &str) -> Option<OpShape> {
        self.find(op).map(|op| op.shape())
    }

    fn check(&self, op: &str, literals: &Map<String, Value>) -> Vec<String> {
        self.find(op).map(|op| op.check(literals)).unwrap_or_default()
    }
}

/// Keys of an op: those that it needs, then those that it can do without.
fn keys(required: &[&str], optional: &[&str]) -> Vec<(String, bool)> {
    let required = required.iter().map(|key| ((*key).to_owned(), true));
    let optional = optional.iter().map(|key| ((*key).to_owned(), false));
    required.chain(optional).collect()
}

/// Checks the literal values of an op by what each must be.
struct Literals<'a> {
    values: &'a Map<String, Value>,
    problems: Vec<String>,
}

impl<'a> Literals<'a> {
    fn new(values: &'a Map<String, Value>) -> Self {
        Self {
            values,
            problems: Vec::new(),
        }
    }

    /// A value, where it is literal, must read as a `T` and pass the check.
    fn each<T: DeserializeOwned>(mut self, key: &str, check: impl FnOnce(T) -> Result<(), String>) -> Self {
        if let Some(value) = self.values.get(key) {
            let checked = serde_json::from_value::<T>(value.clone())
                .map_err(|error| error.to_string())
                .and_then(check);
            if let Err(problem) = checked {
                self.problems.push(format!("{key}: {problem}"));
            }
        }
        self
    }

    /// A value that must come from another step's outputs.
    fn of_step(mut self, key: &str, op: &str) -> Self {
        if self.values.contains_key(key) {
            self.problems.push(format!(
                "{key}: must be the outputs of a step of op `{op}`: write {{{{ steps.NAME.outputs }}}}"
            ));
        }
        self
    }

    fn name(self, key: &str, what: &'static str) -> Self {
        self.each(key, |name: String| {
            modelyard_common::name::check_name(what, &name).map_err(|error| error.to_string())
        })
    }

    fn problems(self) -> Vec<String> {
        self.problems
    }
}

/// What the op is given, as its own type.
fn read<T: DeserializeOwned>(with: &Map<String, Value>) -> Result<T, StepError> {
    serde_json::from_value(Value::Object(with.clone())).map_err(|error| StepError::Fail(format!("with: {error}")))
}

/// Outputs as JSON.
fn outputs<T: serde::Serialize>(outputs: &T) -> Result<Value, StepError> {
    serde_json::to_value(outputs).map_err(|error| StepError::Fail(format!("the outputs cannot be written: {error}")))
}

//! From a pipeline as it is written to one that can run: every edge known, everything that can be checked before checked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    pipeline::{
        MAX_ATTEMPTS, MAX_DURATION, MAX_PARAMETERS, MAX_SPEC_BYTES, MAX_STEPS, PipelineSpec, RetrySpec, StepSpec,
    },
    template::{Reference, is_segment, references, type_name},
};

/// The longest name of a step or parameter, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// What can be known of an op before it runs.
#[derive(Debug, Clone, Default)]
pub struct OpShape {
    /// The keys that it takes, with whether they are required; `None`: any.
    pub keys: Option<Vec<(String, bool)>>,
    /// The names of its outputs; `None`: not known before.
    pub outputs: Option<&'static [&'static str]>,
    /// Whether it computes for long: few of these are worked on at once.
    pub heavy: bool,
}

/// The ops that there are.
pub trait OpCatalog {
    /// Their names.
    fn names(&self) -> Vec<&'static str>;
    /// What is known of one.
    fn shape(&self, op: &str) -> Option<OpShape>;
    /// What is wrong with the values that hold no expressions. Keys that hold some are left out of `literals`.
    fn check(&self, op: &str, literals: &Map<String, Value>) -> Vec<String>;
}

/// A pipeline that can run. It is stored with each run, so that neither a changed definition nor a newer version of this
/// program changes a run that has begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The steps, in the order of the definition.
    pub steps: Vec<PlannedStep>,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// Its name.
    pub name: String,
    /// What it does.
    pub op: String,
    /// What the op is given, expressions and all.
    pub with: Map<String, Value>,
    /// Its condition.
    pub when: Option<Value>,
    /// The steps that must succeed before it, by their place.
    pub needs: Vec<usize>,
    /// How many attempts it has.
    pub attempts: u32,
    /// The wait before the second attempt, in milliseconds.
    pub backoff_ms: u64,
    /// The longest that one attempt may take, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Whether it computes for long.
    pub heavy: bool,
}

impl PlannedStep {
    /// The wait before `attempt`, which is the second or a later one: it doubles with each.
    #[must_use]
    pub fn backoff(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(2).min(u64::BITS - 1);
        let wait = self.backoff_ms.saturating_mul(1_u64 << doublings);
        Duration::from_millis(wait).min(MAX_DURATION)
    }

    /// The longest that one attempt may take.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout_ms.map(Duration::from_millis)
    }
}

/// Makes the plan of a pipeline, or names everything that is wrong with it.
pub fn plan(spec: &PipelineSpec, catalog: &dyn OpCatalog) -> Result<Plan, Vec<String>> {
    let mut planner = Planner {
        spec,
        catalog,
        places: BTreeMap::new(),
        problems: Vec::new(),
    };
    planner.check_size();
    planner.check_parameters();
    planner.name_steps();
    let steps: Vec<PlannedStep> = spec.steps.iter().map(|step| planner.step(step)).collect();
    // Edges mean little while names are wrong, and a cycle would hide behind a step that is named twice.
    if planner.places.len() == spec.steps.len() {
        planner.check_cycle(&steps);
    }
    if planner.problems.is_empty() {
        Ok(Plan { steps })
    } else {
        Err(planner.problems)
    }
}

struct Planner<'a> {
    spec: &'a PipelineSpec,
    catalog: &'a dyn OpCatalog,
    places: BTreeMap<&'a str, usize>,
    problems: Vec<String>,
}

impl<'a> Planner<'a> {
    fn check_size(&mut self) {
        let steps = self.spec.steps.len();
        if steps == 0 {
            self.problems.push("steps: there is none: name at least one".to_owned());
        }
        if steps > MAX_STEPS {
            self.problems.push(format!(
                "steps: there are {steps}, and may be {MAX_STEPS}: split the pipeline"
            ));
        }
        let size = serde_json::to_string(self.spec).map_or(0, |text| text.len());
        if size > MAX_SPEC_BYTES {
            self.problems.push(format!(
                "the definition has {size} bytes, and may have {MAX_SPEC_BYTES}"
            ));
        }
    }

    fn check_parameters(&mut self) {
        let count = self.spec.parameters.len();
        if count > MAX_PARAMETERS {
            self.problems
                .push(format!("parameters: there are {count}, and may be {MAX_PARAMETERS}"));
        }
        for (name, default) in &self.spec.parameters {
            if !is_name(name) {
                self.problems.push(format!("parameter `{name}`: {}", name_rule()));
            }
            match default {
                Value::Array(_) | Value::Object(_) => self.problems.push(format!(
                    "parameter `{name}`: its default is {}: write a text, a number, a truth value or null",
                    type_name(default)
                )),
                Value::String(text) if text.contains("{{") => {
                    self.problems
                        .push(format!("parameter `{name}`: a default holds no expressions"));
                }
                _ => {}
            }
        }
    }

    fn name_steps(&mut self) {
        for (place, step) in self.spec.steps.iter().enumerate() {
            if !is_name(&step.name) {
                self.problems
                    .push(format!("step {} (`{}`): {}", place + 1, step.name, name_rule()));
            }
            if self.places.insert(&step.name, place).is_some() {
                self.problems
                    .push(format!("step `{}`: there are two of this name: rename one", step.name));
            }
        }
    }

    fn problem(&mut self, step: &StepSpec, what: impl std::fmt::Display) {
        self.problems.push(format!("step `{}`: {what}", step.name));
    }

    fn step(&mut self, step: &'a StepSpec) -> PlannedStep {
        let shape = self.catalog.shape(&step.op);
        match &shape {
            None => {
                let known = self.catalog.names().join(", ");
                self.problem(step, format!("there is no op `{}`: use one of {known}", step.op));
            }
            Some(shape) => self.check_with(step, shape),
        }
        let needs = self.needs(step);
        let (attempts, backoff_ms) = self.retry(step, step.retry.as_ref());
        let timeout = step
            .timeout
            .as_ref()
            .and_then(|text| self.duration(step, "timeout", text));
        PlannedStep {
            name: step.name.clone(),
            op: step.op.clone(),
            with: step.with.clone(),
            when: step.when.clone(),
            needs,
            attempts,
            backoff_ms,
            timeout_ms: timeout.map(milliseconds),
            heavy: shape.is_some_and(|shape| shape.heavy),
        }
    }

    fn check_with(&mut self, step: &StepSpec, shape: &OpShape) {
        let mut literals = Map::new();
        if let Some(keys) = &shape.keys {
            for key in step
                .with
                .keys()
                .filter(|key| !keys.iter().any(|(known, _)| known == *key))
            {
                let known: Vec<&str> = keys.iter().map(|(key, _)| key.as_str()).collect();
                self.problem(
                    step,
                    format!(
                        "with.{key}: op `{}` has no such key: it takes {}",
                        step.op,
                        known.join(", ")
                    ),
                );
            }
            for (key, _) in keys
                .iter()
                .filter(|(key, required)| *required && !step.with.contains_key(key))
            {
                self.problem(step, format!("with.{key}: is missing: op `{}` needs it", step.op));
            }
        }
        let is_known = |key: &str| {
            shape
                .keys
                .as_ref()
                .is_none_or(|keys| keys.iter().any(|(known, _)| known == key))
        };
        for (key, value) in step.with.iter().filter(|(key, _)| is_known(key)) {
            let (found, errors) = references(value);
            if found.is_empty() && errors.is_empty() {
                literals.insert(key.clone(), value.clone());
            }
        }
        for problem in self.catalog.check(&step.op, &literals) {
            self.problem(step, format!("with.{problem}"));
        }
    }

    /// The steps that a step names and those that its expressions refer to.
    fn needs(&mut self, step: &'a StepSpec) -> Vec<usize> {
        let mut needs = BTreeSet::new();
        for name in &step.needs {
            match self.places.get(name.as_str()) {
                Some(&place) => {
                    needs.insert(place);
                }
                None => self.problem(step, format!("needs: there is no step `{name}`")),
            }
        }
        let fields = step.with.iter().map(|(key, value)| (format!("with.{key}"), value));
        let fields: Vec<(String, &Value)> = fields
            .chain(step.when.iter().map(|when| ("when".to_owned(), when)))
            .collect();
        for (field, value) in fields {
            let (found, errors) = references(value);
            for error in errors {
                self.problem(step, format!("{field}: {error}"));
            }
            for reference in found {
                needs.extend(self.resolve(step, &field, &reference));
            }
        }
        if let Some(when) = &step.when {
            let is_condition = match when {
                Value::Bool(_) => true,
                Value::String(text) => text.trim_start().starts_with("{{"),
                _ => false,
            };
            if !is_condition {
                self.problem(step, "when: write one expression, or true or false");
            }
        }
        needs.into_iter().collect()
    }

    /// The step that a reference points at, if it is to a step; what is wrong with it becomes a problem.
    fn resolve(&mut self, step: &StepSpec, field: &str, reference: &Reference) -> Option<usize> {
        match reference {
            Reference::Parameter(name) => {
                if !self.spec.parameters.contains_key(name) {
                    self.problem(
                        step,
                        format!("{field}: there is no parameter `{name}`: declare it under parameters"),
                    );
                }
                None
            }
            Reference::Event(_) => {
                let what = "a pipeline knows its parameters only: let the trigger hand the event over as a parameter";
                self.problem(step, format!("{field}: `{reference}`: {what}"));
                None
            }
            Reference::Output { step: name, path } => {
                let Some(&place) = self.places.get(name.as_str()) else {
                    self.problem(step, format!("{field}: there is no step `{name}`"));
                    return None;
                };
                let op = self.spec.steps.get(place).map_or("", |other| &other.op);
                let outputs = self.catalog.shape(op).and_then(|shape| shape.outputs);
                if let (Some(outputs), Some(first)) = (outputs, path.first())
                    && !outputs.contains(&first.as_str())
                {
                    let known = outputs.join(", ");
                    let what = format!("step `{name}` has no output `{first}`: op `{op}` gives {known}");
                    self.problem(step, format!("{field}: {what}"));
                }
                Some(place)
            }
        }
    }

    fn retry(&mut self, step: &StepSpec, retry: Option<&RetrySpec>) -> (u32, u64) {
        let Some(retry) = retry else {
            return (1, 0);
        };
        if !(1..=MAX_ATTEMPTS).contains(&retry.attempts) {
            self.problem(
                step,
                format!("retry.attempts: is {}: it must be 1 to {MAX_ATTEMPTS}", retry.attempts),
            );
        }
        let backoff = self.duration(step, "retry.backoff", &retry.backoff).unwrap_or_default();
        (retry.attempts, milliseconds(backoff))
    }

    fn duration(&mut self, step: &StepSpec, field: &str, text: &str) -> Option<Duration> {
        match parse_duration(text) {
            Ok(duration) => Some(duration),
            Err(problem) => {
                self.problem(step, format!("{field}: {problem}"));
                None
            }
        }
    }

    fn check_cycle(&mut self, steps: &[PlannedStep]) {
        let mut marks = vec![Mark::New; steps.len()];
        for start in 0..steps.len() {
            let mut path = Vec::new();
            if let Some(cycle) = find_cycle(steps, start, &mut marks, &mut path) {
                let names: Vec<&str> = cycle.iter().map(|&place| steps[place].name.as_str()).collect();
                let line = names.join("` needs `");
                self.problems
                    .push(format!("steps: there is a cycle: `{line}`: remove one of these needs"));
                return;
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Mark {
    New,
    OnPath,
    Done,
}

/// The first cycle below a step; its first step stands at its end again.
fn find_cycle(steps: &[PlannedStep], at: usize, marks: &mut [Mark], path: &mut Vec<usize>) -> Option<Vec<usize>> {
    match marks[at] {
        Mark::Done => return None,
        Mark::OnPath => {
            let start = path.iter().position(|&place| place == at)?;
            return Some(path[start..].iter().copied().chain([at]).collect());
        }
        Mark::New => {}
    }
    marks[at] = Mark::OnPath;
    path.push(at);
    for &need in &steps[at].needs {
        if let Some(cycle) = find_cycle(steps, need, marks, path) {
            return Some(cycle);
        }
    }
    path.pop();
    marks[at] = Mark::Done;
    None
}

fn is_name(text: &str) -> bool {
    is_segment(text) && text.len() <= MAX_NAME_BYTES && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

fn name_rule() -> String {
    format!("a name has 1 to {MAX_NAME_BYTES} letters, digits, `-` and `_`, and begins with a letter or digit")
}

pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("`{text}` is no duration ({error}): write it as in 30s, 10m or 7d"))?;
    if duration > MAX_DURATION {
        return Err(format!("`{text}` is longer than 30 days"));
    }
    Ok(duration)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

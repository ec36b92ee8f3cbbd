//! Expressions in the texts of a definition: `{{ parameters.NAME }}`, `{{ steps.NAME.outputs.PATH }}` and, in triggers,
//! `{{ event.PATH }}`. A text that is one expression takes the type of the value; within a longer text the value must be a
//! text, a number or a truth value. There is nothing else: no arithmetic and no calls, so that a definition can be checked
//! before it runs.

use serde_json::{Map, Value};

const OPEN: &str = "{{";
const CLOSE: &str = "}}";

/// How deep values may be nested.
pub(crate) const MAX_DEPTH: usize = 32;

/// An expression that cannot be read, or has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(pub(crate) String);

/// What an expression refers to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    /// A parameter of the run.
    Parameter(String),
    /// The outputs of an earlier step, or something within them.
    Output {
        /// The step.
        step: String,
        /// The way into the outputs; empty for all of them.
        path: Vec<String>,
    },
    /// Something within the event that fired the trigger; empty for all of it.
    Event(Vec<String>),
}

/// Where expressions get their values.
pub trait Scope {
    /// The value of a parameter.
    fn parameter(&self, name: &str) -> Option<&Value>;
    /// The outputs of a step that has succeeded.
    fn outputs(&self, step: &str) -> Option<&Value>;
    /// The event that fired the trigger.
    fn event(&self) -> Option<&Value>;
}

enum Part<'a> {
    Text(&'a str),
    Expression(Reference),
}

/// All references within a value, sorted and without repetition, and everything that is wrong with its expressions.
#[must_use]
pub fn references(value: &Value) -> (Vec<Reference>, Vec<TemplateError>) {
    let mut found = Vec::new();
    let mut errors = Vec::new();
    collect(value, 0, &mut found, &mut errors);
    found.sort();
    found.dedup();
    (found, errors)
}

fn collect(value: &Value, depth: usize, found: &mut Vec<Reference>, errors: &mut Vec<TemplateError>) {
    if depth > MAX_DEPTH {
        errors.push(TemplateError(format!("values may be nested {MAX_DEPTH} deep")));
        return;
    }
    match value {
        Value::String(text) => match parse(text) {
            Ok(parts) => found.extend(parts.into_iter().filter_map(|part| match part {
                Part::Expression(reference) => Some(reference),
                Part::Text(_) => None,
            })),
            Err(error) => errors.push(error),
        },
        Value::Array(items) => items.iter().for_each(|item| collect(item, depth + 1, found, errors)),
        Value::Object(fields) => fields
            .values()
            .for_each(|field| collect(field, depth + 1, found, errors)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The value with its expressions replaced by what they refer to.
pub fn render(value: &Value, scope: &dyn Scope) -> Result<Value, TemplateError> {
    match value {
        Value::String(text) => render_text(text, scope),
        Value::Array(items) => items.iter().map(|item| render(item, scope)).collect(),
        Value::Object(fields) => {
            let mut rendered = Map::new();
            for (key, field) in fields {
                rendered.insert(key.clone(), render(field, scope)?);
            }
            Ok(Value::Object(rendered))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(value.clone()),
    }
}

fn render_text(text: &str, scope: &dyn Scope) -> Result<Value, TemplateError> {
    let parts = parse(text)?;
    if let [Part::Expression(reference)] = parts.as_slice() {
        return Ok(look_up(reference, scope)?.clone());
    }
    let mut rendered = String::with_capacity(text.len());
    for part in parts {
        match part {
            Part::Text(text) => rendered.push_str(text),
            Part::Expression(reference) => match look_up(&reference, scope)? {
                Value::String(text) => rendered.push_str(text),
                Value::Bool(value) => rendered.push_str(if *value { "true" } else { "false" }),
                Value::Number(number) => rendered.push_str(&number.to_string()),
                value => {
                    return Err(TemplateError(format!(
                        "`{reference}` is {}, which cannot stand inside a text: let the expression be the whole text",
                        type_name(value)
                    )));
                }
            },
        }
    }
    Ok(Value::String(rendered))
}

fn look_up<'a>(reference: &Reference, scope: &'a dyn Scope) -> Result<&'a Value, TemplateError> {
    let missing = || TemplateError(format!("`{reference}` has no value"));
    match reference {
        Reference::Parameter(name) => scope.parameter(name).ok_or_else(missing),
        Reference::Output { step, path } => follow(reference, scope.outputs(step).ok_or_else(missing)?, path),
        Reference::Event(path) => follow(reference, scope.event().ok_or_else(missing)?, path),
    }
}

fn follow<'a>(reference: &Reference, mut value: &'a Value, path: &[String]) -> Result<&'a Value, TemplateError> {
    for segment in path {
        let next = match value {
            Value::Object(fields) => fields.get(segment),
            Value::Array(items) => segment.parse::<usize>().ok().and_then(|index| items.get(index)),
            _ => None,
        };
        value = next.ok_or_else(|| {
            TemplateError(format!(
                "`{reference}` has no value: there is no `{segment}` in {}",
                describe(value)
            ))
        })?;
    }
    Ok(value)
}

/// How many names a message lists.
const SHOWN_NAMES: usize = 20;

fn describe(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<&str> = fields.keys().map(String::as_str).collect();
            names.sort_unstable();
            names.truncate(SHOWN_NAMES);
            format!("an object with {}", names.join(", "))
        }
        Value::Array(items) => format!("a list of {}", items.len()),
        value => type_name(value).to_owned(),
    }
}

pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = match self {
            Self::Parameter(name) => return write!(f, "parameters.{name}"),
            Self::Output { step, path } => {
                write!(f, "steps.{step}.outputs")?;
                path
            }
            Self::Event(path) => {
                f.write_str("event")?;
                path
            }
        };
        path.iter().try_for_each(|segment| write!(f, ".{segment}"))
    }
}

fn parse(text: &str) -> Result<Vec<Part<'_>>, TemplateError> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(OPEN) {
        let (before, after) = rest.split_at(start);
        let after = &after[OPEN.len()..];
        let Some(end) = after.find(CLOSE) else {
            return Err(TemplateError(format!(
                "`{}` has no end: write {OPEN} .. {CLOSE}",
                shorten(&rest[start..])
            )));
        };
        if !before.is_empty() {
            parts.push(Part::Text(before));
        }
        parts.push(Part::Expression(parse_reference(after[..end].trim())?));
        rest = &after[end + CLOSE.len()..];
    }
    if !rest.is_empty() || parts.is_empty() {
        parts.push(Part::Text(rest));
    }
    Ok(parts)
}

fn parse_reference(expression: &str) -> Result<Reference, TemplateError> {
    let refuse = || {
        TemplateError(format!(
            "`{}` is no expression: write parameters.NAME, steps.NAME.outputs.NAME or, in a trigger, event.NAME",
            shorten(expression)
        ))
    };
    let segments: Vec<&str> = expression.split('.').collect();
    if !segments.iter().all(|segment| is_segment(segment)) {
        return Err(refuse());
    }
    let owned = |path: &[&str]| path.iter().map(|&segment| segment.to_owned()).collect();
    match segments.as_slice() {
        ["parameters", name] => Ok(Reference::Parameter((*name).to_owned())),
        ["steps", step, "outputs", path @ ..] => Ok(Reference::Output {
            step: (*step).to_owned(),
            path: owned(path),
        }),
        ["event", path @ ..] => Ok(Reference::Event(owned(path))),
        _ => Err(refuse()),
    }
}

/// What can stand between two dots: the names of steps and parameters are made of it, too.
pub(crate) fn is_segment(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !text.is_empty() && text.chars().all(allowed)
}

/// How much of a text a message shows, in characters.
const SHOWN_CHARS: usize = 80;

fn shorten(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct World {
        parameters: Value,
        outputs: Value,
        event: Value,
    }

    impl Scope for World {
        fn parameter(&self, name: &str) -> Option<&Value> {
            self.parameters.get(name)
        }
        fn outputs(&self, step: &str) -> Option<&Value> {
            self.outputs.get(step)
        }
        fn event(&self) -> Option<&Value> {
            Some(&self.event)
        }
    }

    fn world() -> World {
        World {
            parameters: json!({"dataset": "flights@latest", "trees": 150}),
            outputs: json!({"gate": {"passed": true, "metrics": {"auc": 0.75}, "files": [{"digest": "d0"}]}}),
            event: json!({"version": 3}),
        }
    }

    #[test]
    fn a_whole_expression_keeps_its_type_and_a_part_becomes_text() {
        let cases = [
            (json!("{{ parameters.trees }}"), json!(150)),
            (json!("{{steps.gate.outputs.passed}}"), json!(true)),
            (json!("{{ steps.gate.outputs.metrics }}"), json!({"auc": 0.75})),
            (json!("{{ steps.gate.outputs.files.0.digest }}"), json!("d0")),
            (
                json!("v{{ event.version }} of {{ parameters.dataset }}!"),
                json!("v3 of flights@latest!"),
            ),
            (
                json!(["{{ parameters.trees }}", {"a": "{{ event }}"}]),
                json!([150, {"a": {"version": 3}}]),
            ),
            (json!(""), json!("")),
            (json!("a } b { c }}"), json!("a } b { c }}")),
            (json!(1.5), json!(1.5)),
        ];
        for (value, expected) in cases {
            assert_eq!(render(&value, &world()).unwrap(), expected);
        }
    }

    #[test]
    fn what_has_no_value_is_named() {
        let cases = [
            ("{{ parameters.tree }}", "`parameters.tree` has no value"),
            ("{{ steps.train.outputs }}", "`steps.train.outputs` has no value"),
            (
                "{{ steps.gate.outputs.pass }}",
                "no `pass` in an object with files, metrics, passed",
            ),
            ("{{ steps.gate.outputs.files.7 }}", "no `7` in a list of 1"),
            (
                "is {{ steps.gate.outputs.metrics }}",
                "an object, which cannot stand inside a text",
            ),
            ("{{ parameters.trees", "has no end"),
            ("{{ 1 + 1 }}", "`1 + 1` is no expression"),
            ("{{ }}", "is no expression"),
            ("{{ steps.gate.passed }}", "is no expression"),
        ];
        for (text, expected) in cases {
            let error = render(&json!(text), &world()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn references_are_found_wherever_they_are() {
        let value =
            json!({"a": ["x {{ parameters.b }} {{ steps.s.outputs.o }}"], "c": "{{ parameters.b }}", "d": "{{ oh }}"});
        let (found, errors) = references(&value);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["parameters.b", "steps.s.outputs.o"]);
        assert_eq!(errors.len(), 1);
    }

    #[test]
    fn depth_is_bounded() {
        let deep = (0..=MAX_DEPTH).fold(json!("x"), |inner, _| json!([inner]));
        assert_eq!(references(&deep).1.len(), 1);
    }
}

//! Reading requests as MLflow does: a message comes as a query string with `GET` and as a JSON object otherwise, numbers may be
//! texts, and fields that are not known are passed over.

use std::collections::BTreeMap;

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request},
};
use http::{Method, StatusCode, header, request::Parts};
use modelyard_auth::Caller;
use serde_json::{Map, Value};

use super::error::Refusal;
use crate::model::json::quote_bare_numbers;

/// What MLflow adds to each message about a parameter.
const SEE_DOCS: &str = "See the API docs for more information about request parameters.";
/// The header with the project, which MLflow calls a workspace.
const WORKSPACE: &str = "x-mlflow-workspace";
/// The project of those who name none.
const DEFAULT_PROJECT: &str = "default";

/// Who asks, and in which project.
pub(crate) struct Tenant {
    /// Who.
    pub(crate) caller: Caller,
    /// Where.
    pub(crate) project: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Tenant {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let project = match parts.headers.get(WORKSPACE) {
            None => DEFAULT_PROJECT.to_owned(),
            Some(name) => match name.to_str().map(str::trim) {
                Ok("") => DEFAULT_PROJECT.to_owned(),
                Ok(name) => name.to_owned(),
                _ => return Err(Refusal::invalid(format!("the header `{WORKSPACE}` names no project"))),
            },
        };
        let caller = Caller::from_request_parts(parts, state).await;
        let caller = caller.map_err(|_| modelyard_auth::Error::Missing)?;
        Ok(Self { caller, project })
    }
}

/// The fields of a message.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Fields(Map<String, Value>);

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let is_query = request.method() == Method::GET && request.uri().query().is_some_and(|query| !query.is_empty());
        if is_query {
            return Ok(Self::from_query(request.uri().query().unwrap_or_default()));
        }
        Self::from_json(&json_body(request, state).await?)
    }
}

/// The body, which is JSON; empty where a message without fields comes with `GET`.
pub(super) async fn json_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Refusal> {
    let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
    let is_get = request.method() == Method::GET;
    let body = Bytes::from_request(request, state).await.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            Refusal::from(crate::Error::request(
                "the request is larger than is taken here: send less at once",
            ))
        } else {
            Refusal::invalid(rejection.body_text())
        }
    })?;
    if body.is_empty() && is_get {
        return Ok(body);
    }
    let is_json = content_type.is_some_and(|value| {
        let value = value.to_str().unwrap_or_default().trim_start();
        value.len() >= 16 && value[..16].eq_ignore_ascii_case("application/json")
    });
    if !is_json {
        return Err(Refusal::invalid(
            "Bad Request. Content-Type must be one of ['application/json'].",
        ));
    }
    Ok(body)
}

fn invalid(name: &str, value: &Value) -> Refusal {
    let kind = match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    };
    let mut shown = value.to_string();
    if let Some((end, _)) = shown.char_indices().nth(500) {
        shown.truncate(end);
    }
    Refusal::invalid(format!(
        "Invalid value {shown} for parameter '{name}' supplied:  Hint: Value was of type '{kind}'. {SEE_DOCS}"
    ))
}

impl From<Map<String, Value>> for Fields {
    fn from(fields: Map<String, Value>) -> Self {
        Self(fields)
    }
}

impl Fields {
    /// The fields of an object.
    #[cfg(test)]
    pub(crate) fn of(value: Value) -> Self {
        match value {
            Value::Object(map) => Self(map),
            _ => Self::default(),
        }
    }

    fn from_query(query: &str) -> Self {
        let mut map = Map::new();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let value = Value::String(value.into_owned());
            match map.get_mut(key.as_ref()) {
                None => {
                    map.insert(key.into_owned(), value);
                }
                Some(Value::Array(values)) => values.push(value),
                Some(first) => {
                    let values = vec![first.take(), value];
                    *first = Value::Array(values);
                }
            }
        }
        Self(map)
    }

    pub(super) fn from_json(body: &[u8]) -> Result<Self, Refusal> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        let value: Value = match serde_json::from_slice(body) {
            Ok(value) => value,
            // Python writes numbers that JSON does not have.
            Err(error) => serde_json::from_slice(&quote_bare_numbers(body, ""))
                .map_err(|_| Refusal::invalid(format!("the body is no JSON: {error}")))?,
        };
        match value {
            Value::Object(map) => Ok(Self(map)),
            Value::Null => Ok(Self::default()),
            _ => Err(Refusal::invalid("the body is no JSON object")),
        }
    }

    /// Whether something is said of it.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Takes a field out of the message; null: it is not there.
    pub(super) fn take(&mut self, name: &str) -> Value {
        self.0.remove(name).unwrap_or_default()
    }

    /// Whether none of these fields is in the message.
    pub(crate) fn is_without(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.get(name).is_none())
    }

    /// A text.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, Refusal> {
        self.get(name).map_or(Ok(None), |value| read_text(name, value))
    }

    /// A text that has to be there.
    pub(crate) fn required_text(&self, name: &str) -> Result<String, Refusal> {
        match self.text(name)? {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(missing(name)),
        }
    }

    /// An integer, perhaps written as a text.
    pub(crate) fn integer(&self, name: &str) -> Result<Option<i64>, Refusal> {
        self.get(name).map_or(Ok(None), |value| read_integer(name, value))
    }

    /// Whether it is true.
    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(other) => Err(invalid(name, other)),
        }
    }

    /// Texts; one alone is a list, too.
    pub(crate) fn texts(&self, name: &str) -> Result<Vec<String>, Refusal> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![storable(name, text)?.to_owned()]),
            Some(list @ Value::Array(values)) => values
                .iter()
                .map(|value| {
                    let text = value.as_str().ok_or_else(|| invalid(name, list))?;
                    Ok(storable(name, text)?.to_owned())
                })
                .collect(),
            Some(other) => Err(invalid(name, other)),
        }
    }

    /// A message in the message.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Self>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self(map.clone()))),
            Some(other) => Err(invalid(name, other)),
        }
    }

    /// Messages in the message.
    pub(crate) fn objects(&self, name: &str) -> Result<Vec<Self>, Refusal> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(list @ Value::Array(values)) => values
                .iter()
                .map(|value| match value {
                    Value::Object(map) => Ok(Self(map.clone())),
                    _ => Err(invalid(name, list)),
                })
                .collect(),
            Some(other) => Err(invalid(name, other)),
        }
    }

    /// A value of any kind.
    pub(crate) fn value(&self, name: &str) -> Option<&Value> {
        self.get(name)
    }

    /// Texts by key; numbers are texts, too.
    pub(crate) fn map(&self, name: &str) -> Result<BTreeMap<String, String>, Refusal> {
        let Some(map) = self.object(name)? else {
            return Ok(BTreeMap::new());
        };
        let entries = map.0.into_iter().map(|(key, value)| {
            let text = match value {
                Value::String(text) => text,
                Value::Number(_) | Value::Bool(_) => value.to_string(),
                other => return Err(invalid(name, &other)),
            };
            storable(name, &key)?;
            storable(name, &text)?;
            Ok((key, text))
        });
        entries.collect()
    }

    /// Pairs of `key` and `value`, which params and tags are.
    pub(crate) fn pairs(&self, name: &str) -> Result<Vec<(String, String)>, Refusal> {
        let pairs = self.objects(name)?.into_iter();
        pairs
            .map(|pair| {
                Ok((
                    pair.text("key")?.unwrap_or_default(),
                    pair.text("value")?.unwrap_or_default(),
                ))
            })
            .collect()
    }
}

/// A text that can be stored: no database and no file has the character NUL.
fn storable<'a>(name: &str, text: &'a str) -> Result<&'a str, Refusal> {
    if text.contains('\0') {
        return Err(Refusal::invalid(format!(
            "parameter '{name}' has a NUL character: leave it out"
        )));
    }
    Ok(text)
}

/// A field that is a text.
pub(super) fn read_text(name: &str, value: &Value) -> Result<Option<String>, Refusal> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(storable(name, text)?.to_owned())),
        other => Err(invalid(name, other)),
    }
}

/// A field that is an integer, perhaps written as a text.
pub(super) fn read_integer(name: &str, value: &Value) -> Result<Option<i64>, Refusal> {
    let read = match value {
        Value::Null => return Ok(None),
        Value::Number(number) => number.as_i64().or_else(|| {
            // 3.0 is 3.
            let float = number.as_f64()?;
            (float.fract() == 0.0 && float.abs() < 9.2e18).then_some(float as i64)
        }),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    read.map(Some).ok_or_else(|| invalid(name, value))
}

/// A field that is a number, perhaps written as a text.
pub(super) fn read_number(name: &str, value: &Value) -> Result<Option<f64>, Refusal> {
    let read = match value {
        Value::Null => return Ok(None),
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    read.map(Some).ok_or_else(|| invalid(name, value))
}

/// A parameter that has to be there is not.
pub(crate) fn missing(name: &str) -> Refusal {
    Refusal::invalid(format!("Missing value for required parameter '{name}'. {SEE_DOCS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::from_json(json.as_bytes()).unwrap()
    }

    #[test]
    fn numbers_may_be_texts() {
        let read = fields(r#"{"a": 1700000000000, "b": "1700000000000", "c": 3.0, "d": "x", "e": 1.5, "f": null}"#);
        for name in ["a", "b"] {
            assert_eq!(read.integer(name).unwrap(), Some(1_700_000_000_000));
        }
        assert_eq!(read.integer("c").unwrap(), Some(3));
        assert!(read.integer("d").is_err() && read.integer("e").is_err());
        assert_eq!(read.integer("f").unwrap(), None);
        assert_eq!(read_number("b", read.get("b").unwrap()).unwrap(), Some(1.7e12));
    }

    #[test]
    fn numbers_that_json_lacks_are_read() {
        let read = fields(r#"{"a": NaN, "b": -Infinity, "c": [Infinity], "d": "\"NaN, Infinity", "e": "NaN"}"#);
        let number = |name: &str| read_number(name, read.get(name).unwrap()).unwrap();
        assert!(number("a").unwrap().is_nan() && number("e").unwrap().is_nan());
        assert_eq!(number("b"), Some(f64::NEG_INFINITY));
        assert_eq!(read.text("d").unwrap().unwrap(), "\"NaN, Infinity");
    }

    #[test]
    fn queries_are_messages() {
        let read = Fields::from_query("experiment_id=1&ids=a&ids=b&flag=TRUE&count=5");
        assert_eq!(read.required_text("experiment_id").unwrap(), "1");
        assert_eq!(read.texts("ids").unwrap(), ["a", "b"]);
        assert_eq!(read.texts("experiment_id").unwrap(), ["1"]);
        assert_eq!(read.boolean("flag").unwrap(), Some(true));
        assert_eq!(read.integer("count").unwrap(), Some(5));
        assert_eq!(read.text("other").unwrap(), None);
    }

    #[test]
    fn refusals_say_what_mlflow_says() {
        let refused = fields(r#"{"name": 123}"#).text("name").unwrap_err();
        let expected = "Invalid value 123 for parameter 'name' supplied:  Hint: Value was of type 'int'. See the API docs \
                        for more information about request parameters.";
        assert_eq!(refused, Refusal::invalid(expected));
        let refused = fields(r#"{"step": "foo"}"#).integer("step").unwrap_err();
        let expected = "Invalid value \"foo\" for parameter 'step' supplied:  Hint: Value was of type 'str'. See the API docs \
                        for more information about request parameters.";
        assert_eq!(refused, Refusal::invalid(expected));
        let refused = fields("{}").required_text("name").unwrap_err();
        let expected = "Missing value for required parameter 'name'. See the API docs for more information about request \
                        parameters.";
        assert_eq!(refused, Refusal::invalid(expected));
        assert!(Fields::from_json(b"[1]").is_err() && Fields::from_json(b"{").is_err());
    }
}

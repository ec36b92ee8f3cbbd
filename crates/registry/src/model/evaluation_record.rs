//! The records of evaluation datasets. A record that comes again with the same inputs is merged with the one that is there.

use std::collections::BTreeMap;

use modelyard_common::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{evaluation_dataset::USER_TAG, json::Json};
use crate::error::{Error, Result};

/// The most records that are sent at once.
pub const MAX_RECORDS_AT_ONCE: usize = 50_000;
/// The most records of a dataset.
pub const MAX_RECORDS: u64 = 1_000_000;
/// The most records of a page.
pub const MAX_RECORD_PAGE: u32 = 10_000;
/// A page ends after so many bytes, but never without a record.
pub const RECORD_PAGE_BYTES: u64 = 32 << 20;
/// The most different fields of the inputs, outputs or expectations of a dataset.
pub const MAX_FIELDS: usize = 10_000;
/// Where records come from.
const SOURCE_TYPES: [&str; 5] = ["UNSPECIFIED", "TRACE", "HUMAN", "DOCUMENT", "CODE"];

/// Where a record comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RecordSource {
    /// One of the types.
    pub(crate) source_type: &'static str,
    /// The trace, for example.
    pub(crate) source_id: Option<String>,
    /// All of it, as JSON.
    pub(crate) json: String,
}

/// A record as a client sends it.
#[derive(Debug, Clone)]
pub struct NewRecord {
    /// Its id, should it be new.
    pub(crate) record_id: String,
    pub(crate) input_hash: String,
    pub(crate) inputs: Json,
    /// None: nothing is said of them.
    pub(crate) outputs: Option<Json>,
    /// An object, or nothing.
    pub(crate) expectations: Option<Json>,
    /// An object, or nothing.
    pub(crate) tags: Option<Json>,
    pub(crate) source: Option<RecordSource>,
    /// Who says that they made it.
    pub(crate) user: Option<String>,
}

/// Records that are added to a dataset, or change it.
#[derive(Debug, Clone)]
pub struct RecordBatch {
    /// Them.
    pub records: Vec<NewRecord>,
    /// Now.
    pub now: Timestamp,
}

impl RecordBatch {
    /// Who changed the dataset: who the last record says.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.records.iter().rev().find_map(|record| record.user.as_deref())
    }
}

/// How many records came into being, and how many were changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Upserted {
    /// These came into being.
    pub inserted: u64,
    /// These were changed.
    pub updated: u64,
}

/// A record. Texts of JSON are as they were sent.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationRecord {
    /// Its id.
    pub record_id: String,
    /// Its dataset.
    pub dataset_id: String,
    /// What is asked: JSON.
    pub inputs: String,
    /// What was answered: JSON.
    pub outputs: Option<String>,
    /// What should be answered: JSON.
    pub expectations: Option<String>,
    /// Notes: JSON.
    pub tags: String,
    /// Where it comes from: JSON.
    pub source: Option<String>,
    /// The trace, for example.
    pub source_id: Option<String>,
    /// What that is.
    pub source_type: Option<String>,
    /// When it came into being.
    pub created_at: Timestamp,
    /// When it was changed.
    pub updated_at: Timestamp,
    /// Who made it, as the client said.
    pub created_by: Option<String>,
    /// Who changed it, as the client said.
    pub updated_by: Option<String>,
}

/// A page of records.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RecordPage {
    /// In the order in which they came.
    pub records: Vec<EvaluationRecord>,
    /// The position after which the next page begins; none: this is the last.
    pub next: Option<i64>,
}

/// What of a record changes when it comes again.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Merged {
    pub(crate) outputs: Option<Json>,
    pub(crate) expectations: Option<Json>,
    pub(crate) tags: Json,
    pub(crate) user: Option<String>,
}

impl NewRecord {
    /// What is stored of a record that is new.
    pub(crate) fn first(&self) -> Merged {
        let outputs = self.outputs.clone().unwrap_or_else(|| Json::Object(Vec::new()));
        Merged {
            outputs: Some(outputs).filter(|outputs| *outputs != Json::Null),
            expectations: self.expectations.clone(),
            tags: self.tags.clone().unwrap_or_else(|| Json::Object(Vec::new())),
            user: self.user.clone(),
        }
    }

    /// What becomes of a record that comes again: outputs are replaced, expectations and tags are added.
    pub(crate) fn merge_into(&self, known: &mut Merged) {
        if let Some(outputs) = &self.outputs {
            known.outputs = Some(outputs.clone()).filter(|outputs| *outputs != Json::Null);
        }
        if let Some(more) = self.expectations.as_ref().filter(|more| more.is_something()) {
            let expectations = known.expectations.get_or_insert_with(|| Json::Object(Vec::new()));
            extend(expectations, more);
        }
        if let Some(more) = self.tags.as_ref().filter(|more| more.is_something()) {
            extend(&mut known.tags, more);
        }
        if self.user.is_some() {
            known.user.clone_from(&self.user);
        }
    }
}

/// Sets the fields of an object that another one has.
fn extend(object: &mut Json, more: &Json) {
    let (Json::Object(fields), Json::Object(more)) = (object, more) else {
        return;
    };
    let mut places: BTreeMap<String, usize> = fields
        .iter()
        .enumerate()
        .map(|(place, (key, _))| (key.clone(), place))
        .collect();
    for (key, value) in more {
        if let Some(field) = places.get(key).and_then(|place| fields.get_mut(*place)) {
            field.1 = value.clone();
        } else {
            places.insert(key.clone(), fields.len());
            fields.push((key.clone(), value.clone()));
        }
    }
}

/// The same with the keys of all objects in order; of a key that comes twice, the last counts.
fn sorted(value: &Json) -> Json {
    match value {
        Json::List(items) => Json::List(items.iter().map(sorted).collect()),
        Json::Object(fields) => {
            let fields: BTreeMap<&String, &Json> = fields.iter().map(|(key, value)| (key, value)).collect();
            Json::Object(
                fields
                    .into_iter()
                    .map(|(key, value)| (key.clone(), sorted(value)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

/// What the same inputs have in common.
fn input_hash(inputs: &Json) -> String {
    hex::encode(Sha256::digest(sorted(inputs).dump()))
}

fn wrong(place: usize, problem: &str) -> Error {
    Error::request(format!("record {place} of `records` {problem}"))
}

/// A field that is an object, or not there.
fn object(record: &Json, name: &str, place: usize) -> Result<Option<Json>> {
    match record.get(name) {
        None | Some(Json::Null) => Ok(None),
        Some(object @ Json::Object(_)) => Ok(Some(object.clone())),
        Some(_) => Err(wrong(place, &format!("has `{name}` that are no JSON object"))),
    }
}

/// A text from the inside of a record that gets a column of its own.
fn plain(place: usize, text: &str) -> Result<String> {
    if text.contains('\0') {
        return Err(wrong(place, "has a NUL character in its user or source: leave it out"));
    }
    Ok(text.to_owned())
}

fn read_source(record: &Json, place: usize) -> Result<Option<RecordSource>> {
    let Some(source) = record.get("source").filter(|source| source.is_something()) else {
        return Ok(None);
    };
    let named = source.get("source_type").and_then(Json::as_text);
    let named = named.ok_or_else(|| {
        wrong(
            place,
            "has a `source` without `source_type`: it is an object with `source_type` and `source_data`",
        )
    })?;
    let source_type = SOURCE_TYPES.into_iter().find(|known| known.eq_ignore_ascii_case(named));
    let source_type = source_type.ok_or_else(|| {
        let shown: String = named.chars().take(64).collect();
        let valid: Vec<String> = SOURCE_TYPES.iter().map(|known| format!("'{known}'")).collect();
        Error::request(format!(
            "Invalid dataset record source type: {}. Valid source types: [{}]",
            shown.to_uppercase(),
            valid.join(", ")
        ))
    })?;
    let content = object(source, "source_data", place)?.unwrap_or_else(|| Json::Object(Vec::new()));
    let id_field = if source_type == "TRACE" {
        "trace_id"
    } else {
        "source_id"
    };
    let source_id = content.get(id_field).and_then(Json::as_text);
    let source_id = source_id.map(|id| plain(place, id)).transpose()?;
    let json = Json::Object(vec![
        ("source_type".to_owned(), Json::Text(source_type.to_owned())),
        ("source_data".to_owned(), content),
    ]);
    Ok(Some(RecordSource {
        source_type,
        source_id,
        json: json.dump(),
    }))
}

fn read_record(record: &Json, place: usize, record_id: String) -> Result<NewRecord> {
    if !matches!(record, Json::Object(_)) {
        return Err(wrong(place, "is no JSON object"));
    }
    let inputs = match record.get("inputs") {
        None => Json::Object(Vec::new()),
        Some(inputs @ Json::Object(_)) => inputs.clone(),
        Some(_) => return Err(wrong(place, "has `inputs` that are no JSON object")),
    };
    let tags = object(record, "tags", place)?;
    let user = match tags.as_ref().and_then(|tags| tags.get(USER_TAG)) {
        None | Some(Json::Null) => None,
        Some(Json::Text(user)) => Some(plain(place, user)?),
        Some(other) => Some(other.dump()),
    };
    Ok(NewRecord {
        record_id,
        input_hash: input_hash(&inputs),
        inputs,
        outputs: record.get("outputs").cloned(),
        expectations: object(record, "expectations", place)?,
        tags,
        source: read_source(record, place)?,
        user,
    })
}

/// Reads records from a text with a JSON list.
pub(crate) fn read_records(text: &str, mut next_id: impl FnMut() -> String) -> Result<Vec<NewRecord>> {
    let Some(Json::List(records)) = Json::parse(text) else {
        return Err(Error::request(
            "Invalid value for parameter 'records' supplied: it is a text with a JSON list of records.",
        ));
    };
    if records.len() > MAX_RECORDS_AT_ONCE {
        return Err(Error::request(format!(
            "{} records are too many at once: send at most {MAX_RECORDS_AT_ONCE}",
            records.len()
        )));
    }
    let records = records.iter().enumerate();
    records
        .map(|(place, record)| read_record(record, place, next_id()))
        .collect()
}

/// The types of the fields of a part of records.
#[derive(Debug, Clone, PartialEq)]
enum Types {
    /// By field.
    Fields(BTreeMap<String, String>),
    /// Of what has no fields.
    Whole(String),
}

impl Types {
    fn of(json: Option<&Json>) -> Self {
        match json {
            Some(Json::Text(whole)) => Self::Whole(whole.clone()),
            Some(Json::Object(fields)) => {
                let fields = fields.iter();
                Self::Fields(
                    fields
                        .filter_map(|(key, value)| Some((key.clone(), value.as_text()?.to_owned())))
                        .collect(),
                )
            }
            _ => Self::Fields(BTreeMap::new()),
        }
    }

    /// Adds the fields that are not known.
    fn learn(&mut self, value: &Json) -> Result<()> {
        match (self, value) {
            (Self::Fields(types), Json::Object(fields)) => {
                for (key, value) in fields {
                    if !types.contains_key(key) {
                        types.insert(key.clone(), type_of(value).to_owned());
                    }
                }
                if types.len() > MAX_FIELDS {
                    return Err(Error::request(format!(
                        "the records have more than {MAX_FIELDS} different fields: put what varies into one field"
                    )));
                }
            }
            (Self::Whole(_), _) => {}
            (types @ Self::Fields(_), value) => {
                if *types == Self::Fields(BTreeMap::new()) {
                    *types = Self::Whole(type_of(value).to_owned());
                }
            }
        }
        Ok(())
    }

    fn into_json(self) -> Json {
        match self {
            Self::Whole(whole) => Json::Text(whole),
            Self::Fields(fields) => Json::Object(
                fields
                    .into_iter()
                    .map(|(key, value)| (key, Json::Text(value)))
                    .collect(),
            ),
        }
    }
}

/// The name of the type of a value.
const fn type_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Integer(_) => "integer",
        Json::Number(_) => "float",
        Json::Text(_) => "string",
        Json::List(_) => "array",
        Json::Object(_) => "object",
    }
}

/// The schema of a dataset after records came, as JSON; none: there is none, and none came.
pub(crate) fn merged_schema(known: Option<&str>, records: &[NewRecord]) -> Result<Option<String>> {
    if records.is_empty() {
        return Ok(known.map(str::to_owned));
    }
    let known = known.and_then(Json::parse).unwrap_or(Json::Null);
    let [mut inputs, mut outputs, mut expectations] =
        ["inputs", "outputs", "expectations"].map(|part| Types::of(known.get(part)));
    for record in records {
        inputs.learn(&record.inputs)?;
        if let Some(value) = record.outputs.as_ref().filter(|value| **value != Json::Null) {
            outputs.learn(value)?;
        }
        if let Some(value) = &record.expectations {
            expectations.learn(value)?;
        }
    }
    let schema = Json::Object(vec![
        ("inputs".to_owned(), inputs.into_json()),
        ("outputs".to_owned(), outputs.into_json()),
        ("expectations".to_owned(), expectations.into_json()),
        ("version".to_owned(), Json::Text("1.0".to_owned())),
    ]);
    Ok(Some(schema.dump()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<NewRecord> {
        read_records(text, || "dr-1".to_owned()).unwrap()
    }

    #[test]
    fn the_same_inputs_have_the_same_hash() {
        let records = read(
            r#"[{"inputs": {"b": [1, 2.5, null], "a": {"y": true, "x": "z"}}}, {"inputs": {"a": {"x": "z", "y": true}, "b": [1, 2.5, null]}},
                {"inputs": {"b": [1.0, 2.5, null], "a": {"y": true, "x": "z"}}}]"#,
        );
        // hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        let expected = "354b35fee5cdb9462899d12f9842132c43ebfc1cc518ab40440cb8fc518bd9b1";
        assert_eq!(records[0].input_hash, expected);
        assert_eq!(records[1].input_hash, expected);
        assert_ne!(records[2].input_hash, expected);
    }

    #[test]
    fn what_comes_again_is_merged() {
        let records = read(
            r#"[{"inputs": {"q": 1}, "expectations": {"a": 1, "b": 2}, "tags": {"mlflow.user": "ann"}},
                {"inputs": {"q": 1}, "outputs": "x", "expectations": {"b": 3, "c": NaN}, "tags": {"t": "1"}},
                {"inputs": {"q": 1}, "outputs": null, "expectations": {}, "tags": {"mlflow.user": "bob"}},
                {"inputs": {"q": 1}, "expectations": null}]"#,
        );
        let mut merged = records[0].first();
        assert_eq!(merged.outputs.as_ref().map(Json::dump).as_deref(), Some("{}"));
        records[1].merge_into(&mut merged);
        assert_eq!(merged.outputs, Some(Json::Text("x".to_owned())));
        let expectations = merged.expectations.as_ref().map(Json::dump);
        assert_eq!(expectations.as_deref(), Some(r#"{"a": 1, "b": 3, "c": NaN}"#));
        assert_eq!(merged.user.as_deref(), Some("ann"));
        records[2].merge_into(&mut merged);
        records[3].merge_into(&mut merged);
        assert_eq!(merged.outputs, None);
        assert_eq!(merged.tags.dump(), r#"{"mlflow.user": "bob", "t": "1"}"#);
        assert_eq!(merged.expectations.as_ref().map(Json::dump), expectations);
        assert_eq!(merged.user.as_deref(), Some("bob"));
    }

    #[test]
    fn the_schema_learns_fields_once() {
        let records = read(
            r#"[{"inputs": {"q": "x", "n": 1}, "outputs": "text"}, {"inputs": {"q": 1, "f": 1.5}, "expectations": {"ok": true}}]"#,
        );
        let schema = merged_schema(None, &records).unwrap().unwrap();
        assert_eq!(
            schema,
            r#"{"inputs": {"f": "float", "n": "integer", "q": "string"}, "outputs": "string", "expectations": {"ok": "boolean"}, "version": "1.0"}"#
        );
        let more = read(r#"[{"inputs": {}, "outputs": {"a": null}, "expectations": {"list": [], "deep": {}}}]"#);
        let schema = merged_schema(Some(&schema), &more).unwrap().unwrap();
        let schema = Json::parse(&schema).unwrap();
        assert_eq!(schema.get("outputs").and_then(Json::as_text), Some("string"));
        let expectations = schema.get("expectations").unwrap().dump();
        assert_eq!(expectations, r#"{"deep": "object", "list": "array", "ok": "boolean"}"#);
        assert_eq!(merged_schema(None, &[]).unwrap(), None);
    }

    #[test]
    fn sources_are_known() {
        let records = read(
            r#"[{"inputs": {}, "source": {"source_type": "trace", "source_data": {"trace_id": "tr-1"}}},
                {"inputs": {}, "source": {"source_type": "HUMAN"}}, {"inputs": {}, "source": {}}]"#,
        );
        let source = records[0].source.clone().unwrap();
        assert_eq!(
            (source.source_type, source.source_id.as_deref()),
            ("TRACE", Some("tr-1"))
        );
        assert_eq!(
            source.json,
            r#"{"source_type": "TRACE", "source_data": {"trace_id": "tr-1"}}"#
        );
        assert_eq!(records[1].source.clone().unwrap().source_id, None);
        assert_eq!(records[2].source, None);
    }

    #[test]
    fn what_cannot_be_a_record_is_refused() {
        for (text, part) in [
            ("{}", "a JSON list of records"),
            ("[1]", "record 0 of `records` is no JSON object"),
            (r#"[{"inputs": {}}, {"inputs": null}]"#, "record 1"),
            (r#"[{"inputs": {}, "expectations": [1]}]"#, "`expectations`"),
            (r#"[{"inputs": {}, "tags": "x"}]"#, "`tags`"),
            (r#"[{"inputs": {}, "source": "x"}]"#, "`source_type`"),
            (
                r#"[{"inputs": {}, "source": {"source_type": "x"}}]"#,
                "Invalid dataset record source type: X. Valid source types: ['UNSPECIFIED', 'TRACE', 'HUMAN', 'DOCUMENT', 'CODE']",
            ),
            (r#"[{"inputs": {}, "tags": {"mlflow.user": "\u0000"}}]"#, "NUL"),
        ] {
            let error = read_records(text, String::new).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

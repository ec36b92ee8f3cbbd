//! What a field is compared with.

use regex::Regex;

use super::{
    Clause, Entity, MAX_EXPRESSION_BYTES, MAX_LIST, MAX_PATTERN_BYTES, MAX_WILDCARDS, Operator, SearchError, Value,
    fields::{Field, Holds, Schema, Subject},
    lexer::{Kind, Token, unquoted},
    wording,
};

/// A value as it is written.
pub(super) enum Written<'a> {
    /// Nothing, after `IS NULL`.
    None,
    /// One token.
    One(Token<'a>),
    /// A list: its tokens between the parentheses, and all of it.
    List(&'a [Token<'a>], &'a str),
}

impl<'a> Written<'a> {
    fn text(&self) -> &'a str {
        match self {
            Self::None => "",
            Self::One(token) => token.text,
            Self::List(_, text) => text,
        }
    }
}

/// The comparison of a field; refused where the field, the operator and the value do not fit.
pub(super) fn clause(
    schema: &Schema,
    field: &Field<'_>,
    comparator: &str,
    operator: Option<Operator>,
    written: &Written<'_>,
) -> Result<Clause, SearchError> {
    if matches!(written, Written::None) && !field.operators(schema).contains(&Operator::IsNull) {
        return Err(wording::null(schema, field));
    }
    // First the value, then the operator: that is the order in which MLflow complains.
    let value = value(schema, field, operator, written)?;
    let operator = operator.filter(|operator| field.operators(schema).contains(operator));
    let operator = operator.ok_or_else(|| wording::comparator(schema, field, comparator))?;
    if let (Operator::Like | Operator::ILike, Value::Text(pattern)) = (operator, &value) {
        let wildcards = pattern.bytes().filter(|byte| *byte == b'%').count();
        if pattern.len() > MAX_PATTERN_BYTES || wildcards > MAX_WILDCARDS {
            return Err(wording::pattern(field.key));
        }
    }
    if let (Subject::Traces, Entity::Attribute, "prompt", Value::Text(prompt)) =
        (schema.subject, field.entity, field.key, &value)
        && prompt.matches('/').count() != 1
    {
        return Err(wording::prompt(prompt));
    }
    if let (Operator::RLike, Value::Text(expression)) = (operator, &value) {
        let is_short = expression.len() <= MAX_EXPRESSION_BYTES;
        // Both databases must read it, and alike: what only one of them knows is refused.
        let is_plain = !["(?P", "(?<", "\\p", "\\P", "&&", "--", "~~"]
            .iter()
            .any(|part| expression.contains(part));
        if !is_short || !is_plain || Regex::new(expression).is_err() {
            return Err(wording::expression(field.key));
        }
    }
    Ok(Clause {
        entity: field.entity,
        key: field.attribute.map_or(field.key, |attribute| attribute.name).to_owned(),
        operator,
        value,
    })
}

fn value(
    schema: &Schema,
    field: &Field<'_>,
    operator: Option<Operator>,
    written: &Written<'_>,
) -> Result<Value, SearchError> {
    if matches!(written, Written::None) {
        return Ok(Value::None);
    }
    match (field.entity, field.attribute.map(|attribute| attribute.holds)) {
        (Entity::Metric, _) => {
            let number = number_of(written).and_then(|text| text.parse().ok());
            let number = number.ok_or_else(|| wording::metric_value(written.text()))?;
            Ok(Value::Number(number))
        }
        (Entity::Attribute, Some(Holds::Integer { fractions, texts })) => integer(field, fractions, texts, written),
        (Entity::Feedback | Entity::Expectation, _) => assessed(schema, field, operator, written),
        (_, holds) => {
            let value = texts(schema, field, operator, written)?;
            if holds == Some(Holds::ExperimentId) {
                experiment_ids(value)
            } else {
                Ok(value)
            }
        }
    }
}

/// The value of an assessment: a number where greater and less are asked for, else a text.
fn assessed(
    schema: &Schema,
    field: &Field<'_>,
    operator: Option<Operator>,
    written: &Written<'_>,
) -> Result<Value, SearchError> {
    let ordering = [
        Operator::Greater,
        Operator::GreaterOrEqual,
        Operator::Less,
        Operator::LessOrEqual,
    ];
    let Some(operator) = operator.filter(|operator| ordering.contains(operator)) else {
        return texts(schema, field, operator, written);
    };
    let number = number_of(written).and_then(|text| text.parse().ok());
    let number = number.ok_or_else(|| wording::assessed(field.entity, operator, written.text()))?;
    Ok(Value::Number(number))
}

/// The number that is written.
fn number_of<'a>(written: &Written<'a>) -> Option<&'a str> {
    match written {
        Written::One(token) if token.kind == Kind::Number => Some(token.text),
        _ => None,
    }
}

fn integer(field: &Field<'_>, fractions: bool, texts: bool, written: &Written<'_>) -> Result<Value, SearchError> {
    let wrong = || wording::whole_number(field.key, written.text());
    if let Written::One(token) = written
        && texts
        && matches!(token.kind, Kind::Text | Kind::Quoted)
    {
        let whole = unquoted(token.text).trim().parse().map_err(|_| wrong())?;
        return Ok(Value::Integer(whole));
    }
    let text = number_of(written).ok_or_else(|| wording::number(field.key, written.text()))?;
    if let Ok(whole) = text.parse() {
        return Ok(Value::Integer(whole));
    }
    let is_whole = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    if !fractions && !is_whole {
        return Err(wrong());
    }
    // A whole number beyond all that can be stored is compared as what it is: very large.
    text.parse().map(Value::Number).map_err(|_| wrong())
}

fn texts(
    schema: &Schema,
    field: &Field<'_>,
    operator: Option<Operator>,
    written: &Written<'_>,
) -> Result<Value, SearchError> {
    let in_list = matches!(operator, Some(Operator::In | Operator::NotIn));
    match written {
        Written::List(tokens, text) if in_list => list(tokens, text).map(Value::Texts),
        Written::One(token) if !in_list => match token.kind {
            Kind::Text => Ok(Value::Text(unquoted(token.text))),
            Kind::Quoted if token.text.starts_with('"') => Ok(Value::Text(unquoted(token.text))),
            // The filters of logged models take bare words and numbers for texts.
            _ if schema.subject == Subject::LoggedModels => Ok(Value::Text(token.text.to_owned())),
            Kind::Word | Kind::Path | Kind::Quoted => Err(wording::unquoted(token.text)),
            kind => Err(wording::text(schema, field, token.text, kind == Kind::Number)),
        },
        _ => Err(wording::text(schema, field, written.text(), false)),
    }
}

/// The texts of a list. A comma may follow the last one.
fn list(tokens: &[Token<'_>], text: &str) -> Result<Vec<String>, SearchError> {
    let mut texts = Vec::new();
    let mut items = tokens.iter();
    while let Some(item) = items.next() {
        match item.kind {
            Kind::Text => texts.push(unquoted(item.text)),
            Kind::Quoted if item.text.starts_with('"') => texts.push(unquoted(item.text)),
            Kind::Number | Kind::Word | Kind::Path => {
                return Err(wording::list(&format!(
                    "string value, punctuation, or whitespace, but got different type in list: {text}"
                )));
            }
            _ => {
                return Err(wording::list(
                    "a non-empty list of string values, but got ill-formed list.",
                ));
            }
        }
        if items.next().is_some_and(|comma| comma.kind != Kind::Comma) {
            return Err(wording::list(
                "a non-empty list of string values, but got ill-formed list.",
            ));
        }
        if texts.len() > MAX_LIST {
            return Err(wording::bound("list", MAX_LIST, "values"));
        }
    }
    if texts.is_empty() {
        return Err(wording::list("a non-empty list of string values, but got empty list"));
    }
    Ok(texts)
}

/// Ids of experiments, checked: they are numbers that are written as texts.
fn experiment_ids(value: Value) -> Result<Value, SearchError> {
    let check = |text: &String| match text.trim().parse::<i64>() {
        Ok(id) => Ok(id.to_string()),
        Err(_) => Err(wording::experiment_id(text)),
    };
    Ok(match value {
        Value::Text(text) => Value::Text(check(&text)?),
        Value::Texts(texts) => Value::Texts(texts.iter().map(check).collect::<Result<_, _>>()?),
        other => other,
    })
}

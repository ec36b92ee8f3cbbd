//! Filters of metrics of traces: one comparison each, such as `trace.tag.team = 'a'` or `span.name = 'call'`.

use super::{
    Clause, Entity, MAX_FILTER_BYTES, Operator, SearchError, Value,
    lexer::{Kind, tokens, unquoted},
    wording,
};

/// What a filter of metrics is about.
#[derive(Debug, Clone, PartialEq)]
pub enum MetricFilter {
    /// The trace.
    Trace(Clause),
    /// The span that is measured: its name, status or type.
    Span(Clause),
    /// The assessment that is measured: its name or type.
    Assessment(Clause),
}

const VIEWS: [(&str, &[&str]); 3] = [
    ("trace", &["status", "tag", "metadata"]),
    ("span", &["name", "status", "type"]),
    ("assessment", &["name", "type"]),
];

fn refused(message: impl Into<String>) -> SearchError {
    SearchError::new(message.into())
}

/// Splits a path at its first two points.
fn path(text: &str) -> Result<(&str, &str, Option<&str>), SearchError> {
    let mut parts = text.splitn(3, '.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(view), Some(entity), key) => Ok((view, entity, key)),
        _ => Err(refused(format!(
            "Invalid identifier '{}'. Columns should be specified as 'trace.<key>', 'span.<key>', 'assessment.<key>'.",
            wording::shown(text)
        ))),
    }
}

/// Reads one comparison.
pub fn parse_metric_filter(text: &str) -> Result<MetricFilter, SearchError> {
    if text.len() > MAX_FILTER_BYTES {
        return Err(wording::bound("filter", MAX_FILTER_BYTES, "bytes"));
    }
    let shown = wording::shown(text);
    let tokens = tokens(text);
    let [field, comparator, value] = tokens.as_slice() else {
        return Err(refused(match tokens.as_slice() {
            [] => format!("Invalid filter '{shown}'. Could not be parsed."),
            _ => format!("Invalid clause(s) in filter string: {shown}. Expected one filter clause."),
        }));
    };
    if text.contains('\0') || !matches!(field.kind, Kind::Path | Kind::Word | Kind::Quoted) {
        return Err(refused(format!("Invalid clause(s) in filter string: {shown}")));
    }
    let (view, entity, key) = path(field.text)?;
    let view = unquoted(view);
    let Some((_, entities)) = VIEWS.iter().find(|(name, _)| *name == view) else {
        return Err(refused(format!(
            "Invalid view type '{}'. Valid values are dict_keys(['trace', 'span', 'assessment'])",
            wording::shown(&view)
        )));
    };
    let Some(entity) = entities.iter().copied().find(|name| *name == entity) else {
        return Err(refused(format!(
            "Invalid entity '{}' specified for view type '{view}'. Valid entities are [{}]",
            wording::shown(entity),
            wording::listed(entities.iter().copied())
        )));
    };
    let key = match (matches!(entity, "tag" | "metadata"), key) {
        (true, Some(key)) => unquoted(key),
        (false, None) => entity.to_owned(),
        (true, None) => {
            return Err(refused(format!(
                "Filtering by {entity} requires a key, e.g. '{view}.{entity}.<key> = <value>'"
            )));
        }
        (false, Some(_)) => {
            return Err(refused(format!(
                "Filtering by {entity} does not require a key, use '{view}.{entity}' instead"
            )));
        }
    };
    if comparator.text != "=" {
        return Err(refused(format!(
            "Invalid comparator: '{}', only '=' operator is supported",
            wording::shown(comparator.text)
        )));
    }
    if matches!(value.kind, Kind::Word | Kind::Path) {
        return Err(wording::unquoted(value.text));
    }
    if !matches!(value.kind, Kind::Text | Kind::Quoted) || value.text.starts_with('`') {
        return Err(refused(format!(
            "Expected a quoted string value for {entity} value (e.g. 'my-value'). Got value {}",
            wording::shown(value.text)
        )));
    }
    let clause = Clause {
        entity: match (view.as_str(), entity) {
            ("span", _) => Entity::Span,
            (_, "tag") => Entity::Tag,
            (_, "metadata") => Entity::Metadata,
            _ => Entity::Attribute,
        },
        key,
        operator: Operator::Equal,
        value: Value::Text(unquoted(value.text)),
    };
    Ok(match view.as_str() {
        "trace" => MetricFilter::Trace(clause),
        "span" => MetricFilter::Span(clause),
        _ => MetricFilter::Assessment(clause),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_comparison_is_read() {
        let MetricFilter::Trace(clause) = parse_metric_filter("trace.tag.`a b` = 'x'").unwrap() else {
            panic!("no trace");
        };
        assert_eq!((clause.entity, clause.key.as_str()), (Entity::Tag, "a b"));
        assert_eq!(clause.value, Value::Text("x".into()));
        let MetricFilter::Trace(clause) = parse_metric_filter("trace.metadata.mlflow.trace.session = \"s\"").unwrap()
        else {
            panic!("no trace");
        };
        assert_eq!(
            (clause.entity, clause.key.as_str()),
            (Entity::Metadata, "mlflow.trace.session")
        );
        assert!(matches!(
            parse_metric_filter("span.type = 'LLM'").unwrap(),
            MetricFilter::Span(_)
        ));
        assert!(matches!(
            parse_metric_filter("assessment.name = 'a'").unwrap(),
            MetricFilter::Assessment(_)
        ));
    }

    #[test]
    fn anything_else_is_refused_in_mlflows_words() {
        for (text, expected) in [
            ("status = 'OK'", "Invalid identifier 'status'"),
            ("run.status = 'OK'", "Invalid view type 'run'"),
            (
                "trace.name = 'a'",
                "Invalid entity 'name' specified for view type 'trace'. Valid entities are ['status', 'tag', 'metadata']",
            ),
            (
                "trace.tag = 'a'",
                "Filtering by tag requires a key, e.g. 'trace.tag.<key> = <value>'",
            ),
            (
                "span.name.x = 'a'",
                "Filtering by name does not require a key, use 'span.name' instead",
            ),
            (
                "span.name != 'a'",
                "Invalid comparator: '!=', only '=' operator is supported",
            ),
            (
                "span.name = 1",
                "Expected a quoted string value for name value (e.g. 'my-value'). Got value 1",
            ),
            (
                "span.name = 'a' AND span.type = 'b'",
                "Invalid clause(s) in filter string",
            ),
            ("", "Could not be parsed"),
        ] {
            let said = parse_metric_filter(text).unwrap_err().into_message();
            assert!(said.contains(expected), "{text}: {said}");
        }
    }
}

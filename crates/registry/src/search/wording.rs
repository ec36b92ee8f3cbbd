//! Refusals. Their beginnings are MLflow's, which people and tests look for; what follows says what helps.

use super::{
    Entity, Operator, SearchError,
    fields::{Field, Holds, Schema, Subject},
};

/// How much of a refused text is shown, in characters.
const SHOWN: usize = 120;

/// The start of a text that came from outside.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// A text in quotes, double ones if it has single ones.
fn quoted(text: &str) -> String {
    let text = shown(text);
    if text.contains('\'') && !text.contains('"') {
        format!("\"{text}\"")
    } else {
        format!("'{text}'")
    }
}

pub(super) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("'{name}'")).collect();
    names.join(", ")
}

fn operators(operators: &[Operator]) -> String {
    listed(operators.iter().map(|operator| operator.as_str()))
}

/// What stands where no clause can be read.
pub(super) fn clause(schema: &Schema, filter: &str, found: &str) -> SearchError {
    if schema.subject == Subject::LoggedModels {
        return SearchError::new(format!(
            "Invalid filter string: {}. Expected a list of comparisons separated by 'AND' \
             (e.g. 'metrics.loss > 0.1 AND params.lr = 0.01'), but found '{}'.",
            quoted(filter),
            shown(found)
        ));
    }
    // Only the filters of runs have the clause in quotes.
    let found = match schema.subject {
        Subject::Runs | Subject::Traces => format!("'{}'", shown(found)),
        _ => shown(found),
    };
    SearchError::new(format!("Invalid clause(s) in filter string: {found}"))
}

pub(super) fn several(schema: &Schema, filter: &str) -> SearchError {
    if schema.subject == Subject::LoggedModels {
        return SearchError::new(format!(
            "Invalid filter string: {}. Expected a single SQL expression.",
            quoted(filter)
        ));
    }
    SearchError::new(format!(
        "Search filter contained multiple expression {}. Provide AND-ed expression list.",
        quoted(filter)
    ))
}

pub(super) fn blank(filter: &str) -> SearchError {
    SearchError::new(format!("Invalid filter '{}'. Could not be parsed.", shown(filter)))
}

pub(super) fn identifier(found: &str) -> SearchError {
    SearchError::new(format!(
        "Invalid comparison clause. Expected 'Identifier' found '{}'. A name with special characters stands in back \
         quotes, as in tags.`a-b`.",
        shown(found)
    ))
}

pub(super) fn entity(schema: &Schema, word: &str) -> SearchError {
    let names = match schema.subject {
        Subject::Runs => listed(schema.entities.iter().map(|(entity, _)| entity.as_str())),
        _ => listed(schema.entities.iter().flat_map(|(_, words)| words.iter().copied())),
    };
    let word = shown(word);
    SearchError::new(match schema.subject {
        Subject::Runs | Subject::Traces => format!("Invalid entity type '{word}'. Valid values are [{names}]"),
        Subject::LoggedModels => format!("Invalid entity type: '{word}'. Expected one of [{names}]."),
        Subject::EvaluationDatasets => format!("Invalid identifier token '{word}' specified"),
        _ => format!("Invalid entity type '{word}'. Valid entity types are ({names})"),
    })
}

pub(super) fn attribute(schema: &Schema, key: &str, ordering: bool) -> SearchError {
    let names = listed(schema.attribute_names(ordering));
    let key = shown(key);
    SearchError::new(match schema.subject {
        Subject::EvaluationDatasets => {
            format!("Invalid attribute key '{key}' specified. Valid keys are: {{{names}}}")
        }
        _ => format!("Invalid attribute key '{key}' specified. Valid keys are '{{{names}}}'"),
    })
}

pub(super) fn dataset(key: &str) -> SearchError {
    let names = listed(super::fields::DATASET_KEYS);
    SearchError::new(format!(
        "Invalid dataset key '{}' specified. Valid keys are '{{{names}}}'",
        shown(key)
    ))
}

pub(super) fn comparator(schema: &Schema, field: &Field<'_>, found: &str) -> SearchError {
    let valid = operators(field.operators(schema));
    let found = shown(found);
    let key = shown(field.key);
    let holds = field.attribute.map(|attribute| attribute.holds);
    SearchError::new(match (schema.subject, field.entity) {
        (Subject::LoggedModels, entity) => format!(
            "Invalid comparison operator for {}s.{key}: '{found}'. Expected one of ({valid}).",
            if entity == Entity::Param {
                "param"
            } else {
                entity.as_str()
            }
        ),
        (Subject::Experiments, Entity::Attribute) if holds == Some(Holds::ExperimentId) => {
            format!("Invalid comparator for experiment_id: {found}")
        }
        (Subject::Traces, Entity::Span) => format!("span.{key} comparator '{found}' not one of '{{{valid}}}'"),
        (Subject::Traces, Entity::Issue) => format!("issue.{key} comparator '{found}' not one of '{{{valid}}}'"),
        (Subject::Traces, Entity::Feedback | Entity::Expectation) => {
            format!("assessment.{key} comparator '{found}' not one of '{{{valid}}}'")
        }
        (Subject::Traces, _) if key == "prompt" => format!(
            "Invalid comparator '{found}' for prompts filter. Only '=' is supported with format: \
             prompt = \"name/version\""
        ),
        (Subject::Runs | Subject::Traces, _) | (Subject::Experiments, Entity::Attribute) => {
            format!("Invalid comparator '{found}' not one of '{{{valid}}}'")
        }
        (Subject::EvaluationDatasets, Entity::Attribute) => {
            let kind = match holds {
                Some(Holds::Integer { .. }) => "numeric",
                _ => "string",
            };
            format!("Invalid comparator for {kind} attribute: {found}")
        }
        (Subject::ModelVersions, Entity::Attribute) if matches!(holds, Some(Holds::Integer { .. })) => {
            format!("Invalid comparator for attribute {key}: {found}")
        }
        (_, entity) => format!("Invalid comparator for {}: {found}", entity.as_str()),
    })
}

pub(super) fn null(schema: &Schema, field: &Field<'_>) -> SearchError {
    let key = shown(field.key);
    SearchError::new(match schema.subject {
        Subject::Experiments => {
            format!("IS NULL / IS NOT NULL is only supported for tags, not for attribute '{key}'")
        }
        Subject::Traces => return comparator(schema, field, "IS NULL"),
        _ => format!(
            "IS NULL / IS NOT NULL is only supported for tags and params, not for '{}' '{key}'",
            field.entity.as_str()
        ),
    })
}

pub(super) fn metric_value(found: &str) -> SearchError {
    SearchError::new(format!(
        "Expected numeric value type for metric. Found {}",
        shown(found)
    ))
}

pub(super) fn number(key: &str, found: &str) -> SearchError {
    SearchError::new(format!(
        "Expected numeric value type for numeric attribute: {}. Found {}",
        shown(key),
        shown(found)
    ))
}

pub(super) fn whole_number(key: &str, found: &str) -> SearchError {
    SearchError::new(format!(
        "Invalid value for numeric attribute '{}': '{}'",
        shown(key),
        shown(found)
    ))
}

pub(super) fn experiment_id(found: &str) -> SearchError {
    SearchError::new(format!(
        "Invalid experiment ID '{}'. Experiment ID must be a valid integer.",
        shown(found)
    ))
}

/// A number, or a list, where a text is expected.
pub(super) fn text(schema: &Schema, field: &Field<'_>, found: &str, is_number: bool) -> SearchError {
    let found = shown(found);
    SearchError::new(match field.entity {
        Entity::Dataset => format!("Expected a quoted string value for dataset attributes. Got value {found}"),
        Entity::Attribute if is_number && matches!(schema.subject, Subject::ModelVersions | Subject::Traces) => {
            let numeric = schema
                .attributes
                .iter()
                .filter(|attribute| attribute.holds != Holds::Text);
            let names = listed(numeric.map(|attribute| attribute.name));
            format!("Only the '{{{names}}}' attributes support comparison with numeric values.")
        }
        Entity::Attribute => match schema.subject {
            Subject::RegisteredModels | Subject::ModelVersions | Subject::Traces => format!(
                "Expected a quoted string value or a list of quoted string values for attributes. Got value {found}"
            ),
            _ => format!("Expected a quoted string value for attributes. Got value {found}"),
        },
        entity => format!(
            "Expected a quoted string value for {} (e.g. 'my-value'). Got value {found}",
            entity.as_str()
        ),
    })
}

pub(super) fn unquoted(found: &str) -> SearchError {
    SearchError::new(format!(
        "Parameter value is either not quoted or unidentified quote types used for string value {}. Use either single or \
         double quotes.",
        shown(found)
    ))
}

pub(super) fn list(problem: &str) -> SearchError {
    SearchError::new(format!("While parsing a list in the query, expected {problem}"))
}

pub(super) fn pattern(key: &str) -> SearchError {
    SearchError::new(format!(
        "The pattern for '{}' is too complex: use at most {} bytes and {} times '%'",
        shown(key),
        super::MAX_PATTERN_BYTES,
        super::MAX_WILDCARDS
    ))
}

/// A filter or an order with more of something than there may be.
pub(super) fn bound(what: &str, most: usize, of: &str) -> SearchError {
    SearchError::new(format!("The {what} is too long: use at most {most} {of}"))
}

pub(super) fn expression(key: &str) -> SearchError {
    SearchError::new(format!(
        "The regular expression for '{}' cannot be used: it is at most {} bytes long, without look-around, back references, \
         named groups and classes of Unicode",
        shown(key),
        super::MAX_EXPRESSION_BYTES
    ))
}

pub(super) fn span(key: &str) -> SearchError {
    if key == super::SPAN_ATTRIBUTE {
        return SearchError::new("Span attribute name cannot be empty after 'attributes.'");
    }
    SearchError::new(format!(
        "Invalid span attribute '{}'. Supported attributes: name, status, type, attributes.<attribute_name>.",
        shown(key)
    ))
}

pub(super) fn issue(key: &str) -> SearchError {
    SearchError::new(format!(
        "Invalid issue attribute '{}'. Supported attributes: id",
        shown(key)
    ))
}

/// What is said of a trace is compared with something that has no order.
pub(super) fn assessed(entity: Entity, operator: Operator, found: &str) -> SearchError {
    SearchError::new(format!(
        "Expected a numeric value for {} when using comparator '{}'. Got value {}",
        entity.as_str(),
        operator.as_str(),
        shown(found)
    ))
}

pub(super) fn prompt(found: &str) -> SearchError {
    SearchError::new(format!(
        "Invalid prompts filter value '{}'. Expected format: prompt = \"name/version\"",
        shown(found)
    ))
}

pub(super) fn order(found: &str) -> SearchError {
    SearchError::new(format!(
        "Invalid order_by clause '{}'. Could not be parsed.",
        shown(found)
    ))
}

pub(super) fn direction(found: &str) -> SearchError {
    SearchError::new(format!("Invalid ordering key in order_by clause '{}'.", shown(found)))
}

/// A field that can be searched, and not ordered by.
pub(super) fn unordered(schema: &Schema, entity: Entity, key: &str) -> SearchError {
    SearchError::new(match schema.subject {
        Subject::Runs | Subject::Traces => format!("Invalid identifier type '{}'", entity.as_str()),
        Subject::Experiments | Subject::EvaluationDatasets => {
            format!("Invalid order_by entity: {}", entity.as_str())
        }
        Subject::LoggedModels => format!(
            "Invalid order by field name: {}, only `metrics.<name>` is allowed.",
            entity.as_str()
        ),
        Subject::RegisteredModels => format!(
            "Invalid order by key '{}' specified. Valid keys are '{{'name', 'timestamp'}}'",
            shown(key)
        ),
        Subject::ModelVersions => format!(
            "Invalid order by key '{}' specified. Valid keys are {{{}}}",
            shown(key),
            listed(schema.attribute_names(true))
        ),
    })
}

//! In which order what was found comes.

use super::{
    Entity, MAX_ORDER, SearchError,
    fields::{Schema, Subject},
    lexer::{Kind, tokens},
    parser::field,
    wording,
};

/// One term of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// What the field belongs to.
    pub entity: Entity,
    /// The key of a metric, param or tag, or the attribute's own name: aliases are resolved.
    pub key: String,
    /// The greatest first.
    pub descending: bool,
}

/// Reads the terms of an order, the first of which counts most. One that comes again changes nothing, and is left out.
pub fn parse_order<T: AsRef<str>>(schema: &Schema, clauses: &[T]) -> Result<Vec<Order>, SearchError> {
    if clauses.len() > MAX_ORDER {
        return Err(wording::bound("order_by", MAX_ORDER, "clauses"));
    }
    let mut orders: Vec<Order> = Vec::with_capacity(clauses.len());
    for clause in clauses {
        let order = term(schema, clause.as_ref())?;
        let known = |other: &Order| other.entity == order.entity && other.key == order.key;
        if !orders.iter().any(known) {
            orders.push(order);
        }
    }
    Ok(orders)
}

fn term(schema: &Schema, text: &str) -> Result<Order, SearchError> {
    let unreadable = || wording::order(text);
    // What is a path with spaces around it, MLflow refuses.
    if text.len() > super::MAX_FILTER_BYTES || text.contains('\0') || text.trim() != text {
        return Err(unreadable());
    }
    let tokens = tokens(text);
    let (path, direction) = match tokens.as_slice() {
        [path] => (path, None),
        [path, direction] => (path, Some(direction)),
        _ => return Err(unreadable()),
    };
    let is_field = matches!(path.kind, Kind::Path | Kind::Word | Kind::Quoted);
    if !is_field || path.is("ASC") || path.is("DESC") {
        return Err(unreadable());
    }
    let descending = match direction {
        None => false,
        Some(word) if word.is("ASC") => false,
        Some(word) if word.is("DESC") => true,
        Some(word) if word.kind == Kind::Word => return Err(wording::direction(text)),
        Some(_) => return Err(unreadable()),
    };
    order(schema, path.text, descending)
}

/// The order by a field.
fn order(schema: &Schema, path: &str, descending: bool) -> Result<Order, SearchError> {
    // Registered models have their own words for everything that they cannot be ordered by.
    if schema.subject == Subject::RegisteredModels && schema.attribute(path, true).is_none() {
        return Err(wording::unordered(schema, Entity::Attribute, path));
    }
    let mut key = String::new();
    let field = field(schema, path, &mut key, true)?;
    let orderable = match field.entity {
        Entity::Attribute => true,
        Entity::Metadata => schema.subject == Subject::Traces,
        Entity::Metric => matches!(schema.subject, Subject::Runs | Subject::LoggedModels),
        Entity::Param | Entity::Tag => matches!(schema.subject, Subject::Runs | Subject::Traces),
        _ => false,
    };
    if !orderable {
        return Err(wording::unordered(schema, field.entity, field.key));
    }
    Ok(Order {
        entity: field.entity,
        key: field.attribute.map_or(field.key, |attribute| attribute.name).to_owned(),
        descending,
    })
}

/// The order of logged models by a field, which comes by itself: `metrics.` and all that follows is the metric's key.
pub fn parse_logged_model_order(field_name: &str, descending: bool) -> Result<Order, SearchError> {
    let schema = &super::LOGGED_MODELS;
    let wrong = |detail: &str| SearchError::new(format!("Invalid order by field name: {detail}"));
    if field_name.len() > super::MAX_FILTER_BYTES || field_name.contains('\0') {
        return Err(wrong("it is too long, or has a NUL."));
    }
    let (entity, key) = match field_name.split_once('.') {
        Some(("metrics", key)) => (Entity::Metric, key),
        Some((entity, _)) => {
            let entity: String = entity.chars().take(64).collect();
            return Err(wrong(&format!("{entity}, only `metrics.<name>` is allowed.")));
        }
        None => {
            let name = field_name.trim();
            let attribute = schema.attribute(name, true);
            let shown: String = name.chars().take(64).collect();
            let attribute = attribute.ok_or_else(|| wrong(&format!("{shown}.")))?;
            (Entity::Attribute, attribute.name)
        }
    };
    Ok(Order {
        entity,
        key: key.to_owned(),
        descending,
    })
}

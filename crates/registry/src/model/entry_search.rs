//! Searches of registered models and versions, among which prompts are hidden.

use super::mlflow_registry::PROMPT_TAG;
use crate::search::{Entity, Filter, Operator, Order, Value};

/// Which part of what is found is wanted, and how.
#[derive(Debug, Clone)]
pub struct EntrySearch {
    /// What must hold.
    pub filter: Option<Filter>,
    /// Whether prompts are wanted, which are no models.
    pub prompts: bool,
    /// What comes first.
    pub order: Vec<Order>,
    /// How many are passed over.
    pub offset: u64,
    /// The most that are wanted.
    pub limit: u32,
}

impl EntrySearch {
    /// A search as a client asks for it.
    #[must_use]
    pub fn new(filter: Option<Filter>, order: Vec<Order>, offset: u64, limit: u32) -> Self {
        let prompts = filter.as_ref().and_then(asks_for_prompts).unwrap_or(false);
        Self {
            // Models have no such tag: leaving prompts out takes the place of the comparison.
            filter: if prompts {
                filter
            } else {
                filter.and_then(without_prompts)
            },
            prompts,
            order,
            offset,
            limit,
        }
    }
}

/// Whether the first comparison with the tag of prompts asks for them.
fn asks_for_prompts(filter: &Filter) -> Option<bool> {
    match filter {
        Filter::All(parts) | Filter::Any(parts) => parts.iter().find_map(asks_for_prompts),
        Filter::Not(part) => asks_for_prompts(part).map(|asked| !asked),
        Filter::Clause(clause) if clause.entity == Entity::Tag && clause.key == PROMPT_TAG => {
            let is = |word: &str| matches!(&clause.value, Value::Text(text) if text.eq_ignore_ascii_case(word));
            Some(match clause.operator {
                Operator::Equal => is("true"),
                Operator::NotEqual => is("false"),
                _ => false,
            })
        }
        Filter::Clause(_) => None,
    }
}

/// A filter without the comparisons with the tag of prompts; None: nothing else is asked.
fn without_prompts(filter: Filter) -> Option<Filter> {
    match filter {
        Filter::Clause(clause) if clause.entity == Entity::Tag && clause.key == PROMPT_TAG => None,
        Filter::Clause(clause) => Some(Filter::Clause(clause)),
        Filter::Not(part) => without_prompts(*part).map(|part| Filter::Not(Box::new(part))),
        Filter::All(parts) => {
            let parts: Vec<Filter> = parts.into_iter().filter_map(without_prompts).collect();
            (!parts.is_empty()).then_some(Filter::All(parts))
        }
        Filter::Any(parts) => {
            let parts: Option<Vec<Filter>> = parts.into_iter().map(without_prompts).collect();
            parts.map(Filter::Any)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_found_only_by_their_tag() {
        let clause = |key: &str, operator, value: &str| {
            Filter::Clause(crate::search::Clause {
                entity: Entity::Tag,
                key: key.to_owned(),
                operator,
                value: Value::Text(value.to_owned()),
            })
        };
        let search = |filter: Filter| EntrySearch::new(Some(filter), Vec::new(), 0, 1);
        let other = clause("a", Operator::Equal, "b");
        let asked = clause(PROMPT_TAG, Operator::Equal, "True");
        let found = search(Filter::All(vec![asked.clone(), other.clone()]));
        assert!(found.prompts && found.filter.is_some());
        for refused in [
            clause(PROMPT_TAG, Operator::Equal, "false"),
            clause(PROMPT_TAG, Operator::NotEqual, "true"),
            Filter::Not(Box::new(asked)),
        ] {
            let found = search(Filter::All(vec![refused.clone(), other.clone()]));
            assert_eq!(
                (found.prompts, found.filter),
                (false, Some(Filter::All(vec![other.clone()])))
            );
            let found = search(refused.clone());
            assert_eq!((found.prompts, found.filter), (false, None));
            assert_eq!(search(Filter::Any(vec![refused, other.clone()])).filter, None);
        }
    }
}

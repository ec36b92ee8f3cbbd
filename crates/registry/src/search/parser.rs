//! From tokens to a filter.

use super::{
    Entity, Filter, MAX_CLAUSES, MAX_FILTER_BYTES, MAX_NESTING, Operator, SearchError,
    fields::{DATASET_KEYS, Field, SPAN_ATTRIBUTE, SPAN_KEYS, Schema, Subject},
    lexer::{Kind, Token, tokens, unquoted},
    value::{self, Written},
    wording,
};

/// Reads a filter. None: it asks for nothing, and everything fits.
pub fn parse_filter(schema: &Schema, text: &str) -> Result<Option<Filter>, SearchError> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.len() > MAX_FILTER_BYTES {
        return Err(wording::bound("filter", MAX_FILTER_BYTES, "bytes"));
    }
    if text.contains('\0') {
        // No database keeps it in a text.
        return Err(wording::clause(schema, text, "\\0"));
    }
    let tokens = tokens(text);
    if tokens.is_empty() {
        return Err(wording::blank(text));
    }
    // A quote that is never closed spoils what stands before it too.
    let unclosed = tokens
        .last()
        .filter(|token| token.kind == Kind::Other && token.text.starts_with(['\'', '"', '`']));
    if let Some(unclosed) = unclosed {
        return Err(wording::clause(schema, text, unclosed.text));
    }
    Parser {
        schema,
        text,
        tokens: &tokens,
        at: 0,
        clauses: 0,
    }
    .filter()
}

/// Splits a field into its entity and its key, and looks both up.
pub(super) fn field<'k>(
    schema: &Schema,
    path: &str,
    key_space: &'k mut String,
    ordering: bool,
) -> Result<Field<'k>, SearchError> {
    let (mut entity, key) = match path.split_once('.') {
        // A point inside quotes does not divide, as in `"a.b"`.
        Some((entity, key)) if !path.starts_with('"') => {
            let word = entity.strip_prefix('`').and_then(|word| word.strip_suffix('`'));
            let word = word.unwrap_or(entity);
            let entity = schema.entity(word).ok_or_else(|| wording::entity(schema, word))?;
            (entity, key)
        }
        _ if path.starts_with('"') && path.contains("\".") => {
            let word = path.split_once("\".").map_or(path, |(word, _)| word);
            return Err(wording::entity(schema, &format!("{word}\"")));
        }
        _ => (Entity::Attribute, path),
    };
    *key_space = match key.strip_prefix(SPAN_ATTRIBUTE).filter(|_| entity == Entity::Span) {
        Some(name) => format!("{SPAN_ATTRIBUTE}{}", unquoted(name)),
        None => unquoted(key),
    };
    if schema.subject == Subject::Traces && entity == Entity::Attribute && !ordering && key_space == "text" {
        // The text of a trace is what is in its spans.
        "content".clone_into(key_space);
        entity = Entity::Span;
    }
    let key: &'k str = key_space;
    let attribute = match entity {
        Entity::Attribute => {
            let found = schema.attribute(key, ordering);
            Some(found.ok_or_else(|| wording::attribute(schema, key, ordering))?)
        }
        Entity::Dataset if !DATASET_KEYS.contains(&key) => return Err(wording::dataset(key)),
        Entity::Span if key == SPAN_ATTRIBUTE || !(key.starts_with(SPAN_ATTRIBUTE) || SPAN_KEYS.contains(&key)) => {
            return Err(wording::span(key));
        }
        Entity::Issue if key != "id" => return Err(wording::issue(key)),
        _ => None,
    };
    Ok(Field { entity, key, attribute })
}

/// What is open: the filter itself, a parenthesis.
#[derive(Default)]
struct Open {
    /// The alternatives that are complete.
    any: Vec<Filter>,
    /// The parts of the alternative that is being read.
    all: Vec<Filter>,
    /// The `NOT`s in front of the next part.
    negations: usize,
}

impl Open {
    fn add(&mut self, part: Filter) {
        let part = match (self.negations % 2, part) {
            (0, part) => part,
            (_, Filter::Not(inner)) => *inner,
            (_, part) => Filter::Not(Box::new(part)),
        };
        self.negations = 0;
        match part {
            Filter::All(parts) => self.all.extend(parts),
            part => self.all.push(part),
        }
    }

    /// Ends an alternative.
    fn alternative(&mut self) {
        let mut all = std::mem::take(&mut self.all);
        match (all.pop(), all.is_empty()) {
            (None, _) => {}
            (Some(Filter::Any(parts)), true) => self.any.extend(parts),
            (Some(only), true) => self.any.push(only),
            (Some(last), false) => {
                all.push(last);
                self.any.push(Filter::All(all));
            }
        }
    }

    /// All of it.
    fn close(mut self) -> Option<Filter> {
        self.alternative();
        let last = self.any.pop()?;
        if self.any.is_empty() {
            return Some(last);
        }
        self.any.push(last);
        Some(Filter::Any(self.any))
    }
}

struct Parser<'a> {
    schema: &'a Schema,
    text: &'a str,
    tokens: &'a [Token<'a>],
    at: usize,
    clauses: usize,
}

impl<'a> Parser<'a> {
    fn filter(mut self) -> Result<Option<Filter>, SearchError> {
        // What surrounds what is being read: a list instead of recursion.
        let mut around: Vec<Open> = Vec::new();
        let mut open = Open::default();
        let mut depth = 0;
        while let Some(token) = self.next() {
            if token.is("AND") {
                // As MLflow does, this takes AND for a mere separator, which may be missing or be there twice.
                if open.negations > 0 {
                    return Err(self.refused(&token));
                }
            } else if token.is("OR") {
                if open.all.is_empty() || open.negations > 0 || !self.part_follows() {
                    return Err(self.refused(&token));
                }
                open.alternative();
            } else if token.is("NOT") {
                if !self.part_follows() {
                    return Err(self.refused(&token));
                }
                open.negations += 1;
                depth += usize::from(open.negations == 1);
            } else if token.kind == Kind::Open {
                depth += 1;
                around.push(std::mem::take(&mut open));
            } else if token.kind == Kind::Close {
                let inner = std::mem::take(&mut open);
                open = around.pop().ok_or_else(|| self.refused(&token))?;
                let inner = if inner.negations > 0 { None } else { inner.close() };
                depth -= 1 + usize::from(open.negations > 0);
                open.add(inner.ok_or_else(|| self.refused(&token))?);
            } else {
                let clause = self.clause(token)?;
                depth -= usize::from(open.negations > 0);
                open.add(clause);
            }
            if depth > MAX_NESTING {
                return Err(wording::bound("filter", MAX_NESTING, "nested parentheses and NOT"));
            }
        }
        if around.is_empty() {
            Ok(open.close())
        } else {
            Err(wording::clause(self.schema, self.text, "("))
        }
    }

    fn next(&mut self) -> Option<Token<'a>> {
        let token = self.peek(0)?;
        self.at += 1;
        Some(token)
    }

    fn peek(&self, ahead: usize) -> Option<Token<'a>> {
        self.tokens.get(self.at + ahead).copied()
    }

    /// Whether something can follow here that is negated, or an alternative.
    fn part_follows(&self) -> bool {
        let ends = |token: Token<'_>| token.is("AND") || token.is("OR") || token.kind == Kind::Close;
        self.peek(0).is_some_and(|token| !ends(token))
    }

    fn refused(&self, token: &Token<'_>) -> SearchError {
        // A statement after the first has its own words.
        if token.text == ";" && self.peek(0).is_some() {
            return wording::several(self.schema, self.text);
        }
        wording::clause(self.schema, self.text, token.text)
    }

    /// The clause that starts with a token that was read.
    fn clause(&mut self, first: Token<'a>) -> Result<Filter, SearchError> {
        let compares = self.peek(0).is_some_and(|token| token.kind == Kind::Comparison);
        match first.kind {
            Kind::Path | Kind::Word | Kind::Quoted => {}
            Kind::Text | Kind::Number if compares => return Err(wording::identifier(first.text)),
            // With a stray quote in it, it is anything but a name.
            Kind::Other if compares && !first.text.contains(['"', '`']) => {
                return Err(wording::identifier(first.text));
            }
            _ => return Err(self.refused(&first)),
        }
        let start = self.at;
        let Some((comparator, operator)) = self.operator() else {
            self.at = start;
            return Err(self.refused(&first));
        };
        let written = if matches!(operator, Some(Operator::IsNull | Operator::IsNotNull)) {
            Written::None
        } else {
            self.written(&first, operator)?
        };
        self.clauses += 1;
        if self.clauses > MAX_CLAUSES {
            return Err(wording::bound("filter", MAX_CLAUSES, "clauses"));
        }
        let mut key = String::new();
        let field = field(self.schema, first.text, &mut key, false)?;
        let comparator = self.text.get(comparator).unwrap_or_default().to_uppercase();
        value::clause(self.schema, &field, &comparator, operator, &written).map(Filter::Clause)
    }

    /// Where the operator stands that follows, and which it is; None inside: one that nothing takes. None: there is none.
    fn operator(&mut self) -> Option<(std::ops::Range<usize>, Option<Operator>)> {
        let first = self.next()?;
        let mut end = first.end();
        let mut word = |parser: &mut Self, keyword: &str| {
            let found = parser.peek(0).filter(|token| token.is(keyword));
            if let Some(token) = found {
                parser.at += 1;
                end = token.end();
            }
            found.is_some()
        };
        let operator = if first.kind == Kind::Comparison {
            let known = [
                Operator::Equal,
                Operator::NotEqual,
                Operator::Greater,
                Operator::GreaterOrEqual,
                Operator::Less,
                Operator::LessOrEqual,
            ];
            known.into_iter().find(|operator| operator.as_str() == first.text)
        } else if first.is("LIKE") {
            Some(Operator::Like)
        } else if first.is("ILIKE") {
            Some(Operator::ILike)
        } else if first.is("RLIKE") {
            Some(Operator::RLike)
        } else if first.is("IN") {
            Some(Operator::In)
        } else if first.is("IS") {
            let not = word(self, "NOT");
            if !word(self, "NULL") {
                return None;
            }
            Some(if not { Operator::IsNotNull } else { Operator::IsNull })
        } else if first.is("NOT") {
            if word(self, "IN") {
                Some(Operator::NotIn)
            } else if word(self, "LIKE") || word(self, "ILIKE") || word(self, "RLIKE") {
                None
            } else {
                return None;
            }
        } else {
            return None;
        };
        Some((first.start..end, operator))
    }

    /// The value that follows the operator of the field `first`.
    fn written(&mut self, first: &Token<'a>, operator: Option<Operator>) -> Result<Written<'a>, SearchError> {
        let in_list = matches!(operator, Some(Operator::In | Operator::NotIn));
        let refused = |parser: &Self, end: usize| {
            let clause = parser.text.get(first.start..end).unwrap_or(first.text);
            Err(wording::clause(parser.schema, parser.text, clause))
        };
        let Some(token) = self.next() else {
            return refused(self, self.text.len());
        };
        match token.kind {
            Kind::Open => {
                let from = self.at;
                while let Some(inner) = self.next() {
                    if inner.kind == Kind::Close {
                        let tokens: &'a [Token<'a>] = self.tokens;
                        let inside = tokens.get(from..self.at - 1).unwrap_or_default();
                        let text = self.text.get(token.start..inner.end()).unwrap_or_default();
                        return Ok(Written::List(inside, text));
                    }
                }
                refused(self, self.text.len())
            }
            Kind::Text | Kind::Quoted | Kind::Number | Kind::Word | Kind::Path if !in_list => Ok(Written::One(token)),
            Kind::Other if self.schema.subject == Subject::LoggedModels && !in_list && !token.text.contains('\'') => {
                Ok(Written::One(token))
            }
            _ => refused(self, token.end()),
        }
    }
}

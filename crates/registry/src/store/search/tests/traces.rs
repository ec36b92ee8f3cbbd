use serde_json::json;

use super::*;
use crate::{search::TRACES, store::search::trace_pages::TraceSearch};

/// A span as the tests know it.
pub(super) struct KnownSpan {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) status: &'static str,
    pub(super) start_ns: i64,
    pub(super) duration_ns: Option<i64>,
    model: Option<String>,
    pub(super) cost: Option<f64>,
}

/// What is said of a trace.
pub(super) struct Said {
    pub(super) kind: &'static str,
    pub(super) name: &'static str,
    pub(super) value: serde_json::Value,
    pub(super) is_valid: bool,
    of_session: bool,
}

impl Said {
    pub(super) fn number(&self) -> Option<f64> {
        match &self.value {
            serde_json::Value::Number(number) => number.as_f64(),
            serde_json::Value::Bool(value) => Some(f64::from(u8::from(*value))),
            _ => None,
        }
    }
}

/// A trace as the tests know it.
pub(super) struct KnownTrace {
    pub(super) id: String,
    pub(super) experiment: i64,
    pub(super) timestamp_ms: i64,
    pub(super) execution_time_ms: Option<i64>,
    pub(super) state: &'static str,
    pub(super) name: Option<String>,
    pub(super) session: Option<String>,
    pub(super) tokens: Option<i64>,
    pub(super) tags: BTreeMap<&'static str, String>,
    pub(super) metadata: BTreeMap<&'static str, String>,
    pub(super) spans: Vec<KnownSpan>,
    pub(super) said: Vec<Said>,
    prompts: Vec<String>,
    is_linked: bool,
}

fn known_span(dice: &mut Dice, timestamp_ms: i64) -> KnownSpan {
    KnownSpan {
        name: TEXTS[dice.roll(9) as usize].to_owned(),
        kind: ["LLM", "TOOL", "CHAIN"][dice.roll(3) as usize],
        status: ["OK", "ERROR", "UNSET"][dice.roll(3) as usize],
        start_ns: timestamp_ms * 1_000_000 + dice.roll(5_000_000_000) as i64,
        duration_ns: Some(dice.roll(1 << 33) as i64).filter(|_| dice.roll(5) > 0),
        model: Some(format!("m{}", dice.roll(3))).filter(|_| dice.roll(3) > 0),
        cost: Some(dice.roll(100) as f64 / 8.0).filter(|_| dice.roll(3) > 0),
    }
}

fn known_said(dice: &mut Dice) -> Said {
    let values = [
        json!("a"),
        json!("it's"),
        json!(true),
        json!(3),
        json!(-0.5),
        json!("3"),
    ];
    Said {
        kind: ["feedback", "expectation", "issue"][dice.roll(3) as usize],
        name: ["x", "y"][dice.roll(2) as usize],
        value: values[dice.roll(6) as usize].clone(),
        is_valid: dice.roll(5) > 0,
        of_session: dice.roll(4) == 0,
    }
}

/// Some dozens of traces.
pub(super) fn known_traces() -> Vec<KnownTrace> {
    let mut dice = Dice(11);
    let mut traces = Vec::new();
    for number in 0..80 {
        let dice = &mut dice;
        let text = |dice: &mut Dice| TEXTS[dice.roll(12) as usize].to_owned();
        let timestamp_ms = dice.roll(9) as i64 * 1000 - 3000;
        let mut metadata = BTreeMap::new();
        if dice.roll(3) > 0 {
            metadata.insert("p", text(dice));
        }
        if dice.roll(3) == 0 {
            metadata.insert("mlflow.sourceRun", ["run-1", "run-2"][dice.roll(2) as usize].to_owned());
        }
        traces.push(KnownTrace {
            id: format!("tr-{:04x}{number:02}", dice.roll(1 << 16)),
            experiment: dice.roll(3) as i64,
            timestamp_ms,
            execution_time_ms: Some(dice.roll(2000) as i64).filter(|_| dice.roll(5) > 0),
            state: ["OK", "ERROR", "IN_PROGRESS"][dice.roll(3) as usize],
            name: Some(text(dice)).filter(|_| dice.roll(4) > 0),
            session: Some(format!("s{}", dice.roll(6))).filter(|_| dice.roll(2) > 0),
            tokens: Some(dice.roll(1000) as i64).filter(|_| dice.roll(3) > 0),
            tags: ["k", "a b"]
                .into_iter()
                .filter(|_| dice.roll(3) > 0)
                .collect::<Vec<_>>()
                .into_iter()
                .map(|key| (key, text(dice)))
                .collect(),
            metadata,
            spans: (0..dice.roll(4)).map(|_| known_span(dice, timestamp_ms)).collect(),
            said: (0..dice.roll(3)).map(|_| known_said(dice)).collect(),
            prompts: (0..dice.roll(2)).map(|_| format!("p/{}", dice.roll(3) + 1)).collect(),
            is_linked: dice.roll(6) == 0,
        });
    }
    traces
}

fn or_null<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "NULL".to_owned(), |value| value.to_string())
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The statements that store the traces; another project has one with the id of the first.
pub(super) fn trace_script(traces: &[KnownTrace]) -> String {
    let mut sql = script(&[]);
    let first = quote(&traces[0].id);
    let _ = write!(
        sql,
        "INSERT INTO run (id, project, experiment_id, name, status, lifecycle, start_time, request_digest)
         VALUES ('run-1', 'default', 0, 'a', 'RUNNING', 'active', 0, '');
         INSERT INTO trace (project, id, experiment_id, timestamp_ms, state, name, session_id)
         VALUES ('other', {first}, 9, 0, 'OK', 'a', 's1');
         INSERT INTO trace_tag (project, trace_id, key, value) VALUES ('other', {first}, 'k', 'secret');"
    );
    for trace in traces {
        let id = quote(&trace.id);
        let text = |text: &Option<String>| or_null(text.as_deref().map(quote));
        let _ = write!(
            sql,
            "INSERT INTO trace (project, id, experiment_id, timestamp_ms, execution_time_ms, state, name, session_id,
                                input_tokens)
             VALUES ('default', {id}, {}, {}, {}, '{}', {}, {}, {});",
            trace.experiment,
            trace.timestamp_ms,
            or_null(trace.execution_time_ms),
            trace.state,
            text(&trace.name),
            text(&trace.session),
            or_null(trace.tokens)
        );
        for (table, values) in [("trace_tag", &trace.tags), ("trace_metadata", &trace.metadata)] {
            for (key, value) in values {
                let value = quote(value);
                let _ = write!(
                    sql,
                    "INSERT INTO {table} (project, trace_id, key, value) VALUES ('default', {id}, '{key}', {value});"
                );
            }
        }
        for prompt in &trace.prompts {
            let _ = write!(sql, "INSERT INTO trace_prompt VALUES ('default', {id}, '{prompt}');");
        }
        if trace.is_linked {
            let _ = write!(sql, "INSERT INTO trace_run VALUES ('default', 'run-1', {id});");
        }
        push_parts(&mut sql, trace, &id);
    }
    sql
}

fn push_parts(sql: &mut String, trace: &KnownTrace, id: &str) {
    for (position, span) in trace.spans.iter().enumerate() {
        let model = span
            .model
            .as_ref()
            .map(|model| json!({"model": json!(model).to_string()}));
        let content = quote(&json!({"attributes": model.unwrap_or(json!({}))}).to_string());
        let _ = write!(
            sql,
            "INSERT INTO span (project, trace_id, span_id, experiment_id, name, type, status, start_ns, duration_ns,
                               content, total_cost, model_name)
             VALUES ('default', {id}, '{position:016x}', {}, {}, '{}', '{}', {}, {}, {content}, {}, {});",
            trace.experiment,
            quote(&span.name),
            span.kind,
            span.status,
            span.start_ns,
            or_null(span.duration_ns),
            or_null(span.cost),
            or_null(span.model.as_deref().map(quote))
        );
    }
    for (position, said) in trace.said.iter().enumerate() {
        let metadata = if said.of_session {
            "'{\"mlflow.trace.session\": \"s\"}'"
        } else {
            "NULL"
        };
        let _ = write!(
            sql,
            "INSERT INTO assessment (project, id, trace_id, name, kind, value, created_ms, updated_ms, source_type,
                                     is_valid, metadata, aggregate_value, is_numeric)
             VALUES ('default', 'a-{}-{position}', {id}, '{}', '{}', {}, 0, 0, 'HUMAN', {}, {metadata}, {}, {});",
            trace.id,
            said.name,
            said.kind,
            quote(&said.value.to_string()),
            u8::from(said.is_valid),
            or_null(said.number()),
            u8::from(said.value.is_number())
        );
    }
}

fn optional_holds(text: Option<&String>, clause: &Clause) -> bool {
    match (text, clause.operator) {
        (found, Operator::IsNull) => found.is_none(),
        (None, _) => false,
        (Some(text), _) => text_holds(text, clause),
    }
}

fn span_holds(span: &KnownSpan, clause: &Clause) -> bool {
    match clause.key.as_str() {
        "name" => text_holds(&span.name, clause),
        "type" => text_holds(span.kind, clause),
        "status" => text_holds(span.status, clause),
        "attributes.model" => span.model.as_ref().is_some_and(|model| text_holds(model, clause)),
        "attributes.absent" => false,
        other => panic!("{other}"),
    }
}

fn said_holds(said: &Said, clause: &Clause) -> bool {
    if !said.is_valid || said.kind != clause.entity.as_str() || said.name != clause.key {
        return false;
    }
    let json = said.value.to_string();
    match (clause.operator, &clause.value) {
        (Operator::IsNull | Operator::IsNotNull, _) => true,
        (_, Value::Number(_) | Value::Integer(_)) => {
            said.value.as_f64().is_some_and(|number| number_holds(number, clause))
        }
        (operator @ (Operator::Equal | Operator::NotEqual), Value::Text(text)) => {
            let quoted = json!(text).to_string();
            let is_equal = json == *text || json == quoted;
            is_equal == (operator == Operator::Equal)
        }
        _ => text_holds(&json, clause),
    }
}

/// Whether a filter holds of a trace. What is said of a session counts if it was said in a searched experiment.
fn trace_holds(trace: &KnownTrace, filter: &Filter, searched: &[&KnownTrace]) -> bool {
    let clause = match filter {
        Filter::All(parts) => {
            let of_span = |part: &&Filter| matches!(part, Filter::Clause(clause) if clause.entity == Entity::Span);
            let spans: Vec<&Filter> = parts.iter().filter(of_span).collect();
            let one_span = |span: &KnownSpan| {
                let holds = |part: &&Filter| matches!(part, Filter::Clause(clause) if span_holds(span, clause));
                spans.iter().all(holds)
            };
            let mut others = parts.iter().filter(|part| !of_span(part));
            return (spans.is_empty() || trace.spans.iter().any(one_span))
                && others.all(|part| trace_holds(trace, part, searched));
        }
        Filter::Any(parts) => return parts.iter().any(|part| trace_holds(trace, part, searched)),
        Filter::Not(part) => return !trace_holds(trace, part, searched),
        Filter::Clause(clause) => clause,
    };
    let number = |value: i64| number_holds(value as f64, clause);
    let metadata = |key: &str| optional_holds(trace.metadata.get(key), clause);
    match (clause.entity, clause.key.as_str()) {
        (Entity::Span, _) => trace.spans.iter().any(|span| span_holds(span, clause)),
        (Entity::Tag, key) => optional_holds(trace.tags.get(key), clause),
        (Entity::Metadata, "mlflow.trace.session") => optional_holds(trace.session.as_ref(), clause),
        (Entity::Metadata, key) => metadata(key),
        (Entity::Feedback | Entity::Expectation, _) => {
            let own = trace.said.iter().any(|said| said_holds(said, clause));
            let of_session = searched.iter().any(|other| {
                let mut said = other.said.iter().filter(|said| said.of_session);
                other.session.is_some() && other.session == trace.session && said.any(|said| said_holds(said, clause))
            });
            (own || of_session) != (clause.operator == Operator::IsNull)
        }
        (Entity::Issue, _) => {
            let mut issues = trace.said.iter().filter(|said| said.kind == "issue");
            issues.any(|said| text_holds(said.name, clause))
        }
        (_, "run_id") => {
            let is_linked = trace.is_linked && clause.value == Value::Text("run-1".to_owned());
            metadata("mlflow.sourceRun") || (clause.operator == Operator::Equal && is_linked)
        }
        (_, "prompt") => trace.prompts.iter().any(|prompt| text_holds(prompt, clause)),
        (_, "name") => optional_holds(trace.name.as_ref(), clause),
        (_, "status") => text_holds(trace.state, clause),
        (_, "trace_id") => text_holds(&trace.id, clause),
        (_, "timestamp_ms") => number(trace.timestamp_ms),
        (_, "execution_time_ms") => trace.execution_time_ms.is_some_and(number),
        (_, "end_time_ms") => number(trace.timestamp_ms + trace.execution_time_ms.unwrap_or(0)),
        other => panic!("{other:?}"),
    }
}

/// What is missing comes last, whatever the direction.
fn standing(trace: &KnownTrace, order: &Order) -> (Option<i64>, Option<String>) {
    let text = |value: Option<&String>| (None, value.cloned());
    match (order.entity, order.key.as_str()) {
        (Entity::Tag, key) => text(trace.tags.get(key)),
        (Entity::Metadata, key) => text(trace.metadata.get(key)),
        (_, "name") => text(trace.name.as_ref()),
        (_, "status") => (None, Some(trace.state.to_owned())),
        (_, "trace_id") => text(Some(&trace.id)),
        (_, "execution_time_ms") => (trace.execution_time_ms, None),
        (_, "end_time_ms") => (Some(trace.timestamp_ms + trace.execution_time_ms.unwrap_or(0)), None),
        _ => (Some(trace.timestamp_ms), None),
    }
}

fn expected_traces<'a>(traces: &'a [KnownTrace], search: &TraceSearch) -> Vec<&'a str> {
    let searched: Vec<&KnownTrace> = traces
        .iter()
        .filter(|trace| search.experiment_ids.contains(&trace.experiment))
        .collect();
    let holds = |trace: &&KnownTrace| {
        search
            .filter
            .as_ref()
            .is_none_or(|filter| trace_holds(trace, filter, &searched))
    };
    let mut found: Vec<&KnownTrace> = searched.iter().copied().filter(holds).collect();
    found.sort_by(|left, right| {
        let mut ordering = Ordering::Equal;
        for order in &search.order {
            let (one, other) = (standing(left, order), standing(right, order));
            let is_missing = |(number, text): &(Option<i64>, Option<String>)| number.is_none() && text.is_none();
            let by_value = if order.descending {
                other.cmp(&one)
            } else {
                one.cmp(&other)
            };
            let by_presence = is_missing(&one).cmp(&is_missing(&other));
            ordering = ordering.then(by_presence).then(by_value);
        }
        ordering
            .then_with(|| right.timestamp_ms.cmp(&left.timestamp_ms))
            .then_with(|| left.id.cmp(&right.id))
    });
    found.into_iter().map(|trace| trace.id.as_str()).collect()
}

async fn found_traces(stores: &Stores, search: &TraceSearch) -> Vec<String> {
    let mut search = search.clone();
    let mut ids = Vec::new();
    loop {
        let page = stores.trace_search.search_traces("default", &search).await.unwrap();
        assert!(page.traces.len() <= search.limit as usize);
        ids.extend(page.traces.into_iter().map(|trace| trace.trace_id));
        assert!(ids.len() <= 80, "{search:?}");
        search.token = page.next_token;
        if search.token.is_none() {
            return ids;
        }
    }
}

const FILTERS: &[&str] = &[
    "",
    "name = 'a' OR name LIKE 'a_b'",
    "name IS NULL OR NOT name ILIKE 'A%'",
    "status = 'ERROR' AND timestamp_ms > 0",
    "status IN ('OK', 'IN_PROGRESS') AND execution_time_ms < 1000",
    "NOT execution_time_ms >= 500",
    "end_time_ms <= 1500 AND timestamp_ms != 1000",
    "tags.k = 'a' OR tags.`a b` LIKE '%b'",
    "tags.k IS NULL AND NOT tags.`a b` IS NULL",
    "tags.k != 'a' AND NOT tags.k != 'ab'",
    "tags.k RLIKE '^(?:a|A)' OR tags.`a b` RLIKE '\\bb$'",
    "tags.k = 'secret'",
    "metadata.p IN ('a', 'it''s') OR metadata.p LIKE '%*%'",
    "metadata.`mlflow.trace.session` = 's1'",
    "metadata.`mlflow.trace.session` IS NULL",
    "run_id = 'run-1'",
    "NOT run_id = 'run-2'",
    "run_id != 'run-1'",
    "prompt = 'p/2'",
    "NOT prompt = 'p/1' AND status != 'OK'",
    "span.name = 'a'",
    "span.type = 'LLM' AND span.status = 'ERROR'",
    "NOT (span.type = 'LLM' AND span.name LIKE 'a%') AND status = 'OK'",
    "span.type = 'TOOL' OR span.status = 'UNSET'",
    "span.attributes.model = 'm1'",
    "span.attributes.model RLIKE 'm[02]' AND span.type = 'CHAIN'",
    "NOT span.attributes.model LIKE 'm%'",
    "span.attributes.absent = 'm1'",
    "feedback.x = 'a' OR feedback.y = 'true'",
    "feedback.x != 'a'",
    "feedback.x > 0",
    "expectation.y <= 3 AND NOT expectation.y < 0",
    "feedback.y IS NULL",
    "expectation.x IS NOT NULL AND feedback.x IS NULL",
    "feedback.x LIKE '%it%' OR expectation.x = '3'",
    "issue.id = 'x'",
    "NOT issue.id = 'y'",
];

#[tokio::test]
async fn traces_are_found_in_order_page_by_page() {
    let traces = known_traces();
    let named = format!("trace_id IN ('{}', '{}', 'x')", traces[0].id, traces[5].id);
    let orders: [&[&str]; 8] = [
        &[],
        &["timestamp_ms"],
        &["name DESC", "status"],
        &["execution_time_ms DESC"],
        &["tags.k", "timestamp_ms"],
        &["metadata.p DESC", "trace_id DESC"],
        &["end_time_ms"],
        &["status DESC"],
    ];
    for place in test_databases().await.unwrap() {
        let stores = stores_of(&place, trace_script(&traces)).await;
        for (index, filter) in FILTERS.iter().copied().chain([named.as_str()]).enumerate() {
            for (other, order) in orders.iter().enumerate() {
                let search = TraceSearch {
                    experiment_ids: [vec![0], vec![2, 1, 0], vec![1, 9, 77]][(index + other) % 3].clone(),
                    filter: parse_filter(&TRACES, filter).unwrap(),
                    order: parse_order(&TRACES, order).unwrap(),
                    limit: [7, 2, 40, 500][(index + other) % 4],
                    token: None,
                };
                let found = found_traces(&stores, &search).await;
                let expected = expected_traces(&traces, &search);
                assert_eq!(found, expected, "{}: {filter:?} {order:?} {search:?}", place.name);
            }
        }
    }
}

#[tokio::test]
async fn an_expression_that_a_database_cannot_read_is_refused() {
    for place in test_databases().await.unwrap() {
        let stores = stores_of(&place, trace_script(&known_traces())).await;
        for expression in ["a(?i)b", "(?i:a)", "(?U)a*", "\\x{61}", "a{0,1000}", "[[:word:]]"] {
            let search = TraceSearch {
                experiment_ids: vec![0, 1, 2],
                filter: parse_filter(&TRACES, &format!("name RLIKE '{expression}'")).unwrap(),
                limit: 10,
                ..TraceSearch::default()
            };
            // What SQLite reads, PostgreSQL need not.
            match stores.trace_search.search_traces("default", &search).await {
                Ok(_) => {}
                Err(Error::Request(message)) => assert!(message.contains("RLIKE"), "{message}"),
                Err(other) => panic!("{}: {expression}: {other:?}", place.name),
            }
        }
    }
}

use super::*;

fn short(text: &str) -> String {
    match parse_filter(&TRACES, text) {
        Ok(None) => "everything".to_owned(),
        Ok(Some(filter)) => print(&filter),
        Err(error) => panic!("{text}: {error}"),
    }
}

#[test]
fn filters_of_traces_are_read() {
    let table = [
        ("", "everything"),
        ("status = 'OK'", "attribute.`status` = 'OK'"),
        (
            "trace.status IN ('OK', 'ERROR')",
            "attribute.`status` IN ('OK', 'ERROR')",
        ),
        ("attributes.name LIKE 'a%'", "attribute.`name` LIKE 'a%'"),
        ("request_id = 'tr-1'", "attribute.`trace_id` = 'tr-1'"),
        ("timestamp >= 5", "attribute.`timestamp_ms` >= 5"),
        ("execution_time < 20", "attribute.`execution_time_ms` < 20"),
        ("end_time_ms != 3", "attribute.`end_time_ms` != 3"),
        ("run_id = 'r'", "attribute.`run_id` = 'r'"),
        ("tags.`a b` = 'x'", "tag.`a b` = 'x'"),
        ("tag.k IS NOT NULL", "tag.`k` IS NOT NULL "),
        (
            "metadata.mlflow.trace.session = 's'",
            "request_metadata.`mlflow.trace.session` = 's'",
        ),
        ("request_metadata.k IS NULL", "request_metadata.`k` IS NULL "),
        ("span.type = 'LLM'", "span.`type` = 'LLM'"),
        ("span.attributes.model RLIKE '^a'", "span.`attributes.model` RLIKE '^a'"),
        ("span.attributes.`a b` = 'x'", "span.`attributes.a b` = 'x'"),
        ("span.content LIKE '%x%'", "span.`content` LIKE '%x%'"),
        // The text of a trace is what is in its spans.
        ("trace.text ILIKE '%x%'", "span.`content` ILIKE '%x%'"),
        ("feedback.good = 'true'", "feedback.`good` = 'true'"),
        ("feedback.score > 0.5", "feedback.`score` > 0.5"),
        ("expectation.answer IS NULL", "expectation.`answer` IS NULL "),
        ("issue.id = 'i'", "issue.`id` = 'i'"),
        ("prompt = 'p/1'", "attribute.`prompt` = 'p/1'"),
        (
            "name = 'a' OR NOT span.name = 'b'",
            "(attribute.`name` = 'a') or (NOT (span.`name` = 'b'))",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(short(text), expected, "{text}");
    }
}

#[test]
fn filters_of_traces_are_refused_in_mlflows_words() {
    let table = [
        ("color = 'x'", "Invalid attribute key 'color'"),
        ("color.x = 'y'", "Invalid entity type 'color'"),
        ("status > 'OK'", "Invalid comparator '>' not one of"),
        (
            "timestamp = 'soon'",
            "Expected numeric value type for numeric attribute",
        ),
        ("span.color = 'x'", "Invalid span attribute 'color'"),
        ("span.attributes. = 'x'", "Invalid"),
        ("span.content = 'x'", "span.content comparator '='"),
        ("issue.name = 'x'", "Invalid issue attribute 'name'"),
        ("prompt = 'p'", "Invalid prompts filter value 'p'"),
        ("prompt LIKE 'p/1'", "Invalid comparator 'LIKE' for prompts filter"),
        ("feedback.score > 'x'", "Expected a numeric value for feedback"),
        ("feedback.score = 1", "Expected a quoted string value for feedback"),
        ("name RLIKE '('", "The regular expression for 'name'"),
        ("name RLIKE '\\p{L}'", "The regular expression for 'name'"),
    ];
    for (text, expected) in table {
        let said = refusal(&TRACES, text);
        assert!(said.contains(expected), "{text}: {said}");
    }
}

#[test]
fn traces_are_ordered_by_what_they_have() {
    let read = |terms: &[&str]| {
        let orders = parse_order(&TRACES, terms).unwrap();
        let shown = |order: Order| format!("{}.{} {}", order.entity.as_str(), order.key, order.descending);
        orders.into_iter().map(shown).collect::<Vec<_>>()
    };
    assert_eq!(
        read(&["timestamp DESC", "tags.k"]),
        ["attribute.timestamp_ms true", "tag.k false"]
    );
    assert_eq!(
        read(&["execution_time", "experiment_id"]),
        ["attribute.execution_time_ms false", "attribute.experiment_id false"]
    );
    assert!(parse_order(&TRACES, &["prompt"]).is_err() && parse_order(&TRACES, &["text"]).is_err());
}

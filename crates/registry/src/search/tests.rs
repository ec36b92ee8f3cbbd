mod properties;
mod traces;

use super::*;

/// A filter as a text, with every quote doubled that must be.
fn print(filter: &Filter) -> String {
    let text = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let join = |parts: &[Filter], word: &str| {
        let parts: Vec<String> = parts.iter().map(|part| format!("({})", print(part))).collect();
        parts.join(word)
    };
    match filter {
        Filter::All(parts) => join(parts, " AND "),
        Filter::Any(parts) => join(parts, " or "),
        Filter::Not(part) => format!("NOT ({})", print(part)),
        Filter::Clause(clause) => {
            let key = clause.key.replace('`', "``");
            let value = match &clause.value {
                Value::None => String::new(),
                Value::Integer(number) => number.to_string(),
                Value::Number(number) => number.to_string(),
                Value::Text(value) => text(value),
                Value::Texts(values) => {
                    let values: Vec<String> = values.iter().map(|value| text(value)).collect();
                    format!("({})", values.join(", "))
                }
            };
            format!(
                "{}.`{key}` {} {value}",
                clause.entity.as_str(),
                clause.operator.as_str()
            )
        }
    }
}

/// A filter in a short form for tables.
fn short(text: &str) -> String {
    match parse_filter(&RUNS, text) {
        Ok(None) => "everything".to_owned(),
        Ok(Some(filter)) => print(&filter),
        Err(error) => panic!("{text}: {error}"),
    }
}

fn refusal(schema: &Schema, text: &str) -> String {
    match parse_filter(schema, text) {
        Ok(found) => panic!("{text}: {found:?}"),
        Err(error) => error.into_message(),
    }
}

#[test]
fn what_mlflow_accepts_is_accepted() {
    let table = [
        ("", "everything"),
        ("AND", "everything"),
        ("metrics.m0 > 0.5", "metric.`m0` > 0.5"),
        ("metrics.m0>-1", "metric.`m0` > -1"),
        ("metric.m > -1e-3", "metric.`m` > -0.001"),
        ("metric.m > 1e5", "metric.`m` > 100000"),
        ("metric.m > .5", "metric.`m` > 0.5"),
        ("metric.m > 5.", "metric.`m` > 5"),
        ("metrics.`a b` <= 1", "metric.`a b` <= 1"),
        ("metrics.\"a b\" != 1", "metric.`a b` != 1"),
        ("metrics.a.b >= 1", "metric.`a.b` >= 1"),
        ("params.a = 'x'", "parameter.`a` = 'x'"),
        ("param.a = \"x\"", "parameter.`a` = 'x'"),
        ("parameters.a like 'x%'", "parameter.`a` LIKE 'x%'"),
        ("parameter.a iLike 'x'", "parameter.`a` ILIKE 'x'"),
        ("params.a is null", "parameter.`a` IS NULL "),
        ("params.a Is  Not Null", "parameter.`a` IS NOT NULL "),
        ("params.a = \"it's\"", "parameter.`a` = 'it''s'"),
        ("params.a = 'say \"x\"'", "parameter.`a` = 'say \"x\"'"),
        ("params.a = 'it''s'", "parameter.`a` = 'it''s'"),
        ("params.a = ''", "parameter.`a` = ''"),
        ("params.a = 'a\\'b'", "parameter.`a` = 'a\\''b'"),
        ("params.a = 'C:\\'", "parameter.`a` = 'C:\\'"),
        (
            "params.a='x'AND params.b='y'",
            "(parameter.`a` = 'x') AND (parameter.`b` = 'y')",
        ),
        (
            "params.a = 'x' params.b='y'",
            "(parameter.`a` = 'x') AND (parameter.`b` = 'y')",
        ),
        ("and params.a = 'x' AND AND", "parameter.`a` = 'x'"),
        ("param.order = 'x'", "parameter.`order` = 'x'"),
        ("tags.`mlflow.user` = 'x'", "tag.`mlflow.user` = 'x'"),
        ("tags.mlflow.user = 'x'", "tag.`mlflow.user` = 'x'"),
        ("tag.'a b' = 'x'", "tag.`a b` = 'x'"),
        ("`tags`.a = 'x'", "tag.`a` = 'x'"),
        ("tags.é = 'ü'", "tag.`é` = 'ü'"),
        ("status = 'FINISHED'", "attribute.`status` = 'FINISHED'"),
        ("\"status\" = 'x'", "attribute.`status` = 'x'"),
        (
            "run.status='x' and attr.user_id = 'y'",
            "(attribute.`status` = 'x') AND (attribute.`user_id` = 'y')",
        ),
        (
            "attributes.artifact_uri LIKE 's3%'",
            "attribute.`artifact_uri` LIKE 's3%'",
        ),
        ("`run name` = 'x'", "attribute.`run_name` = 'x'"),
        ("attribute.`Run Name` = 'x'", "attribute.`run_name` = 'x'"),
        ("run_id IN ('a',\"b\",)", "attribute.`run_id` IN ('a', 'b')"),
        ("run_id not  in ('a')", "attribute.`run_id` NOT IN ('a')"),
        ("Created > 1", "attribute.`start_time` > 1"),
        ("end_time <= 1.5", "attribute.`end_time` <= 1.5"),
        ("start_time = -1", "attribute.`start_time` = -1"),
        (
            "start_time < 10000000000000000000000",
            "attribute.`start_time` < 10000000000000000000000",
        ),
        ("dataset.name = 'x'", "dataset.`name` = 'x'"),
        ("datasets.context IN ('a')", "dataset.`context` IN ('a')"),
    ];
    for (text, expected) in table {
        assert_eq!(short(text), expected, "{text}");
    }
}

#[test]
fn more_than_mlflow_accepts() {
    let (a, b, c) = ("parameter.`a` = '1'", "parameter.`b` = '2'", "parameter.`c` = '3'");
    let table = [
        ("params.a = '1' OR params.b = '2'", format!("({a}) or ({b})")),
        (
            "params.a = '1' OR params.b = '2' AND params.c = '3'",
            format!("({a}) or (({b}) AND ({c}))"),
        ),
        (
            "(params.a = '1' or params.b = '2') and params.c = '3'",
            format!("(({a}) or ({b})) AND ({c})"),
        ),
        ("((params.a = '1'))", a.to_owned()),
        (
            "NOT params.a = '1' AND params.b = '2'",
            format!("(NOT ({a})) AND ({b})"),
        ),
        (
            "not (params.a = '1' and params.b = '2')",
            format!("NOT (({a}) AND ({b}))"),
        ),
        ("NOT NOT params.a = '1'", a.to_owned()),
        ("NOT (NOT params.a = '1')", a.to_owned()),
        (
            "(params.a = '1' AND params.b = '2') params.c = '3'",
            format!("({a}) AND ({b}) AND ({c})"),
        ),
        ("params.a IN ('1', '2')", "parameter.`a` IN ('1', '2')".to_owned()),
        ("tags.a NOT IN ('it''s')", "tag.`a` NOT IN ('it''s')".to_owned()),
        ("status IN ('FAILED')", "attribute.`status` IN ('FAILED')".to_owned()),
        ("tags.`a``b` = 'x'", "tag.`a``b` = 'x'".to_owned()),
    ];
    for (text, expected) in table {
        assert_eq!(short(text), expected, "{text}");
    }
}

#[test]
fn what_mlflow_refuses_is_refused_in_its_words() {
    let clause = "Invalid clause(s) in filter string: ";
    let identifier = "Invalid comparison clause. Expected 'Identifier' found ";
    let quoted = "Parameter value is either not quoted or unidentified quote types used for string value ";
    let table = [
        (" ", "Invalid filter ' '. Could not be parsed."),
        ("metrics.m > '0'", "Expected numeric value type for metric. Found '0'"),
        ("metrics.m = NaN", "Expected numeric value type for metric. Found NaN"),
        ("metrics.m > inf", "Expected numeric value type for metric. Found inf"),
        ("metrics.m > +1", clause),
        ("metrics.m > 0x10", clause),
        ("metrics.m == 1", "Invalid comparator '==' not one of "),
        ("metrics.m <> 1", "Invalid comparator '<>' not one of "),
        (
            "metrics.m LIKE 'a'",
            "Expected numeric value type for metric. Found 'a'",
        ),
        ("metrics.m IN (1)", "Expected numeric value type for metric. Found (1)"),
        ("metrics.m BETWEEN 1 AND 2", clause),
        ("metrics.m > 1 > 2", clause),
        ("metrics.m ! = 1", clause),
        ("metrics.0 > 1", identifier),
        ("0.7 > metrics.m", identifier),
        ("1=1", identifier),
        ("params.a = x", quoted),
        ("params.a = `x`", quoted),
        ("params.a = params.b", quoted),
        (
            "params.a = 1",
            "Expected a quoted string value for parameter (e.g. 'my-value'). Got value 1",
        ),
        ("params.a > 'x'", "Invalid comparator '>' not one of "),
        ("params.a rlike 'x'", "Invalid comparator 'RLIKE' not one of "),
        ("params.a NOT LIKE 'x'", "Invalid comparator 'NOT LIKE' not one of "),
        ("params.a = ('x')", "Expected a quoted string value for parameter"),
        (
            "params.a IN ()",
            "While parsing a list in the query, expected a non-empty list of string values, but got empty",
        ),
        (
            "tags.a IN (1, 2)",
            "While parsing a list in the query, expected string value, punctuation, or whitespace, but got different \
             type in list: (1, 2)",
        ),
        (
            "run_id IN ('a' 'b')",
            "While parsing a list in the query, expected a non-empty list of string values, but got ill",
        ),
        ("run_id IN (('a'))", "While parsing a list in the query"),
        ("run_id IN 'a'", clause),
        ("run_id IN ('a'", clause),
        ("run_id IN ('a'))", "Invalid clause(s) in filter string: ')'"),
        ("run_id > 'a'", "Invalid comparator '>' not one of "),
        (
            "run_id IS NULL",
            "IS NULL / IS NOT NULL is only supported for tags and params, not for 'attribute' 'run_id'",
        ),
        (
            "start_time IS NOT NULL",
            "IS NULL / IS NOT NULL is only supported for tags and params",
        ),
        (
            "tags.a-b = 'x'",
            "Invalid comparison clause. Expected 'Identifier' found 'tags.a-b'",
        ),
        ("'status' = 'x'", identifier),
        ("\"tags\".a='x'", "Invalid entity type '\"tags\"'. Valid values are "),
        (
            "TAGS.a='x'",
            "Invalid entity type 'TAGS'. Valid values are ['metric', 'parameter', 'tag', 'attribute', 'dataset']",
        ),
        ("foo.bar = 'x'", "Invalid entity type 'foo'"),
        ("foo = 'x'", "Invalid attribute key 'foo' specified. Valid keys are "),
        ("Status = 'x'", "Invalid attribute key 'Status' specified"),
        (
            "status = 1",
            "Expected a quoted string value for attributes. Got value 1",
        ),
        (
            "start_time > '1'",
            "Expected numeric value type for numeric attribute: start_time. Found '1'",
        ),
        ("start_time LIKE 1", "Invalid comparator 'LIKE' not one of "),
        (
            "dataset.foo = 'x'",
            "Invalid dataset key 'foo' specified. Valid keys are ",
        ),
        (
            "dataset.name = 1",
            "Expected a quoted string value for dataset attributes. Got value 1",
        ),
        ("params.a", clause),
        ("params.a =", clause),
        ("params.a = 'x", clause),
        ("params.a = x'", clause),
        ("params.'a = x", clause),
        ("`param.a = 'x'", clause),
        ("param`.a != 1", clause),
        ("tags.`a = 'x'", clause),
        ("attribute.status IS 'RUNNING'", clause),
        ("params.a LR !=", clause),
        ("hello world", "Invalid clause(s) in filter string: 'hello'"),
        (
            "params.a = 'x', params.b='y'",
            "Invalid clause(s) in filter string: ','",
        ),
        ("params.a = 'x';", "Invalid clause(s) in filter string: ';'"),
        (
            "params.a = 'x'; params.b = 'y'",
            "Search filter contained multiple expression \"params.a = 'x'; params.b = 'y'\".",
        ),
        ("params.a='x' -- c", clause),
        ("params.a = 'x' && params.b='y'", clause),
        ("params.a = '\0'", clause),
    ];
    for (text, expected) in table {
        let message = refusal(&RUNS, text);
        assert!(message.starts_with(expected), "{text}: {message}");
    }
}

#[test]
fn what_is_more_than_mlflow_can_be_wrong_too() {
    for text in [
        "OR",
        "NOT",
        "()",
        "(",
        ")",
        "(params.a = 'x'",
        "params.a = 'x' OR",
        "OR params.a = 'x'",
        "params.a = 'x' OR OR params.b = 'y'",
        "params.a = 'x' OR AND params.b = 'y'",
        "params.a = 'x' NOT",
        "NOT AND params.a = 'x'",
        "NOT ()",
        "(NOT) params.a = 'x'",
        "params.a NOT = 'x'",
        "params.a IS NOT 'x'",
    ] {
        let message = refusal(&RUNS, text);
        assert!(
            message.starts_with("Invalid clause(s) in filter string: "),
            "{text}: {message}"
        );
    }
}

#[test]
fn everything_is_bounded() {
    let many = |count: usize, text: &str, join: &str| vec![text; count].join(join);
    let clauses = |count| many(count, "params.a = 'x'", " OR ");
    assert!(parse_filter(&RUNS, &clauses(MAX_CLAUSES)).is_ok());
    assert!(refusal(&RUNS, &clauses(MAX_CLAUSES + 1)).contains("256 clauses"));
    let nested = |count: usize| format!("{}params.a = 'x'{}", "(".repeat(count), ")".repeat(count));
    assert!(parse_filter(&RUNS, &nested(MAX_NESTING)).is_ok());
    assert!(refusal(&RUNS, &nested(MAX_NESTING + 1)).contains("32 nested"));
    let negated = |count: usize| {
        let inner = "NOT (params.b = 'y' OR ".repeat(count);
        format!("{inner}params.a = 'x'{}", ")".repeat(count))
    };
    assert!(parse_filter(&RUNS, &negated(MAX_NESTING / 2)).is_ok());
    assert!(refusal(&RUNS, &negated(MAX_NESTING)).contains("32 nested"));
    // A long row of NOTs is one, and opens nothing.
    assert!(parse_filter(&RUNS, &format!("{}params.a = 'x'", "NOT ".repeat(10_000))).is_ok());
    let list = |count| format!("run_id IN ({})", many(count, "'a'", ","));
    assert!(parse_filter(&RUNS, &list(MAX_LIST)).is_ok());
    assert!(refusal(&RUNS, &list(MAX_LIST + 1)).contains("2000 values"));
    assert!(refusal(&RUNS, &"(".repeat(MAX_FILTER_BYTES + 1)).contains("65536 bytes"));
    assert!(refusal(&RUNS, &"(".repeat(MAX_FILTER_BYTES)).contains("32 nested"));
    let pattern = |pattern: &str| format!("params.a LIKE '{pattern}'");
    assert!(parse_filter(&RUNS, &pattern(&"%".repeat(MAX_WILDCARDS))).is_ok());
    assert!(refusal(&RUNS, &pattern(&"%".repeat(MAX_WILDCARDS + 1))).contains("too complex"));
    assert!(refusal(&RUNS, &pattern(&"_".repeat(MAX_PATTERN_BYTES + 1))).contains("too complex"));
    assert!(refusal(&RUNS, &"x".repeat(5000)).len() < 300);
}

#[test]
fn each_subject_has_its_fields_and_words() {
    let accepted = [
        (&EXPERIMENTS, "name ilike 'a%' AND tags.x IS NULL"),
        (
            &EXPERIMENTS,
            "experiment_id IN ('1', '2') OR attribute.creation_time > 5",
        ),
        (&EXPERIMENTS, "experiment_id != '1' AND last_update_time <= -3"),
        (
            &REGISTERED_MODELS,
            "name IN ('a') AND tag.`mlflow.prompt.is_prompt` = 'true'",
        ),
        (&MODEL_VERSIONS, "name = 'a' and version_number > 3 and run_id IN ('r')"),
        (&MODEL_VERSIONS, "version_number = '3' OR source_path LIKE 's3%'"),
        (
            &EVALUATION_DATASETS,
            "name IN ('a') AND created_time >= 5 AND (created_by = 'x' OR tags.a IS NULL)",
        ),
        (&LOGGED_MODELS, "metrics.loss > 0.1 AND params.lr = 0.01"),
        (
            &LOGGED_MODELS,
            "attributes.model_type IN ('a') AND creation_time > 1.5 AND tags.a = x",
        ),
    ];
    for (schema, text) in accepted {
        assert!(matches!(parse_filter(schema, text), Ok(Some(_))), "{text}");
    }
    let refused = [
        (
            &EVALUATION_DATASETS,
            "colour = 'x'",
            "Invalid attribute key 'colour' specified. Valid keys are: {'name', ",
        ),
        (
            &EVALUATION_DATASETS,
            "params.x = 'y'",
            "Invalid identifier token 'params' specified",
        ),
        (
            &EVALUATION_DATASETS,
            "name > 'y'",
            "Invalid comparator for string attribute: >",
        ),
        (
            &EXPERIMENTS,
            "experiment_id > '1'",
            "Invalid comparator for experiment_id: >",
        ),
        (
            &EXPERIMENTS,
            "experiment_id LIKE '1'",
            "Invalid comparator for experiment_id: LIKE",
        ),
        (
            &EXPERIMENTS,
            "experiment_id = 'x'",
            "Invalid experiment ID 'x'. Experiment ID must be a valid integer.",
        ),
        (
            &EXPERIMENTS,
            "metrics.a > 1",
            "Invalid entity type 'metrics'. Valid entity types are ('attribute', 'tag', 'tags')",
        ),
        (
            &EXPERIMENTS,
            "creation_time > 1.5",
            "Invalid value for numeric attribute 'creation_time': '1.5'",
        ),
        (
            &EXPERIMENTS,
            "creation_time > '1'",
            "Expected numeric value type for numeric attribute: creation_time. Found '1'",
        ),
        (&EXPERIMENTS, "name > 'a'", "Invalid comparator '>' not one of "),
        (&EXPERIMENTS, "tags.a > 'a'", "Invalid comparator for tag: >"),
        (
            &EXPERIMENTS,
            "name IS NULL",
            "IS NULL / IS NOT NULL is only supported for tags, not for attribute 'name'",
        ),
        (
            &EXPERIMENTS,
            "name = 'x' foo",
            "Invalid clause(s) in filter string: foo",
        ),
        (&REGISTERED_MODELS, "name > 'a'", "Invalid comparator for attribute: >"),
        (
            &REGISTERED_MODELS,
            "name = 1",
            "Expected a quoted string value or a list of quoted string values for attributes.",
        ),
        (
            &REGISTERED_MODELS,
            "timestamp > 1",
            "Invalid attribute key 'timestamp' specified",
        ),
        (
            &MODEL_VERSIONS,
            "version_number LIKE '1'",
            "Invalid comparator for attribute version_number: LIKE",
        ),
        (
            &MODEL_VERSIONS,
            "version_number = 'x'",
            "Invalid value for numeric attribute 'version_number': ",
        ),
        (
            &MODEL_VERSIONS,
            "version_number = 1.5",
            "Invalid value for numeric attribute 'version_number': ",
        ),
        (&MODEL_VERSIONS, "name = 1", "Only the '{'version_number', "),
        (
            &LOGGED_MODELS,
            "tag.a = 'x'",
            "Invalid entity type: 'tag'. Expected one of [",
        ),
        (
            &LOGGED_MODELS,
            "params.a > 'x'",
            "Invalid comparison operator for params.a: '>'. Expected one of (",
        ),
        (
            &LOGGED_MODELS,
            "metrics.a LIKE 1",
            "Invalid comparison operator for metrics.a: 'LIKE'. Expected one of (",
        ),
        (
            &LOGGED_MODELS,
            "foo",
            "Invalid filter string: 'foo'. Expected a list of comparisons separated by 'AND' ",
        ),
    ];
    for (schema, text, expected) in refused {
        let message = refusal(schema, text);
        assert!(message.starts_with(expected), "{text}: {message}");
    }
}

#[test]
fn orders_are_read() {
    let shown = |schema: &Schema, text: &str| match parse_order(schema, &[text]) {
        Err(error) => error.into_message(),
        Ok(orders) => {
            let order = &orders[0];
            let direction = if order.descending { "down" } else { "up" };
            format!("{} {} {direction}", order.entity.as_str(), order.key)
        }
    };
    let table = [
        (&RUNS, "metrics.m", "metric m up"),
        (&RUNS, "metrics.`a b`  desc", "metric a b down"),
        (&RUNS, "metrics.\"x\" ASC", "metric x up"),
        (&RUNS, "metrics.a.b DESC", "metric a.b down"),
        (&RUNS, "params.p DESC", "parameter p down"),
        (&RUNS, "tags.t", "tag t up"),
        (&RUNS, "Created DESC", "attribute start_time down"),
        (&RUNS, "attribute.`start_time`", "attribute start_time up"),
        (&RUNS, "run_name", "attribute run_name up"),
        (
            &RUNS,
            "`run name`",
            "Invalid attribute key 'run name' specified. Valid keys are ",
        ),
        (&RUNS, "Run name", "Invalid ordering key in order_by clause 'Run name'."),
        (&RUNS, "dataset.name", "Invalid identifier type 'dataset'"),
        (&RUNS, "foo.bar", "Invalid entity type 'foo'. Valid values are "),
        (
            &RUNS,
            "metrics.m up",
            "Invalid ordering key in order_by clause 'metrics.m up'.",
        ),
        (
            &RUNS,
            "metrics.m DESC foo",
            "Invalid order_by clause 'metrics.m DESC foo'. Could not be parsed.",
        ),
        (&RUNS, "metrics.m, metrics.n", "Invalid order_by clause"),
        (&RUNS, "", "Invalid order_by clause ''. Could not be parsed."),
        (&RUNS, " metrics.m", "Invalid order_by clause ' metrics.m'"),
        (&RUNS, "metrics.m ", "Invalid order_by clause"),
        (&RUNS, "metrics.a-b", "Invalid order_by clause"),
        (&RUNS, "metrics.1", "Invalid order_by clause"),
        (&RUNS, "`metrics.a ASC", "Invalid order_by clause"),
        (&RUNS, "DESC", "Invalid order_by clause"),
        (&EXPERIMENTS, "experiment_id DESC", "attribute experiment_id down"),
        (&EXPERIMENTS, "tags.a", "Invalid order_by entity: tag"),
        (
            &EVALUATION_DATASETS,
            "last_update_time DESC",
            "attribute last_update_time down",
        ),
        (&EVALUATION_DATASETS, "tags.a", "Invalid order_by entity: tag"),
        (
            &EVALUATION_DATASETS,
            "created_by",
            "Invalid attribute key 'created_by' specified",
        ),
        (
            &REGISTERED_MODELS,
            "timestamp DESC",
            "attribute last_updated_timestamp down",
        ),
        (
            &REGISTERED_MODELS,
            "tags.a",
            "Invalid order by key 'tags.a' specified. Valid keys are ",
        ),
        (&MODEL_VERSIONS, "version_number DESC", "attribute version_number down"),
        (&MODEL_VERSIONS, "run_id", "Invalid attribute key 'run_id' specified"),
    ];
    for (schema, text, expected) in table {
        let found = shown(schema, text);
        assert!(found.starts_with(expected), "{text}: {found}");
    }
    assert_eq!(parse_order(&RUNS, &["created", "start_time DESC"]).unwrap().len(), 1);
    assert!(parse_order(&RUNS, &["metrics.m"; MAX_ORDER + 1]).is_err());
    let order = parse_logged_model_order("metrics.a b.c", true).unwrap();
    assert_eq!(
        (order.entity, order.key.as_str(), order.descending),
        (Entity::Metric, "a b.c", true)
    );
    assert_eq!(
        parse_logged_model_order("creation_time", false).unwrap().key,
        "creation_timestamp"
    );
    let message = parse_logged_model_order("params.a", true).unwrap_err().into_message();
    assert_eq!(
        message,
        "Invalid order by field name: params, only `metrics.<name>` is allowed."
    );
}

#[test]
fn only_what_must_hold_is_required() {
    let keys = |text: &str| {
        let filter = parse_filter(&RUNS, text).unwrap().unwrap();
        let keys: Vec<String> = filter.required().map(|clause| clause.key.clone()).collect();
        keys.join(" ")
    };
    assert_eq!(keys("params.a = 'x'"), "a");
    assert_eq!(
        keys("params.a = 'x' AND (params.b = 'x' OR params.c = 'x') AND (tags.d = 'x' AND tags.e = 'y')"),
        "a d e"
    );
    assert_eq!(keys("params.a = 'x' OR params.b = 'y'"), "");
    assert_eq!(keys("NOT params.a = 'x'"), "");
}

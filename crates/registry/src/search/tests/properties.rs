use proptest::prelude::*;

use super::{super::*, print};

fn clauses() -> impl Strategy<Value = Filter> {
    let key = "[a-zA-Z0-9 _./'\"`é-]{1,8}";
    let text = "[a-z%_'\"\\(\\), ]{0,6}[a-z]";
    let texts = prop::collection::vec(text, 1..4).prop_map(Value::Texts);
    let number = (-1e9..1e9).prop_map(Value::Number);
    let of = |entity: Entity, operators: &'static [Operator]| (Just(entity), prop::sample::select(operators));
    let comparisons = fields::NUMBERS;
    let with_text = &[Operator::Equal, Operator::NotEqual, Operator::Like, Operator::ILike][..];
    let lists = &[Operator::In, Operator::NotIn][..];
    let null = &[Operator::IsNull, Operator::IsNotNull][..];
    prop_oneof![
        (of(Entity::Metric, comparisons), key, number),
        (of(Entity::Param, with_text), key, text.prop_map(Value::Text)),
        (of(Entity::Tag, lists), key, texts),
        (of(Entity::Tag, null), key, Just(Value::None)),
        (
            of(Entity::Attribute, comparisons),
            Just("end_time".to_owned()),
            any::<i64>().prop_map(Value::Integer)
        ),
        (
            of(Entity::Dataset, with_text),
            Just("digest".to_owned()),
            text.prop_map(Value::Text)
        ),
    ]
    .prop_map(|((entity, operator), key, value)| {
        Filter::Clause(Clause {
            entity,
            key,
            operator,
            value,
        })
    })
}

fn filters() -> impl Strategy<Value = Filter> {
    // As the parser builds them: no `All` in an `All`, no `Any` in an `Any`, no `Not` in a `Not`.
    clauses().prop_recursive(4, 24, 4, |inner| {
        let parts = prop::collection::vec(inner.clone(), 2..4);
        prop_oneof![
            parts.clone().prop_map(|parts| {
                let flat = parts.into_iter().flat_map(|part| match part {
                    Filter::All(parts) => parts,
                    part => vec![part],
                });
                Filter::All(flat.collect())
            }),
            parts.prop_map(|parts| {
                let flat = parts.into_iter().flat_map(|part| match part {
                    Filter::Any(parts) => parts,
                    part => vec![part],
                });
                Filter::Any(flat.collect())
            }),
            inner.prop_map(|part| match part {
                Filter::Not(part) => *part,
                part => Filter::Not(Box::new(part)),
            }),
        ]
    })
}

proptest! {
    #[test]
    fn printed_filters_are_read_as_they_were(filter in filters()) {
        let text = print(&filter);
        prop_assert_eq!(parse_filter(&RUNS, &text), Ok(Some(filter)), "{}", text);
    }

    #[test]
    fn no_text_makes_it_fail(text in "[a-z.=<>!'\"`\\\\() ,ANDORTIN;0-9é-]{0,60}") {
        for schema in [&RUNS, &EXPERIMENTS, &REGISTERED_MODELS, &MODEL_VERSIONS, &LOGGED_MODELS] {
            let _ = parse_filter(schema, &text);
            let _ = parse_order(schema, &[&text]);
        }
    }

    #[test]
    fn words_in_any_order_make_it_not_fail(words in prop::collection::vec(prop::sample::select(vec![
        "AND", "or", "NOT", "(", ")", "IN", "IS", "NULL", "params.a", "metrics.b", "=", ">", "'x'", "1", ",", "LIKE", "status",
    ]), 0..24)) {
        if let Ok(Some(filter)) = parse_filter(&RUNS, &words.join(" ")) {
            let text = print(&filter);
            prop_assert_eq!(parse_filter(&RUNS, &text), Ok(Some(filter)), "{}", text);
        }
    }
}

//! Patterns in which `*` stands for any text, for claims.

/// Whether a text is as the pattern wants it. In linear steps for each star, whatever the text: a token cannot make it slow.
pub(super) fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        // No star at all.
        return rest.is_empty();
    };
    for part in parts {
        let Some(place) = rest.find(part) else {
            return false;
        };
        rest = rest.get(place + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("*", "x"),
            ("a", "a"),
            ("acme/*", "acme/"),
            ("acme/*", "acme/models"),
            ("system:serviceaccount:prod:*", "system:serviceaccount:prod:trainer"),
            ("*:prod:*", "a:prod:b"),
            ("a*b*c", "a-b-b-c"),
            ("a**c", "ac"),
            ("*ab", "aab"),
        ] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "x"),
            ("a", "ab"),
            ("a", "ba"),
            ("acme/*", "acme"),
            ("acme/*", "evil/acme/models"),
            ("a*a", "a"),
            ("a*b*c", "a-c-b"),
            ("*ab", "aba"),
            ("ACME/*", "acme/x"),
        ] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn a_text_with_parts_replaced_by_stars_fits(parts in prop::collection::vec("[ab*]{0,4}", 1..6)) {
            let text = parts.concat().replace('*', "-");
            let pattern: String = parts.iter().enumerate()
                .map(|(index, part)| if index % 2 == 0 { part.replace('*', "-") } else { "*".to_owned() })
                .collect();
            prop_assert!(fits(&pattern, &text));
            prop_assert!(!fits(&pattern.replace('*', "x"), "y"));
        }
    }
}

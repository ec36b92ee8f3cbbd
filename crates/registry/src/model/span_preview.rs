//! The beginning of what went into a trace and came out of it: of a chat its last message, else the value.

use super::json::Json;

/// The longest preview, in characters.
const MAX_PREVIEW_CHARS: usize = 1000;
/// How deep a request may be in a request.
const MAX_REQUESTS: usize = 8;

fn is_message(value: &Json) -> bool {
    value.get("role").is_some() && value.get("content").is_some()
}

fn messages_in<'a>(value: &'a Json, key: &str) -> Option<Vec<&'a Json>> {
    match value.get(key) {
        Some(Json::List(items)) if !items.is_empty() => Some(items.iter().filter(|item| is_message(item)).collect()),
        _ => None,
    }
}

/// The messages of a chat, in the forms that the interfaces of language models have.
fn messages(value: &Json, depth: usize) -> Option<Vec<&Json>> {
    if let Some(found) = messages_in(value, "messages") {
        return Some(found);
    }
    if let Some(Json::List(choices)) = value.get("choices")
        && let Some(message) = choices.first().and_then(|choice| choice.get("message"))
        && is_message(message)
    {
        return Some(vec![message]);
    }
    messages_in(value, "input")
        .or_else(|| messages_in(value, "output"))
        .or_else(|| messages(value.get("request").filter(|_| depth > 0)?, depth.saturating_sub(1)))
}

fn content(message: &Json) -> Option<&str> {
    match message.get("content")? {
        Json::Text(text) => Some(text),
        Json::List(parts) => parts.iter().find_map(|part| match part {
            Json::Text(text) => Some(text.as_str()),
            part if matches!(part.get("type").and_then(Json::as_text), Some("text" | "output_text")) => {
                part.get("text").and_then(Json::as_text)
            }
            _ => None,
        }),
        _ => None,
    }
}

/// The preview of a value that is JSON.
pub(crate) fn preview(value: &str, role: &str) -> String {
    let parsed = Json::parse(value);
    let found = parsed.as_ref().and_then(|parsed| messages(parsed, MAX_REQUESTS));
    let message = found.as_ref().and_then(|found| {
        let of_role = found
            .iter()
            .rev()
            .find(|message| message.get("role").and_then(Json::as_text) == Some(role));
        of_role.or_else(|| found.last())
    });
    let text = message
        .and_then(|message| content(message))
        .filter(|text| !text.is_empty())
        .unwrap_or(value);
    let letters = || {
        text.chars()
            .map(|letter| if letter == '\0' { '\u{fffd}' } else { letter })
    };
    if text.chars().nth(MAX_PREVIEW_CHARS).is_none() {
        return letters().collect();
    }
    letters().take(MAX_PREVIEW_CHARS - 3).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_chat_the_last_message_is_shown() {
        for (value, role, expected) in [
            (r#"{"x": 1}"#, "user", r#"{"x": 1}"#),
            (
                r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
                "user",
                "a",
            ),
            (
                r#"{"choices": [{"message": {"role": "assistant", "content": [{"type": "text", "text": "c"}]}}]}"#,
                "assistant",
                "c",
            ),
            (
                r#"{"request": {"input": [{"role": "system", "content": "d"}]}}"#,
                "user",
                "d",
            ),
            (
                r#"{"messages": [{"role": "user", "content": ""}]}"#,
                "user",
                r#"{"messages": [{"role": "user", "content": ""}]}"#,
            ),
            ("no json", "user", "no json"),
        ] {
            assert_eq!(preview(value, role), expected);
        }
        let long = preview(&"ü".repeat(1001), "user");
        assert_eq!(long.chars().count(), 1000);
        assert!(long.ends_with("ü..."));
        assert_eq!(preview(&"x".repeat(1000), "user"), "x".repeat(1000));
    }
}

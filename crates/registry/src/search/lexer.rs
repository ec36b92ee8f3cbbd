//! From text to tokens.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A word, or a path of words: `metrics.accuracy`, tags."a b".
    Path,
    /// A path without quotes and points: it may be a keyword.
    Word,
    /// `"text"` or `` `text` `` that stands alone: a field, and in double quotes perhaps a text.
    Quoted,
    /// `'text'`
    Text,
    /// A number.
    Number,
    /// Characters of comparisons.
    Comparison,
    /// `(`
    Open,
    /// `)`
    Close,
    /// `,`
    Comma,
    /// Something that has no place in a filter.
    Other,
}

/// A token and the bytes that it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    /// Where it starts.
    pub(super) start: usize,
}

impl Token<'_> {
    /// Whether it is this keyword, which is written in any case.
    pub(super) fn is(&self, keyword: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(keyword)
    }

    /// Where it ends.
    pub(super) const fn end(&self) -> usize {
        self.start + self.text.len()
    }
}

/// The tokens of a text.
pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let Some(first) = rest.chars().next() else {
            return tokens;
        };
        let start = text.len() - rest.len();
        let (kind, length) = token(rest, first);
        let (text, after) = rest.split_at(length);
        tokens.push(Token { kind, text, start });
        rest = after;
    }
}

/// The kind and length of the first token of a text.
fn token(rest: &str, first: char) -> (Kind, usize) {
    match first {
        '\'' => quoted(rest, first).map_or((Kind::Other, rest.len()), |length| (Kind::Text, length)),
        '"' | '`' => match quoted(rest, first) {
            // What is left of a text whose quote is never closed.
            None => (Kind::Other, rest.len()),
            Some(length) => match path(rest, length) {
                Some(end) => (Kind::Path, end),
                None => (Kind::Quoted, length),
            },
        },
        '(' => (Kind::Open, 1),
        ')' => (Kind::Close, 1),
        ',' => (Kind::Comma, 1),
        '<' | '>' | '=' | '!' | '~' => (Kind::Comparison, length_while(rest, |c| "<>=!~".contains(c))),
        _ if starts_word(first) => {
            let length = length_while(rest, continues_word);
            let (kind, end) = match path(rest, length) {
                Some(end) => (Kind::Path, end),
                None => (Kind::Word, length),
            };
            compound(rest, kind, end)
        }
        _ => match number(rest) {
            Some(length) => (Kind::Number, length),
            None => (Kind::Other, first.len_utf8()),
        },
    }
}

/// A path is one token up to where nothing of a name can follow: `tags.a-b` is to be named as a whole when it is refused.
fn compound(rest: &str, kind: Kind, end: usize) -> (Kind, usize) {
    let more = rest.get(end..).unwrap_or_default();
    let glued = |c: char| matches!(c, '-' | '/' | ':' | '%' | '+' | '@' | '.' | '`' | '"') || continues_word(c);
    let length = length_while(more, glued);
    if length == 0 {
        (kind, end)
    } else {
        (Kind::Other, end + length)
    }
}

/// Where a path ends whose first part has this length; None: it has one part.
fn path(text: &str, first: usize) -> Option<usize> {
    let mut end = first;
    while let Some(part) = text.get(end..).and_then(|rest| rest.strip_prefix('.')) {
        let length = match part.chars().next() {
            // Single quotes after an entity are taken for a key, as MLflow takes them.
            Some(quote @ ('`' | '"' | '\'')) => quoted(part, quote),
            Some(first) if starts_word(first) => Some(length_while(part, continues_word)),
            _ => None,
        };
        match length {
            Some(length) => end += 1 + length,
            None => break,
        }
    }
    (end > first).then_some(end)
}

/// The length of a quoted text with its quotes; None: it is not closed.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let bytes = text.as_bytes();
    let quote = quote as u8;
    let mut at = 1;
    // A quote after a backslash belongs to the text, except where nothing else could close it: 'C:\'.
    let mut escaped = None;
    while let Some(&byte) = bytes.get(at) {
        let next = bytes.get(at + 1);
        if byte == b'\\' && quote != b'`' && next == Some(&quote) {
            escaped = Some(at + 2);
            at += 2;
        } else if byte != quote {
            at += 1;
        } else if next == Some(&quote) {
            at += 2;
        } else {
            return Some(at + 1);
        }
    }
    escaped
}

/// What stands between the quotes of a quoted text, a doubled quote being one. Other texts stay as they are.
pub(super) fn unquoted(text: &str) -> String {
    for (quote, doubled) in [("'", "''"), ("\"", "\"\""), ("`", "``")] {
        let inner = text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
        if let Some(inner) = inner {
            return inner.replace(doubled, quote);
        }
    }
    text.to_owned()
}

/// The length of the number that a text starts with.
fn number(text: &str) -> Option<usize> {
    let digits = |from: usize| length_while(text.get(from..).unwrap_or_default(), |c| c.is_ascii_digit());
    let mut end = usize::from(text.starts_with('-'));
    let whole = digits(end);
    end += whole;
    let mut fraction = 0;
    if text.get(end..)?.starts_with('.') {
        fraction = digits(end + 1);
        if whole + fraction > 0 {
            end += 1 + fraction;
        }
    }
    if whole + fraction == 0 {
        return None;
    }
    if text.get(end..)?.starts_with(['e', 'E']) {
        let sign = usize::from(text.get(end + 1..)?.starts_with(['+', '-']));
        let exponent = digits(end + 1 + sign);
        if exponent > 0 {
            end += 1 + sign + exponent;
        }
    }
    let follows = text.get(end..)?.chars().next();
    (!follows.is_some_and(|c| continues_word(c) || c == '.')).then_some(end)
}

fn starts_word(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

fn continues_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$' | '#')
}

fn length_while(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

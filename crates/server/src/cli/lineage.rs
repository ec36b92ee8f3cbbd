//! `lineage`, and `models alias`: where things come from, and what was in production at a time.

use std::{collections::BTreeSet, fmt::Write as _};

use anyhow::bail;
use clap::{Args, ValueEnum};
use reqwest::Method;
use serde_json::Value;

use super::{
    ConnectionArguments, UsageError,
    client::Level,
    output::{self, Column, Format, column, text_at},
};

/// The changes of an alias in a list.
const CHANGES: &[Column] = &[
    column("at", |item| text_at(item, &["/at"])),
    column("version", |item| match item.pointer("/version") {
        Some(Value::Null) | None => "removed".to_owned(),
        Some(_) => text_at(item, &["/version"]),
    }),
    column("before", |item| text_at(item, &["/previous_version"])),
    column("by", |item| text_at(item, &["/changed_by"])),
];

/// Which way lineage is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// To what it was made from
    Upstream,
    /// To what was made from it
    Downstream,
    /// Each way by itself
    Both,
}

impl Direction {
    const fn word(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Downstream => "downstream",
            Self::Both => "both",
        }
    }

    /// The ways with what is written above each, upstream being true.
    const fn ways(self) -> &'static [(bool, &'static str)] {
        match self {
            Self::Upstream => &[(true, "upstream")],
            Self::Downstream => &[(false, "downstream")],
            Self::Both => &[(true, "upstream"), (false, "downstream")],
        }
    }
}

/// What `lineage` takes.
#[derive(Args)]
pub struct LineageArguments {
    /// `run/ID`, `model/NAME/VERSION`, `model/NAME@ALIAS`, `logged-model/ID`, `dataset/NAME/VERSION`,
    /// `dataset-input/NAME/DIGEST`, `endpoint/NAME`, `experiment/ID`, `pipeline-run/ID` or
    /// `prediction/ENDPOINT/MODEL/VERSION`
    object: String,
    /// Which way
    #[arg(long, value_enum, default_value_t = Direction::Both)]
    direction: Direction,
    /// How many edges far, 1 to 50 [default: 10]
    #[arg(long)]
    depth: Option<u32>,
    #[command(flatten)]
    connection: ConnectionArguments,
}

/// What `models alias` takes.
#[derive(Args)]
pub struct AliasArguments {
    /// MODEL@ALIAS
    alias: String,
    /// Where it pointed at this time, `2026-03-01T12:00:00Z` for example; all its changes without it
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    #[command(flatten)]
    connection: ConnectionArguments,
}

/// Prints the lineage of an object.
pub async fn lineage(arguments: &LineageArguments) -> anyhow::Result<()> {
    let client = arguments.connection.client()?;
    let direction = arguments.direction;
    let mut request = client
        .project_request(Method::GET, &["lineage"])?
        .query(&[("of", arguments.object.as_str()), ("direction", direction.word())]);
    if let Some(depth) = arguments.depth {
        request = request.query(&[("depth", depth)]);
    }
    let answer = client.send(request).await?;
    match arguments.connection.server.output {
        Format::Json => output::print_json(&answer),
        Format::Text => {
            output::print_line(&tree(&answer, direction))?;
            if answer.get("truncated").and_then(Value::as_bool) == Some(true) {
                let bounds = text_at(&answer, &["/truncated_by"]);
                output::hint(&format!(
                    "there is more: the answer was cut off by its bound of {bounds}"
                ));
            }
            if answer.get("hidden").and_then(Value::as_bool) == Some(true) {
                output::hint("something was left out that you may not see");
            }
            Ok(())
        }
    }
}

/// Prints where an alias pointed at a time, or all its changes.
pub async fn alias(arguments: &AliasArguments) -> anyhow::Result<()> {
    let Some((model, alias)) = arguments.alias.rsplit_once('@') else {
        bail!(UsageError(format!(
            "`{}` is no alias: write MODEL@ALIAS",
            arguments.alias
        )));
    };
    let client = arguments.connection.client()?;
    let format = arguments.connection.server.output;
    let Some(time) = &arguments.at else {
        let path = ["models", model, "aliases", alias, "history"];
        let changes = client.list_at(Level::Project, &path, &[], None).await?;
        return output::print_list(&changes, CHANGES, format);
    };
    let request = client.project_request(Method::GET, &["models", model, "aliases", alias, "at"])?;
    let answer = client.send(request.query(&[("time", time)])).await?;
    match format {
        Format::Json => output::print_json(&answer),
        Format::Text => output::print_line(&held(model, &answer)),
    }
}

/// Where an alias pointed, for people.
fn held(model: &str, answer: &Value) -> String {
    let target = match answer.pointer("/version") {
        Some(Value::Number(version)) => format!("{model}/{version}"),
        _ => "nothing: it had been removed".to_owned(),
    };
    let until = match answer.pointer("/until") {
        Some(Value::String(until)) => format!("{until}, by {}", text_at(answer, &["/ended_by"])),
        _ => "now".to_owned(),
    };
    output::facts(&[
        ("pointed at", target),
        (
            "since",
            format!(
                "{}, by {}",
                text_at(answer, &["/since"]),
                text_at(answer, &["/changed_by"])
            ),
        ),
        ("until", until),
    ])
}

/// The text of a field.
fn field<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    answer.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A line about an object.
fn line(answer: &Value, id: &str) -> String {
    let node = items(answer, "nodes").iter().find(|node| field(node, "id") == id);
    let name = node.map(|node| field(node, "name")).unwrap_or_default();
    let state = node.map(|node| field(node, "state")).unwrap_or_default();
    let mut line = id.to_owned();
    if !name.is_empty() && !id.contains(name) {
        let _ = write!(line, " {name}");
    }
    if !state.is_empty() {
        let _ = write!(line, " ({state})");
    }
    line
}

/// The graph as a tree from the object. What comes a second time is not followed again.
fn tree(answer: &Value, direction: Direction) -> String {
    let root = field(answer, "of");
    let mut lines = vec![line(answer, root)];
    for (upstream, title) in direction.ways() {
        if direction == Direction::Both {
            lines.push(format!("{title}:"));
        }
        let before = lines.len();
        let mut shown = BTreeSet::from([root.to_owned()]);
        branches(answer, *upstream, root, "", &mut shown, &mut lines);
        if lines.len() == before {
            lines.push("└─ nothing".to_owned());
        }
    }
    lines.join("\n")
}

/// Writes what is one edge from an object, and below each what is further. The server bounds how deep this goes.
fn branches(
    answer: &Value,
    upstream: bool,
    of: &str,
    indent: &str,
    shown: &mut BTreeSet<String>,
    lines: &mut Vec<String>,
) {
    let (near, far) = if upstream { ("to", "from") } else { ("from", "to") };
    let edges: Vec<&Value> = items(answer, "edges")
        .iter()
        .filter(|edge| field(edge, near) == of)
        .collect();
    for (position, edge) in edges.iter().enumerate() {
        let is_last = position + 1 == edges.len();
        let (corner, below) = if is_last {
            ("└─", "   ")
        } else {
            ("├─", "│  ")
        };
        let id = field(edge, far);
        let is_new = shown.insert(id.to_owned());
        let relation = field(edge, "relation").replace('_', " ");
        let detail = match field(edge, "detail") {
            "" => String::new(),
            detail => format!(" [{detail}]"),
        };
        let again = if is_new { "" } else { " …" };
        lines.push(format!(
            "{indent}{corner} {relation}{detail}: {}{again}",
            line(answer, id)
        ));
        if is_new {
            branches(answer, upstream, id, &format!("{indent}{below}"), shown, lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_graph_is_printed_as_a_tree() {
        let node = |id: &str, name: &str, state: Value| json!({"id": id, "name": name, "state": state});
        let edge = |from: &str, to: &str, relation: &str, detail: Value| json!({"from": from, "to": to, "relation": relation, "detail": detail});
        let answer = json!({
            "of": "model/m/2",
            "nodes": [node("model/m/2", "m", json!("READY")), node("run/r", "bold-owl", json!("FINISHED")),
                      node("dataset/d/1", "d", Value::Null), node("endpoint/e", "e", Value::Null)],
            "edges": [edge("dataset/d/1", "run/r", "trained_on", json!("training")),
                      edge("dataset/d/1", "model/m/2", "trained_on", Value::Null),
                      edge("run/r", "model/m/2", "produced_by", Value::Null),
                      edge("model/m/2", "endpoint/e", "serves", json!("live m@champion")),
                      edge("endpoint/e", "model/m/2", "serves", Value::Null)],
        });
        let upstream = "model/m/2 (READY)
├─ trained on: dataset/d/1
├─ produced by: run/r bold-owl (FINISHED)
│  └─ trained on [training]: dataset/d/1 …
└─ serves: endpoint/e
   └─ serves [live m@champion]: model/m/2 (READY) …";
        // No endpoint leads back to a version; if one did, that would end.
        assert_eq!(tree(&answer, Direction::Upstream), upstream);
        let downstream = tree(&answer, Direction::Downstream);
        assert_eq!(
            downstream,
            "model/m/2 (READY)\n└─ serves [live m@champion]: endpoint/e\n   └─ serves: model/m/2 (READY) …"
        );
    }

    #[test]
    fn who_had_an_alias_where_is_said() {
        let answer = json!({"version": 3, "since": "t1", "changed_by": "user:a", "until": "t2", "ended_by": "user:b"});
        assert_eq!(
            held("m", &answer),
            "pointed at  m/3\nsince       t1, by user:a\nuntil       t2, by user:b"
        );
        let answer = json!({"version": null, "since": "t1", "changed_by": "user:a", "until": null, "ended_by": null});
        assert!(held("m", &answer).contains("removed") && held("m", &answer).ends_with("now"));
    }
}

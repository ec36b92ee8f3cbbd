//! Attributes as other conventions name them, told in MLflow's names: types, inputs and outputs, tokens, models.

use std::collections::HashMap;

use super::{
    json::Json,
    span::{CHAT_USAGE, INPUTS, MODEL, MODEL_PROVIDER, NO_TYPE, OUTPUTS, SPAN_TYPE},
};

/// The attributes of a span in their order; each value is JSON.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes {
    ordered: Vec<(String, String)>,
    places: HashMap<String, usize>,
}

impl Attributes {
    /// The text of an attribute.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        let (_, value) = self.ordered.get(*self.places.get(key)?)?;
        Some(value)
    }

    /// The value of an attribute.
    pub(crate) fn value(&self, key: &str) -> Option<Json> {
        self.get(key)
            .map(|text| Json::parse(text).unwrap_or_else(|| Json::Text(text.to_owned())))
    }

    /// Sets an attribute.
    pub(crate) fn set(&mut self, key: &str, value: String) {
        let place = self.places.get(key).copied();
        if let Some((_, before)) = place.and_then(|place| self.ordered.get_mut(place)) {
            *before = value;
        } else {
            self.places.insert(key.to_owned(), self.ordered.len());
            self.ordered.push((key.to_owned(), value));
        }
    }

    /// All.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.ordered.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The first of some attributes whose value is something.
    fn first(&self, keys: &[&str]) -> Option<&str> {
        keys.iter().find_map(|key| {
            let text = self.get(key)?;
            Json::parse(text)
                .is_none_or(|value| value.is_something())
                .then_some(text)
        })
    }

    fn count(&self, key: &str) -> Option<i64> {
        match self.value(key)? {
            Json::Integer(count) => Some(count),
            Json::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }
}

/// How a convention names things.
struct Convention {
    kind: &'static str,
    kinds: &'static [(&'static str, &'static str)],
    input_tokens: &'static str,
    output_tokens: &'static str,
    total_tokens: &'static str,
    cache_read: &'static str,
    cache_creation: &'static [&'static str],
    inputs: &'static [&'static str],
    outputs: &'static [&'static str],
    models: &'static [&'static str],
    provider: &'static str,
}

const NOTHING: Convention = Convention {
    kind: "",
    kinds: &[],
    input_tokens: "",
    output_tokens: "",
    total_tokens: "",
    cache_read: "",
    cache_creation: &[],
    inputs: &[],
    outputs: &[],
    models: &[],
    provider: "",
};

const OPEN_INFERENCE: Convention = Convention {
    kind: "openinference.span.kind",
    kinds: &[
        ("TOOL", "TOOL"),
        ("CHAIN", "CHAIN"),
        ("LLM", "LLM"),
        ("RETRIEVER", "RETRIEVER"),
        ("EMBEDDING", "EMBEDDING"),
        ("AGENT", "AGENT"),
        ("RERANKER", "RERANKER"),
        ("UNKNOWN", NO_TYPE),
        ("GUARDRAIL", "GUARDRAIL"),
        ("EVALUATOR", "EVALUATOR"),
    ],
    input_tokens: "llm.token_count.prompt",
    output_tokens: "llm.token_count.completion",
    total_tokens: "llm.token_count.total",
    cache_read: "llm.token_count.prompt_details.cache_read",
    cache_creation: &["llm.token_count.prompt_details.cache_write"],
    inputs: &["input.value"],
    outputs: &["output.value"],
    models: &[
        "llm.response.model_name",
        "llm.model_name",
        "llm.request.model_name",
        "embedding.model_name",
    ],
    provider: "llm.provider",
};

const GEN_AI: Convention = Convention {
    kind: "gen_ai.operation.name",
    kinds: &[
        ("chat", "CHAT_MODEL"),
        ("create_agent", "AGENT"),
        ("embeddings", "EMBEDDING"),
        ("execute_tool", "TOOL"),
        ("generate_content", "LLM"),
        ("invoke_agent", "AGENT"),
        ("text_completion", "LLM"),
        ("response", "LLM"),
    ],
    input_tokens: "gen_ai.usage.input_tokens",
    output_tokens: "gen_ai.usage.output_tokens",
    cache_read: "gen_ai.usage.cache_read.input_tokens",
    cache_creation: &[
        "gen_ai.usage.cache_write.input_tokens",
        "gen_ai.usage.cache_creation.input_tokens",
    ],
    inputs: &["gen_ai.input.messages", "gen_ai.tool.call.arguments"],
    outputs: &["gen_ai.output.messages", "gen_ai.tool.call.result"],
    models: &["gen_ai.response.model", "gen_ai.request.model"],
    provider: "gen_ai.provider.name",
    ..NOTHING
};

const TRACELOOP: Convention = Convention {
    kind: "traceloop.span.kind",
    kinds: &[
        ("workflow", "WORKFLOW"),
        ("task", "TASK"),
        ("agent", "AGENT"),
        ("tool", "TOOL"),
        ("unknown", NO_TYPE),
    ],
    input_tokens: "gen_ai.usage.prompt_tokens",
    output_tokens: "gen_ai.usage.completion_tokens",
    total_tokens: "llm.usage.total_tokens",
    inputs: &["traceloop.entity.input"],
    outputs: &["traceloop.entity.output"],
    provider: "gen_ai.system",
    ..NOTHING
};

const GOOGLE_ADK: Convention = Convention {
    inputs: &["gcp.vertex.agent.llm_request", "gcp.vertex.agent.tool_call_args"],
    outputs: &["gcp.vertex.agent.llm_response", "gcp.vertex.agent.tool_response"],
    ..NOTHING
};

const VERCEL_AI: Convention = Convention {
    kind: "ai.operationId",
    kinds: &[
        ("ai.generateText", "LLM"),
        ("ai.generateText.doGenerate", "LLM"),
        ("ai.toolCall", "TOOL"),
        ("ai.streamText", "LLM"),
        ("ai.streamText.doStream", "LLM"),
        ("ai.generateObject", "LLM"),
        ("ai.generateObject.doGenerate", "LLM"),
        ("ai.streamObject", "LLM"),
        ("ai.streamObject.doStream", "LLM"),
        ("ai.embed", "EMBEDDING"),
        ("ai.embed.doEmbed", "EMBEDDING"),
        ("ai.embedMany", "EMBEDDING"),
    ],
    inputs: &["ai.prompt", "ai.toolCall.args", "ai.value", "ai.values"],
    outputs: &[
        "ai.response.text",
        "ai.toolCall.result",
        "ai.response.object",
        "ai.embedding",
        "ai.embeddings",
    ],
    ..NOTHING
};

const LAMINAR: Convention = Convention {
    kind: "lmnr.span.type",
    kinds: &[
        ("LLM", "LLM"),
        ("TOOL", "TOOL"),
        ("DEFAULT", "CHAIN"),
        ("PIPELINE", "CHAIN"),
        ("EXECUTOR", "AGENT"),
        ("EVALUATOR", "EVALUATOR"),
        ("HUMAN_EVALUATOR", "EVALUATOR"),
        ("EVALUATION", "EVALUATOR"),
        ("CACHED", "LLM"),
    ],
    inputs: &["lmnr.span.input"],
    outputs: &["lmnr.span.output"],
    ..NOTHING
};

const LANGFUSE: Convention = Convention {
    kind: "langfuse.observation.type",
    kinds: &[
        ("generation", "LLM"),
        ("embedding", "EMBEDDING"),
        ("tool", "TOOL"),
        ("retriever", "RETRIEVER"),
        ("agent", "AGENT"),
        ("chain", "CHAIN"),
        ("evaluator", "EVALUATOR"),
        ("guardrail", "GUARDRAIL"),
        ("span", NO_TYPE),
    ],
    inputs: &["langfuse.observation.input"],
    outputs: &["langfuse.observation.output"],
    ..NOTHING
};

/// The conventions; what the first of them tells counts.
const CONVENTIONS: [&Convention; 7] = [
    &OPEN_INFERENCE,
    &GEN_AI,
    &TRACELOOP,
    &GOOGLE_ADK,
    &VERCEL_AI,
    &LAMINAR,
    &LANGFUSE,
];

fn kind(attributes: &Attributes) -> Option<&'static str> {
    CONVENTIONS.iter().find_map(|convention| {
        let value = attributes.value(convention.kind)?;
        let word = value.as_text()?;
        let found = convention.kinds.iter().find(|(theirs, _)| *theirs == word);
        found.map(|(_, ours)| *ours)
    })
}

fn usage(attributes: &Attributes) -> Option<Json> {
    CONVENTIONS.iter().find_map(|convention| {
        let input = attributes.count(convention.input_tokens);
        let output = attributes.count(convention.output_tokens);
        let both = input.zip(output).map(|(input, output)| input.saturating_add(output));
        let total = attributes.count(convention.total_tokens).or(both);
        let created = convention.cache_creation.iter().find_map(|key| attributes.count(key));
        input.or(output).or(total)?;
        let counts = [
            ("input_tokens", input),
            ("output_tokens", output),
            ("total_tokens", total),
            ("cache_read_input_tokens", attributes.count(convention.cache_read)),
            ("cache_creation_input_tokens", created),
        ];
        let counts = counts
            .into_iter()
            .filter_map(|(key, count)| Some((key.to_owned(), Json::Integer(count?))));
        Some(Json::Object(counts.collect()))
    })
}

/// The model: where a convention tells it, or in what went in or came out.
fn model(attributes: &Attributes) -> Option<Json> {
    let told = CONVENTIONS
        .iter()
        .find_map(|convention| attributes.first(convention.models));
    if let Some(told) = told {
        return Some(Json::parse(told).unwrap_or_else(|| Json::Text(told.to_owned())));
    }
    [INPUTS, OUTPUTS].into_iter().find_map(|key| {
        let value = attributes.value(key)?;
        let model = value.get("model").filter(|model| model.is_something())?;
        model.as_text().map(|model| Json::Text(model.to_owned()))
    })
}

/// Under which names a convention tells something.
type Keys = fn(&Convention) -> &'static [&'static str];

/// Adds what other conventions tell.
pub(crate) fn translate(attributes: &mut Attributes) {
    let has_type = attributes
        .value(SPAN_TYPE)
        .is_some_and(|value| value != Json::Null && value.as_text() != Some(NO_TYPE));
    if !has_type && let Some(kind) = kind(attributes) {
        attributes.set(SPAN_TYPE, Json::Text(kind.to_owned()).dump());
    }
    let texts: [(&str, Keys); 2] = [
        (INPUTS, |convention| convention.inputs),
        (OUTPUTS, |convention| convention.outputs),
    ];
    for (key, keys) in texts {
        if attributes.get(key).is_none() {
            let told = CONVENTIONS
                .iter()
                .find_map(|convention| attributes.first(keys(convention)));
            if let Some(told) = told.map(str::to_owned) {
                attributes.set(key, told);
            }
        }
    }
    if attributes.get(CHAT_USAGE).is_none()
        && let Some(usage) = usage(attributes)
    {
        attributes.set(CHAT_USAGE, usage.dump());
    }
    if attributes.get(MODEL).is_none()
        && let Some(model) = model(attributes)
    {
        attributes.set(MODEL, model.dump());
    }
    if attributes.get(MODEL_PROVIDER).is_none() {
        let told = CONVENTIONS
            .iter()
            .find_map(|convention| attributes.first(&[convention.provider]));
        if let Some(told) = told {
            let told = Json::parse(told).unwrap_or_else(|| Json::Text(told.to_owned())).dump();
            attributes.set(MODEL_PROVIDER, told);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(told: &[(&str, &str)]) -> Attributes {
        let mut attributes = Attributes::default();
        for (key, value) in told {
            attributes.set(key, (*value).to_owned());
        }
        translate(&mut attributes);
        attributes
    }

    #[test]
    fn conventions_are_told_in_mlflows_names() {
        let found = translated(&[
            ("gen_ai.operation.name", "\"chat\""),
            ("gen_ai.usage.input_tokens", "3"),
            ("gen_ai.usage.output_tokens", "\"4\""),
            ("gen_ai.request.model", "\"m\""),
            ("gen_ai.provider.name", "\"p\""),
            ("gen_ai.input.messages", "[]"),
            ("gen_ai.tool.call.arguments", "{\"a\": 1}"),
        ]);
        assert_eq!(found.get(SPAN_TYPE), Some("\"CHAT_MODEL\""));
        assert_eq!(
            found.get(CHAT_USAGE),
            Some(r#"{"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}"#)
        );
        assert_eq!(
            (found.get(MODEL), found.get(MODEL_PROVIDER)),
            (Some("\"m\""), Some("\"p\""))
        );
        assert_eq!((found.get(INPUTS), found.get(OUTPUTS)), (Some("{\"a\": 1}"), None));
    }

    #[test]
    fn what_mlflow_told_stays() {
        let found = translated(&[
            (SPAN_TYPE, "\"TOOL\""),
            ("openinference.span.kind", "\"LLM\""),
            (INPUTS, "{\"model\": \"x\"}"),
            ("input.value", "\"other\""),
        ]);
        assert_eq!(found.get(SPAN_TYPE), Some("\"TOOL\""));
        assert_eq!(found.get(INPUTS), Some("{\"model\": \"x\"}"));
        assert_eq!(found.get(MODEL), Some("\"x\""));
        assert_eq!(found.get(CHAT_USAGE), None);
        let unknown = translated(&[(SPAN_TYPE, "\"UNKNOWN\""), ("openinference.span.kind", "\"LLM\"")]);
        assert_eq!(unknown.get(SPAN_TYPE), Some("\"LLM\""));
    }
}

-- Traces, as MLflow's protocol tells of them. A client chooses the id of a trace: it is one within its project, so that nobody
-- learns of another project's ids.

CREATE TABLE trace (
    project TEXT NOT NULL REFERENCES project (name),
    -- As its client named it, mostly tr- and 32 hexadecimal digits.
    id TEXT NOT NULL,
    experiment_id BIGINT NOT NULL REFERENCES experiment (id) ON DELETE CASCADE,
    -- When it began, in milliseconds since the epoch, as MLflow has it.
    timestamp_ms BIGINT NOT NULL,
    -- How long it took; none: it has not ended.
    execution_time_ms BIGINT,
    -- STATE_UNSPECIFIED, OK, ERROR, IN_PROGRESS
    state TEXT NOT NULL,
    client_request_id TEXT,
    request_preview TEXT,
    response_preview TEXT,
    -- The tag mlflow.traceName, which is here and not in trace_tag.
    name TEXT,
    -- The metadata mlflow.trace.session, mlflow.trace.tokenUsage and mlflow.trace.cost, which are here and not in
    -- trace_metadata.
    session_id TEXT,
    input_tokens BIGINT,
    output_tokens BIGINT,
    total_tokens BIGINT,
    cache_read_input_tokens BIGINT,
    cache_creation_input_tokens BIGINT,
    cache_creation_input_tokens_above_1hr BIGINT,
    input_cost DOUBLE PRECISION,
    output_cost DOUBLE PRECISION,
    total_cost DOUBLE PRECISION,
    PRIMARY KEY (project, id)
);
CREATE INDEX trace_experiment ON trace (experiment_id, timestamp_ms, id);
CREATE INDEX trace_session ON trace (experiment_id, session_id) WHERE session_id IS NOT NULL;

CREATE TABLE trace_tag (
    project TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (project, trace_id, key),
    FOREIGN KEY (project, trace_id) REFERENCES trace (project, id) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE trace_metadata (
    project TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (project, trace_id, key),
    FOREIGN KEY (project, trace_id) REFERENCES trace (project, id) ON DELETE CASCADE
) WITHOUT ROWID;
-- The traces that a run made. An index here takes values of any length.
CREATE INDEX trace_metadata_run ON trace_metadata (project, value) WHERE key = 'mlflow.sourceRun';

CREATE TABLE span (
    project TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    -- 16 hexadecimal digits.
    span_id TEXT NOT NULL,
    -- That of the trace.
    experiment_id BIGINT NOT NULL,
    -- None: a root.
    parent_id TEXT,
    name TEXT NOT NULL,
    -- The attribute mlflow.spanType, such as LLM; UNKNOWN where there is none.
    type TEXT NOT NULL,
    -- UNSET, OK, ERROR
    status TEXT NOT NULL,
    start_ns BIGINT NOT NULL,
    -- None: it has not ended.
    end_ns BIGINT,
    duration_ns BIGINT,
    -- The span as MLflow's clients store it: JSON with attributes, whose values are JSON in texts, events, links.
    content TEXT NOT NULL,
    -- The attribute mlflow.chat.tokenUsage: a JSON object.
    token_usage TEXT,
    -- Of the attributes mlflow.llm.cost, mlflow.llm.model and mlflow.llm.provider.
    input_cost DOUBLE PRECISION,
    output_cost DOUBLE PRECISION,
    total_cost DOUBLE PRECISION,
    model_name TEXT,
    model_provider TEXT,
    PRIMARY KEY (project, trace_id, span_id),
    FOREIGN KEY (project, trace_id) REFERENCES trace (project, id) ON DELETE CASCADE
);
CREATE INDEX span_cost ON span (experiment_id, start_ns)
WHERE input_cost IS NOT NULL OR output_cost IS NOT NULL OR total_cost IS NOT NULL;

CREATE TABLE assessment (
    project TEXT NOT NULL,
    -- a- and 32 hexadecimal digits.
    id TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    name TEXT NOT NULL,
    -- feedback, expectation, issue; the name of an issue is its id, and its value {"issue_name": ".."}.
    kind TEXT NOT NULL,
    -- JSON.
    value TEXT NOT NULL,
    -- JSON: error_code, error_message, stack_trace.
    error TEXT,
    created_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL,
    -- HUMAN, LLM_JUDGE, CODE
    source_type TEXT NOT NULL,
    source_id TEXT,
    run_id TEXT,
    span_id TEXT,
    rationale TEXT,
    -- The assessment that this one replaces, which is not valid any more.
    overrides TEXT,
    -- 0, 1
    is_valid BIGINT NOT NULL,
    -- A JSON object of texts.
    metadata TEXT,
    -- The value as a number for aggregates: true, yes are 1, false, no are 0.
    aggregate_value DOUBLE PRECISION,
    -- 0, 1: whether the value is a number itself.
    is_numeric BIGINT NOT NULL,
    PRIMARY KEY (project, id),
    FOREIGN KEY (project, trace_id) REFERENCES trace (project, id) ON DELETE CASCADE
);
CREATE INDEX assessment_trace ON assessment (project, trace_id, created_ms);

-- Traces that belong to a run beyond those that it made. A link may come before its trace.
CREATE TABLE trace_run (
    project TEXT NOT NULL REFERENCES project (name),
    run_id TEXT NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    trace_id TEXT NOT NULL,
    PRIMARY KEY (run_id, trace_id)
) WITHOUT ROWID;
CREATE INDEX trace_run_trace ON trace_run (project, trace_id);

-- Versions of prompts that a trace used.
CREATE TABLE trace_prompt (
    project TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    -- NAME/VERSION
    prompt TEXT NOT NULL,
    PRIMARY KEY (project, trace_id, prompt),
    FOREIGN KEY (project, trace_id) REFERENCES trace (project, id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX trace_prompt_prompt ON trace_prompt (project, prompt);

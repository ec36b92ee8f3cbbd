-- What MLflow's protocol tells of experiments and runs beyond the first tables.

-- Empty: the server's own artifact store.
ALTER TABLE experiment ADD COLUMN artifact_location TEXT NOT NULL DEFAULT '';

CREATE TABLE experiment_tag (
    experiment_id BIGINT NOT NULL REFERENCES experiment (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (experiment_id, key)
);

-- Whoever the client says made the run; who it was, the audit chain knows.
ALTER TABLE run ADD COLUMN user_id TEXT NOT NULL DEFAULT '';
ALTER TABLE run ADD COLUMN deleted_at BIGINT;

-- The experiment stands beside the latest values so that one index gives the best runs of an experiment in order.
ALTER TABLE run_metric_latest ADD COLUMN experiment_id BIGINT NOT NULL DEFAULT 0;
UPDATE run_metric_latest SET experiment_id = (SELECT experiment_id FROM run WHERE run.id = run_metric_latest.run_id);
CREATE INDEX run_metric_latest_value ON run_metric_latest (experiment_id, key, is_nan, value, run_id);

-- For charts, which take some steps of many.
CREATE INDEX run_metric_step ON run_metric (run_id, key, step);

-- Datasets that clients describe themselves. Dataset versions of this server are in run_input.
CREATE TABLE run_dataset (
    run_id TEXT NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    position BIGINT NOT NULL,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    -- What it was read for, such as training; empty: it was not said.
    context TEXT NOT NULL,
    source_type TEXT NOT NULL,
    source TEXT NOT NULL,
    schema TEXT,
    profile TEXT,
    -- [["key", "value"]]
    tags TEXT NOT NULL,
    PRIMARY KEY (run_id, position),
    UNIQUE (run_id, name, digest, context)
);

-- Logged models that a run read or made.
CREATE TABLE run_model (
    run_id TEXT NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    -- input, output
    role TEXT NOT NULL,
    model_id TEXT NOT NULL,
    step BIGINT NOT NULL,
    PRIMARY KEY (run_id, role, model_id)
);
CREATE INDEX run_model_id ON run_model (model_id);

CREATE TABLE logged_model (
    -- m- and 32 hexadecimal digits.
    id TEXT PRIMARY KEY,
    project TEXT NOT NULL REFERENCES project (name),
    experiment_id BIGINT NOT NULL REFERENCES experiment (id),
    name TEXT NOT NULL,
    model_type TEXT NOT NULL,
    -- PENDING, READY, UPLOAD_FAILED
    status TEXT NOT NULL,
    source_run_id TEXT,
    -- active, deleted
    lifecycle TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX logged_model_experiment ON logged_model (experiment_id, created_at DESC, id DESC);
CREATE INDEX logged_model_run ON logged_model (source_run_id) WHERE source_run_id IS NOT NULL;

CREATE TABLE logged_model_param (
    model_id TEXT NOT NULL REFERENCES logged_model (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (model_id, key)
);

CREATE TABLE logged_model_tag (
    model_id TEXT NOT NULL REFERENCES logged_model (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (model_id, key)
);

-- Metrics of runs that were measured on a model, perhaps on a dataset; empty: on none that was said.
CREATE TABLE logged_model_metric (
    model_id TEXT NOT NULL REFERENCES logged_model (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    run_id TEXT NOT NULL,
    dataset_name TEXT NOT NULL,
    dataset_digest TEXT NOT NULL,
    timestamp BIGINT NOT NULL,
    step BIGINT NOT NULL,
    value DOUBLE PRECISION NOT NULL,
    is_nan BIGINT NOT NULL,
    PRIMARY KEY (model_id, key, run_id, dataset_name, dataset_digest, timestamp, step, value, is_nan)
);

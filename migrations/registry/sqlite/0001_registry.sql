-- Times are microseconds since the epoch. JSON is text.

-- Numbers that only grow. `revision` counts the changes that others follow; who changes something raises it first, and so
-- holds its row until the commit: revisions appear in the order of their numbers, without gaps.
CREATE TABLE counter (
    name TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counter (name, value) VALUES ('revision', 1), ('experiment', 0);

CREATE TABLE project (
    name TEXT PRIMARY KEY,
    created_at BIGINT NOT NULL
);
INSERT INTO project (name, created_at) VALUES ('default', 0);

-- What happened, for those who follow. The cursor is the revision.
CREATE TABLE event (
    revision BIGINT PRIMARY KEY,
    project TEXT NOT NULL REFERENCES project (name),
    kind TEXT NOT NULL,
    -- What it happened to, as JSON.
    subject TEXT NOT NULL,
    at BIGINT NOT NULL
);
CREATE INDEX event_project ON event (project, revision);
CREATE INDEX event_at ON event (at);

-- Experiments and runs.

CREATE TABLE experiment (
    -- Written as a decimal text outside.
    id BIGINT PRIMARY KEY,
    project TEXT NOT NULL REFERENCES project (name),
    name TEXT NOT NULL,
    -- active, deleted
    lifecycle TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (project, name)
);
INSERT INTO experiment (id, project, name, lifecycle, created_at, updated_at)
VALUES (0, 'default', 'Default', 'active', 0, 0);

CREATE TABLE run (
    -- 32 hexadecimal digits.
    id TEXT PRIMARY KEY,
    project TEXT NOT NULL REFERENCES project (name),
    experiment_id BIGINT NOT NULL REFERENCES experiment (id),
    name TEXT NOT NULL,
    -- RUNNING, SCHEDULED, FINISHED, FAILED, KILLED
    status TEXT NOT NULL,
    -- active, deleted
    lifecycle TEXT NOT NULL,
    start_time BIGINT NOT NULL,
    end_time BIGINT,
    idempotency_key TEXT,
    -- Digest of what the run was created with, to tell a repeated call from a reused key.
    request_digest TEXT NOT NULL,
    UNIQUE (project, idempotency_key)
);
CREATE INDEX run_experiment ON run (experiment_id, start_time DESC, id DESC);
CREATE INDEX run_project ON run (project, start_time DESC, id DESC);

CREATE TABLE run_param (
    run_id TEXT NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (run_id, key)
) WITHOUT ROWID;

-- The history. NaN is written as value 0 with is_nan 1, because SQLite has no NaN.
CREATE TABLE run_metric (
    run_id TEXT NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    timestamp BIGINT NOT NULL,
    step BIGINT NOT NULL,
    value DOUBLE PRECISION NOT NULL,
    is_nan BIGINT NOT NULL,
    PRIMARY KEY (run_id, key, timestamp, step, value, is_nan)
) WITHOUT ROWID;

-- The point with the greatest (step, timestamp, value) of each metric.
CREATE TABLE run_metric_latest (
    run_id TEXT NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    timestamp BIGINT NOT NULL,
    step BIGINT NOT NULL,
    value DOUBLE PRECISION NOT NULL,
    is_nan BIGINT NOT NULL,
    PRIMARY KEY (run_id, key)
) WITHOUT ROWID;

CREATE TABLE run_tag (
    run_id TEXT NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (run_id, key)
) WITHOUT ROWID;

CREATE TABLE run_input (
    run_id TEXT NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    position BIGINT NOT NULL,
    dataset TEXT NOT NULL,
    version BIGINT NOT NULL,
    digest TEXT NOT NULL,
    context TEXT NOT NULL,
    PRIMARY KEY (run_id, position)
);

-- Datasets.

CREATE TABLE dataset (
    project TEXT NOT NULL REFERENCES project (name),
    name TEXT NOT NULL,
    last_version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (project, name)
);

CREATE TABLE dataset_version (
    project TEXT NOT NULL,
    dataset TEXT NOT NULL,
    version BIGINT NOT NULL,
    description TEXT NOT NULL,
    -- Digest of the manifest.
    digest TEXT NOT NULL,
    rows BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL,
    -- [{"name", "type", "nullable"}]
    columns TEXT NOT NULL,
    profile_digest TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (project, dataset, version),
    FOREIGN KEY (project, dataset) REFERENCES dataset (project, name)
);

CREATE TABLE dataset_file (
    project TEXT NOT NULL,
    dataset TEXT NOT NULL,
    version BIGINT NOT NULL,
    position BIGINT NOT NULL,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    rows BIGINT NOT NULL,
    -- parquet, csv
    format TEXT NOT NULL,
    PRIMARY KEY (project, dataset, version, position),
    FOREIGN KEY (project, dataset, version) REFERENCES dataset_version (project, dataset, version) ON DELETE CASCADE
);
CREATE INDEX dataset_file_digest ON dataset_file (digest);

-- Models.

CREATE TABLE registered_model (
    project TEXT NOT NULL REFERENCES project (name),
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    last_version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (project, name)
);

CREATE TABLE model_version (
    project TEXT NOT NULL,
    model TEXT NOT NULL,
    version BIGINT NOT NULL,
    description TEXT NOT NULL,
    -- onnx
    format TEXT NOT NULL,
    artifact_digest TEXT NOT NULL,
    artifact_size_bytes BIGINT NOT NULL,
    -- {"inputs": [..], "outputs": [..]}
    signature TEXT NOT NULL,
    reference_profile_digest TEXT,
    -- {"name": number}
    metrics TEXT NOT NULL,
    run_id TEXT REFERENCES run (id),
    dataset TEXT,
    dataset_version BIGINT,
    training_rows BIGINT NOT NULL,
    idempotency_key TEXT,
    request_digest TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (project, model, version),
    UNIQUE (project, idempotency_key),
    FOREIGN KEY (project, model) REFERENCES registered_model (project, name),
    FOREIGN KEY (project, dataset, dataset_version) REFERENCES dataset_version (project, dataset, version)
);
CREATE INDEX model_version_run ON model_version (run_id);
CREATE INDEX model_version_artifact ON model_version (artifact_digest);

CREATE TABLE model_version_tag (
    project TEXT NOT NULL,
    model TEXT NOT NULL,
    version BIGINT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (project, model, version, key),
    FOREIGN KEY (project, model, version) REFERENCES model_version (project, model, version) ON DELETE CASCADE
);

CREATE TABLE model_alias (
    project TEXT NOT NULL,
    model TEXT NOT NULL,
    alias TEXT NOT NULL,
    version BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (project, model, alias),
    FOREIGN KEY (project, model, version) REFERENCES model_version (project, model, version)
);
CREATE INDEX model_alias_version ON model_alias (project, model, version);

-- Every change of an alias. Rows are only added.
CREATE TABLE model_alias_change (
    revision BIGINT PRIMARY KEY,
    project TEXT NOT NULL,
    model TEXT NOT NULL,
    alias TEXT NOT NULL,
    previous_version BIGINT,
    -- None: the alias was removed.
    version BIGINT,
    changed_by TEXT NOT NULL,
    at BIGINT NOT NULL,
    FOREIGN KEY (project, model) REFERENCES registered_model (project, name)
);
CREATE INDEX model_alias_change_alias ON model_alias_change (project, model, alias, revision);

-- Endpoints: the desired state, and what the gateways report.

CREATE TABLE endpoint (
    project TEXT NOT NULL REFERENCES project (name),
    name TEXT NOT NULL,
    spec TEXT NOT NULL,
    log_predictions BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (project, name)
);

-- The routes of the spec, in a form that can be joined with what they refer to. That may not exist yet: no foreign key.
CREATE TABLE endpoint_route (
    project TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    position BIGINT NOT NULL,
    -- live, shadow
    role TEXT NOT NULL,
    reference TEXT NOT NULL,
    model TEXT NOT NULL,
    -- One of the two.
    alias TEXT,
    version BIGINT,
    weight DOUBLE PRECISION NOT NULL,
    sample DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (project, endpoint, position),
    FOREIGN KEY (project, endpoint) REFERENCES endpoint (project, name) ON DELETE CASCADE
);

CREATE TABLE gateway_report (
    node TEXT PRIMARY KEY,
    revision BIGINT NOT NULL,
    reported_at BIGINT NOT NULL
);
CREATE INDEX gateway_report_reported_at ON gateway_report (reported_at);

CREATE TABLE gateway_endpoint (
    node TEXT NOT NULL REFERENCES gateway_report (node) ON DELETE CASCADE,
    project TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    -- [{"role", "model", "version", "state", "message"}]
    routes TEXT NOT NULL,
    -- ["model/version"]
    serving TEXT NOT NULL,
    PRIMARY KEY (node, project, endpoint)
);
CREATE INDEX gateway_endpoint_endpoint ON gateway_endpoint (project, endpoint);

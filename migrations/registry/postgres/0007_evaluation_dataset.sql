-- Evaluation datasets, as MLflow's protocol tells of them: examples that models and agents are judged by. They are not the
-- versioned datasets of the first tables.

CREATE TABLE evaluation_dataset (
    -- d- and 32 hexadecimal digits.
    id TEXT PRIMARY KEY,
    project TEXT NOT NULL REFERENCES project (name),
    -- Need not be the only one of its name.
    name TEXT NOT NULL,
    -- A JSON object with the types of the fields that records had so far; none: there were no records.
    fields TEXT,
    -- How many records there are; none: there never were any.
    record_count BIGINT,
    -- Greater than the position of every record.
    next_position BIGINT NOT NULL,
    -- Another one after each change of the records.
    digest TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    -- As clients say.
    created_by TEXT,
    updated_by TEXT
);
CREATE INDEX evaluation_dataset_created_at ON evaluation_dataset (project, created_at, id);
CREATE INDEX evaluation_dataset_name ON evaluation_dataset (project, name);

CREATE TABLE evaluation_dataset_tag (
    dataset_id TEXT NOT NULL REFERENCES evaluation_dataset (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (dataset_id, key)
);

CREATE TABLE evaluation_dataset_experiment (
    dataset_id TEXT NOT NULL REFERENCES evaluation_dataset (id) ON DELETE CASCADE,
    experiment_id BIGINT NOT NULL REFERENCES experiment (id) ON DELETE CASCADE,
    added_at BIGINT NOT NULL,
    PRIMARY KEY (dataset_id, experiment_id)
);
CREATE INDEX evaluation_dataset_experiment_experiment ON evaluation_dataset_experiment (experiment_id, dataset_id);

CREATE TABLE evaluation_record (
    dataset_id TEXT NOT NULL REFERENCES evaluation_dataset (id) ON DELETE CASCADE,
    -- In the order in which they came.
    position BIGINT NOT NULL,
    -- dr- and 32 hexadecimal digits.
    id TEXT NOT NULL,
    -- SHA-256 of the inputs with sorted keys: what comes again with the same inputs is the same record.
    input_hash TEXT NOT NULL,
    -- JSON, as are the next four. Python's NaN and infinities may be in it.
    inputs TEXT NOT NULL,
    outputs TEXT,
    expectations TEXT,
    tags TEXT NOT NULL,
    -- source_type and source_data.
    source TEXT,
    source_id TEXT,
    -- UNSPECIFIED, TRACE, HUMAN, DOCUMENT, CODE
    source_type TEXT,
    -- The length of the JSON of the record.
    size_bytes BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    created_by TEXT,
    updated_by TEXT,
    PRIMARY KEY (dataset_id, position),
    UNIQUE (dataset_id, id),
    -- Records are looked up by many hashes at once.
    UNIQUE (input_hash, dataset_id)
);

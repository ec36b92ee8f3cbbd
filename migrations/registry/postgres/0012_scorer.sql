-- Scorers of experiments: texts that say how traces are judged. Clients run them.

CREATE TABLE scorer (
    id TEXT PRIMARY KEY,
    project TEXT NOT NULL REFERENCES project (name),
    experiment_id BIGINT NOT NULL REFERENCES experiment (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    UNIQUE (experiment_id, name)
);
CREATE INDEX scorer_project ON scorer (project, experiment_id, name);

CREATE TABLE scorer_version (
    scorer_id TEXT NOT NULL REFERENCES scorer (id) ON DELETE CASCADE,
    version BIGINT NOT NULL,
    -- The scorer as JSON, as its client wrote it.
    serialized TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (scorer_id, version)
);

-- Which part of the new traces a scorer is meant for.
CREATE TABLE scorer_online_config (
    scorer_id TEXT PRIMARY KEY REFERENCES scorer (id) ON DELETE CASCADE,
    id TEXT NOT NULL,
    sample_rate DOUBLE PRECISION NOT NULL,
    filter TEXT
);

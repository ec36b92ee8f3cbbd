-- What was brought here from other MLflow servers: what it was called there, and whether all of it has arrived.
CREATE TABLE import_item (
    project TEXT NOT NULL REFERENCES project (name),
    -- The server that it came from, as whoever imports names it.
    source TEXT NOT NULL,
    -- experiment, run, logged_model, model, version
    kind TEXT NOT NULL,
    source_id TEXT NOT NULL,
    local_id TEXT NOT NULL,
    -- What it looked like there when all of it had arrived; empty: some of it has not.
    fingerprint TEXT NOT NULL,
    -- What was read of it there: {"points", "files", "bytes"}
    counts TEXT NOT NULL,
    PRIMARY KEY (project, source, kind, source_id)
);
CREATE INDEX import_item_local ON import_item (project, kind, local_id);

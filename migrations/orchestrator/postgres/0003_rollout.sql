-- How new routes of endpoints come to serve.
CREATE TABLE rollout (
    -- A UUID of version 7: sorts by age.
    id TEXT PRIMARY KEY,
    project TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    -- The registry's revision at which the new routes came up.
    revision BIGINT NOT NULL,
    -- JSON: the rules, and the versions before and after.
    rules TEXT NOT NULL,
    versions_from TEXT NOT NULL,
    versions_to TEXT NOT NULL,
    -- running, paused, promoted, rolled_back, superseded
    state TEXT NOT NULL,
    step BIGINT NOT NULL,
    share DOUBLE PRECISION NOT NULL,
    step_started_at BIGINT NOT NULL,
    -- JSON: what gateways had counted when the step began.
    baseline TEXT NOT NULL,
    reason TEXT,
    -- Counts the changes: who decided by an older state changes nothing.
    change BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    ended_at BIGINT,
    UNIQUE (project, endpoint, revision)
);
CREATE INDEX rollout_state ON rollout (state) WHERE ended_at IS NULL;

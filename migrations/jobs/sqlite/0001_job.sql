-- Work to be done, and for a while the work that was done. Times are microseconds since the epoch.
CREATE TABLE job (
    id TEXT PRIMARY KEY,
    queue TEXT NOT NULL,
    -- At most one unfinished job of a queue has a given key.
    unique_key TEXT,
    payload TEXT NOT NULL,
    -- The W3C traceparent of whoever asked for it.
    trace TEXT,
    -- Greater first.
    priority BIGINT NOT NULL,
    -- ready, running, done, failed, cancelled
    state TEXT NOT NULL,
    -- Counts the claims. Whoever reports must name the present number: it is the fencing token.
    attempt BIGINT NOT NULL,
    -- How many attempts ended with an error.
    failures BIGINT NOT NULL,
    max_attempts BIGINT NOT NULL,
    -- How many attempts ended without a word: the lease ran out, or the node started anew.
    losses BIGINT NOT NULL,
    run_at BIGINT NOT NULL,
    node TEXT,
    lease_until BIGINT,
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    error TEXT
);

CREATE UNIQUE INDEX job_unique_key ON job (queue, unique_key) WHERE finished_at IS NULL;
CREATE INDEX job_ready ON job (queue, priority DESC, run_at, id) WHERE state = 'ready';
CREATE INDEX job_due ON job (queue, run_at) WHERE state = 'ready';
CREATE INDEX job_leased ON job (queue, lease_until) WHERE state = 'running';
CREATE INDEX job_finished ON job (finished_at) WHERE finished_at IS NOT NULL;

-- What happened to each attempt. Rows are only added, and go with their job.
CREATE TABLE job_attempt (
    job_id TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    attempt BIGINT NOT NULL,
    -- claimed, then one of: done, retried, failed, expired, released, cancelled
    event TEXT NOT NULL,
    at BIGINT NOT NULL,
    node TEXT,
    error TEXT,
    PRIMARY KEY (job_id, attempt, event)
);

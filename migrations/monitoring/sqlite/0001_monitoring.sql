-- Times are microseconds since the epoch. JSON is text.

-- One row for each endpoint whose predictions or labels were seen. Whoever changes what scores depend on raises `changes`
-- first, and so holds the row until the commit: what is enqueued for an endpoint is decided by one transaction at a time.
CREATE TABLE endpoint_log (
    project TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    -- The event time up to which the log is taken for complete; null before the first rows.
    watermark BIGINT,
    changes BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (project, endpoint)
);

-- Segments that gateways handed over. Ended ones are kept for a while, so that a repeated hand-over is recognized cheaply.
CREATE TABLE segment (
    project TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    segment_id TEXT NOT NULL,
    files TEXT NOT NULL,
    min_event_time BIGINT NOT NULL,
    max_event_time BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    -- waiting, committed, refused
    state TEXT NOT NULL,
    ended_at BIGINT,
    -- Why it was refused.
    error TEXT,
    PRIMARY KEY (project, endpoint, segment_id)
);
CREATE INDEX segment_waiting ON segment (project, endpoint, received_at, segment_id) WHERE state = 'waiting';
CREATE INDEX segment_ended ON segment (ended_at) WHERE ended_at IS NOT NULL;

-- Labels that were accepted and are not in the endpoint's table of labels yet.
CREATE TABLE label_batch (
    project TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    -- The digest of the labels: the same request again is the same batch.
    batch_id TEXT NOT NULL,
    labels TEXT NOT NULL,
    label_count BIGINT NOT NULL,
    max_observed_at BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    PRIMARY KEY (project, endpoint, batch_id)
);
CREATE INDEX label_batch_order ON label_batch (project, endpoint, received_at, batch_id);

CREATE TABLE monitor (
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    spec TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (project, name)
);
CREATE INDEX monitor_endpoint ON monitor (project, endpoint);

CREATE TABLE alert_rule (
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    monitor TEXT NOT NULL,
    spec TEXT NOT NULL,
    -- Windows that ended before this event time are not judged; null: all are.
    judges_from BIGINT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (project, name),
    FOREIGN KEY (project, monitor) REFERENCES monitor (project, name)
);
CREATE INDEX alert_rule_monitor ON alert_rule (project, monitor);

-- The windows of monitors, each with its newest score.
CREATE TABLE window_score (
    project TEXT NOT NULL,
    monitor TEXT NOT NULL,
    start_at BIGINT NOT NULL,
    end_at BIGINT NOT NULL,
    -- Counts the changes of what the score depends on.
    generation BIGINT NOT NULL,
    -- The generation that the score has seen; smaller than `generation`: a job is to score it anew.
    scored_generation BIGINT NOT NULL,
    -- The event time from which on the alert rules have something to judge; null when they have judged.
    check_at BIGINT,
    -- Rows of the inference log, live and shadow.
    row_count BIGINT NOT NULL,
    score TEXT,
    scored_at BIGINT,
    -- How long the scoring took.
    scoring_us BIGINT,
    -- Why the last scoring failed; null when it did not.
    error TEXT,
    PRIMARY KEY (project, monitor, start_at),
    FOREIGN KEY (project, monitor) REFERENCES monitor (project, name) ON DELETE CASCADE
);
CREATE INDEX window_score_check ON window_score (project, monitor, check_at) WHERE check_at IS NOT NULL;
CREATE INDEX window_score_due ON window_score (project, monitor, start_at) WHERE scored_generation < generation;

-- What a rule found in a window. A window is judged once by each rule.
CREATE TABLE judgement (
    project TEXT NOT NULL,
    rule TEXT NOT NULL,
    start_at BIGINT NOT NULL,
    -- fine, fired
    outcome TEXT NOT NULL,
    judged_at BIGINT NOT NULL,
    PRIMARY KEY (project, rule, start_at),
    FOREIGN KEY (project, rule) REFERENCES alert_rule (project, name) ON DELETE CASCADE
);

CREATE TABLE alert (
    id TEXT PRIMARY KEY,
    project TEXT NOT NULL,
    rule TEXT NOT NULL,
    monitor TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    start_at BIGINT NOT NULL,
    end_at BIGINT NOT NULL,
    model TEXT NOT NULL,
    version BIGINT NOT NULL,
    -- firing, resolved
    state TEXT NOT NULL,
    conditions TEXT NOT NULL,
    trigger_name TEXT,
    -- The last failure to fire the trigger; null when it was fired or never failed.
    trigger_error TEXT,
    pipeline_run_id TEXT,
    fired_at BIGINT NOT NULL,
    resolved_at BIGINT,
    UNIQUE (project, rule, start_at)
);
CREATE INDEX alert_monitor ON alert (project, monitor, start_at);
CREATE INDEX alert_order ON alert (project, fired_at, id);
CREATE INDEX alert_unfired ON alert (id) WHERE trigger_name IS NOT NULL AND pipeline_run_id IS NULL;

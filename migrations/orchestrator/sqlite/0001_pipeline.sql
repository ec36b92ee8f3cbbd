-- Times are microseconds since the epoch; JSON is text.

-- What was declared: pipelines and triggers.
CREATE TABLE resource (
    project TEXT NOT NULL,
    -- Pipeline, Trigger
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    spec TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (project, kind, name)
);

CREATE TABLE pipeline_run (
    -- A UUID of version 7: sorts by age.
    id TEXT PRIMARY KEY,
    project TEXT NOT NULL,
    pipeline TEXT NOT NULL,
    -- The steps and their edges as they were when the run was created.
    plan TEXT NOT NULL,
    -- The parameters as they were given, and as they are with the defaults.
    requested TEXT NOT NULL,
    parameters TEXT NOT NULL,
    trigger_name TEXT,
    trigger_key TEXT,
    -- The event that fired the trigger.
    event TEXT,
    idempotency_key TEXT,
    -- queued, running, succeeded, failed, cancelled
    status TEXT NOT NULL,
    error TEXT,
    -- Counts the transitions: writing it takes the row's lock before anything is read.
    revision BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT
);

-- One key of a trigger starts one run; one idempotency key, too.
CREATE UNIQUE INDEX pipeline_run_trigger ON pipeline_run (project, trigger_name, trigger_key);
CREATE UNIQUE INDEX pipeline_run_idempotency ON pipeline_run (project, idempotency_key);
CREATE INDEX pipeline_run_project ON pipeline_run (project, id);
CREATE INDEX pipeline_run_pipeline ON pipeline_run (project, pipeline, id);
CREATE INDEX pipeline_run_finished ON pipeline_run (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE pipeline_step (
    run_id TEXT NOT NULL REFERENCES pipeline_run (id) ON DELETE CASCADE,
    -- The place in the plan.
    position BIGINT NOT NULL,
    name TEXT NOT NULL,
    op TEXT NOT NULL,
    -- pending, queued, running, succeeded, failed, skipped, cancelled
    status TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    -- The job of the latest attempt.
    job_id TEXT,
    progress TEXT,
    outputs TEXT,
    error TEXT,
    started_at BIGINT,
    finished_at BIGINT,
    PRIMARY KEY (run_id, position)
);

CREATE INDEX pipeline_step_live ON pipeline_step (job_id) WHERE status IN ('queued', 'running');

-- Webhooks: who is told what happens to models, and what became of each delivery.

CREATE TABLE webhook (
    id TEXT PRIMARY KEY,
    project TEXT NOT NULL REFERENCES project (name),
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    url TEXT NOT NULL,
    -- ACTIVE, DISABLED
    status TEXT NOT NULL,
    -- What deliveries are signed with, sealed with a key that is not in the database; none: they are not signed.
    secret TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX webhook_project ON webhook (project, created_at, id);

-- What a webhook is told, in the order in which its maker named it.
CREATE TABLE webhook_event (
    webhook_id TEXT NOT NULL REFERENCES webhook (id) ON DELETE CASCADE,
    place BIGINT NOT NULL,
    -- As in `model_version.created`.
    event TEXT NOT NULL,
    PRIMARY KEY (webhook_id, place)
);

-- A message for one webhook. While it is pending, a job has its id. Ids sort by age.
CREATE TABLE webhook_delivery (
    id TEXT PRIMARY KEY,
    -- No foreign key: a webhook that is removed meanwhile must not fail the change that is told.
    webhook_id TEXT NOT NULL,
    event TEXT NOT NULL,
    -- What is sent; empty when nothing will be sent any more.
    body TEXT NOT NULL,
    -- pending, delivered, failed
    state TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    -- The status of the last answer; none: there was no answer.
    response_status BIGINT,
    -- Why the last attempt failed; empty: it did not.
    error TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    attempted_at BIGINT,
    finished_at BIGINT
);
CREATE INDEX webhook_delivery_webhook ON webhook_delivery (webhook_id, id);
CREATE INDEX webhook_delivery_pending ON webhook_delivery (webhook_id) WHERE state = 'pending';

-- What gateways need to know of an endpoint is read from its spec.
ALTER TABLE endpoint DROP COLUMN log_predictions;

-- How the traffic of an endpoint stands. Routes are JSON, with their references followed.
CREATE TABLE endpoint_traffic (
    project TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    -- What serves, but for the candidate's share.
    stable TEXT NOT NULL,
    -- What served before.
    previous TEXT,
    -- What is on its way, or was refused; the revision at which it came up names the rollout.
    candidate TEXT,
    candidate_revision BIGINT,
    -- Percent.
    share DOUBLE PRECISION NOT NULL,
    rejected BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (project, endpoint),
    FOREIGN KEY (project, endpoint) REFERENCES endpoint (project, name) ON DELETE CASCADE
);
CREATE INDEX endpoint_traffic_candidate ON endpoint_traffic (candidate_revision) WHERE candidate_revision IS NOT NULL;

-- What each gateway counted of the versions of endpoints with a candidate, as JSON.
CREATE TABLE gateway_traffic (
    node TEXT NOT NULL,
    project TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    process TEXT NOT NULL,
    versions TEXT NOT NULL,
    reported_at BIGINT NOT NULL,
    PRIMARY KEY (project, endpoint, node),
    FOREIGN KEY (project, endpoint) REFERENCES endpoint (project, name) ON DELETE CASCADE
);
CREATE INDEX gateway_traffic_reported_at ON gateway_traffic (reported_at);

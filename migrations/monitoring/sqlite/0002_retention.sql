-- What has not changed for a long time is forgotten.

-- When the window last changed. A release before this one leaves it null until the next change.
ALTER TABLE window_score ADD COLUMN touched_at BIGINT;
UPDATE window_score SET touched_at = COALESCE(scored_at, end_at);
CREATE INDEX window_score_touched ON window_score (touched_at) WHERE touched_at IS NOT NULL;

CREATE INDEX alert_fired ON alert (fired_at);

-- When something was last heard of the endpoint; null until the next time.
ALTER TABLE endpoint_log ADD COLUMN touched_at BIGINT;
CREATE INDEX endpoint_log_touched ON endpoint_log (touched_at) WHERE touched_at IS NOT NULL;

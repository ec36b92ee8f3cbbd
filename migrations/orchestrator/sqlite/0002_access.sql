-- Who declared a resource, and for whom a run works: `user:NAME`, with the scope of the token behind a semicolon. What is
-- older was made where nobody signs in.
ALTER TABLE resource ADD COLUMN applied_by TEXT NOT NULL DEFAULT 'user:local';
ALTER TABLE pipeline_run ADD COLUMN acting_for TEXT NOT NULL DEFAULT 'user:local';

-- What is stored of each project and how much may be, and the collection of what deletion left behind.

-- Who refers to a blob, and who removes blobs, holds the row of the project to the commit.
CREATE TABLE project_storage (
    project TEXT PRIMARY KEY REFERENCES project (name),
    -- None: as much as there is room for.
    limit_bytes BIGINT,
    -- The sum over `blob`.
    used_bytes BIGINT NOT NULL,
    blob_count BIGINT NOT NULL,
    -- How many removals of blobs were begun.
    removals BIGINT NOT NULL
);

-- The blobs of the artifact store, each content once.
CREATE TABLE blob (
    project TEXT NOT NULL REFERENCES project (name),
    digest TEXT COLLATE "C" NOT NULL,
    size_bytes BIGINT NOT NULL,
    -- When it was stored last.
    stored_at BIGINT NOT NULL,
    PRIMARY KEY (project, digest)
);

-- Removals of blobs. Whoever is about to refer to a blob finds out that it was removed since it was stored.
CREATE TABLE blob_removal (
    project TEXT NOT NULL REFERENCES project (name),
    -- Counted by `project_storage.removals`.
    removal BIGINT NOT NULL,
    digest TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    begun_at BIGINT NOT NULL,
    -- None: it goes on.
    ended_at BIGINT,
    PRIMARY KEY (project, removal)
);
CREATE INDEX blob_removal_digest ON blob_removal (project, digest, removal);
CREATE INDEX blob_removal_open ON blob_removal (project, digest) WHERE ended_at IS NULL;
CREATE INDEX blob_removal_ended_at ON blob_removal (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE collection (
    id TEXT PRIMARY KEY,
    project TEXT NOT NULL REFERENCES project (name),
    -- running, finished, failed
    state TEXT NOT NULL,
    -- What it is at.
    phase TEXT NOT NULL,
    -- What was asked for, as JSON.
    request TEXT NOT NULL,
    dry_run BIGINT NOT NULL,
    started_by TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    finished_at BIGINT,
    error TEXT,
    -- SHA-256 of the list of what was freed.
    list_digest TEXT,
    -- What the audit chain is told at the end, as JSON.
    event TEXT NOT NULL,
    -- Who works at it until when, and how often it was taken up.
    node TEXT NOT NULL,
    lease_until BIGINT NOT NULL,
    attempt BIGINT NOT NULL
);
-- One at a time.
CREATE UNIQUE INDEX collection_running ON collection (project) WHERE state = 'running';
CREATE INDEX collection_project ON collection (project, id);
CREATE INDEX collection_finished_at ON collection (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE collection_count (
    collection_id TEXT NOT NULL REFERENCES collection (id) ON DELETE CASCADE,
    -- run, metric, logged-model, trace, experiment, file, upload, blob, ...
    kind TEXT NOT NULL,
    amount BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL,
    PRIMARY KEY (collection_id, kind)
);

CREATE TABLE collected_object (
    collection_id TEXT NOT NULL REFERENCES collection (id) ON DELETE CASCADE,
    kind TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    -- freed, would-be-freed, kept; freeing: its files are still there
    outcome TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    -- Below which its files are; none: they are not on this server.
    folder TEXT,
    -- Why it was kept.
    reason TEXT,
    PRIMARY KEY (collection_id, kind, id)
);
CREATE INDEX collected_object_freeing ON collected_object (collection_id) WHERE outcome = 'freeing';

CREATE INDEX run_deleted ON run (project, id) WHERE lifecycle = 'deleted';
CREATE INDEX experiment_deleted ON experiment (project, id) WHERE lifecycle = 'deleted';
CREATE INDEX logged_model_project ON logged_model (project, id);
CREATE INDEX dataset_version_profile ON dataset_version (profile_digest);
CREATE INDEX model_version_profile ON model_version (reference_profile_digest)
WHERE reference_profile_digest IS NOT NULL;

-- Where runs and logged models are from the moment that they are collected until their last row is gone. Nobody can name it.
INSERT INTO project (name, description, created_at, removed_at) VALUES ('.collected', '', 1, 1);

INSERT INTO blob (project, digest, size_bytes, stored_at)
SELECT named.project, named.digest, MAX(named.size_bytes), 0
FROM (
    SELECT project, digest, size_bytes FROM artifact_file
    UNION ALL
    SELECT project, digest, size_bytes FROM dataset_file
    UNION ALL
    SELECT project, artifact_digest, artifact_size_bytes FROM model_version WHERE artifact_digest <> ''
    UNION ALL
    SELECT u.project, p.digest, p.size_bytes FROM artifact_part p JOIN artifact_upload u ON u.id = p.upload_id
) AS named
GROUP BY named.project, named.digest;

INSERT INTO project_storage (project, limit_bytes, used_bytes, blob_count, removals)
SELECT p.name, NULL, CAST(COALESCE(SUM(b.size_bytes), 0) AS BIGINT), COUNT(b.digest), 0
FROM project p LEFT JOIN blob b ON b.project = p.name
GROUP BY p.name;

-- Artifacts by path, as MLflow's clients name them. The content is a blob; a path is looked for by its bytes.

CREATE TABLE artifact_file (
    project TEXT NOT NULL REFERENCES project (name),
    -- What follows `mlflow-artifacts:/`, such as 1/RUN/artifacts/model/MLmodel.
    path TEXT COLLATE "C" NOT NULL,
    digest TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (project, path)
);
-- Whether anything still refers to a blob.
CREATE INDEX artifact_file_digest ON artifact_file (project, digest);

-- Files that arrive in parts. Whoever knows the secret may bring parts; who completes it, shows who he is.
CREATE TABLE artifact_upload (
    id TEXT PRIMARY KEY,
    project TEXT NOT NULL REFERENCES project (name),
    path TEXT COLLATE "C" NOT NULL,
    part_count BIGINT NOT NULL,
    -- SHA-256 of the secret, in hexadecimal digits.
    secret_hash TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    -- It stays for a while, so that completing it again finds that it is done.
    completed_at BIGINT
);
CREATE INDEX artifact_upload_open ON artifact_upload (project) WHERE completed_at IS NULL;
CREATE INDEX artifact_upload_created_at ON artifact_upload (created_at);

-- Each part is a blob until the file is complete.
CREATE TABLE artifact_part (
    upload_id TEXT NOT NULL REFERENCES artifact_upload (id) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    digest TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    PRIMARY KEY (upload_id, number)
);
CREATE INDEX artifact_part_digest ON artifact_part (digest);

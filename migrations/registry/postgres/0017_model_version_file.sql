-- The files that the file of a version lists, where that describes a folder: each content once.
CREATE TABLE model_version_file (
    project TEXT NOT NULL,
    model TEXT NOT NULL,
    version BIGINT NOT NULL,
    digest TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    PRIMARY KEY (project, model, version, digest),
    FOREIGN KEY (project, model, version) REFERENCES model_version (project, model, version) ON DELETE CASCADE
);
CREATE INDEX model_version_file_digest ON model_version_file (project, digest);

-- What MLflow's protocol tells of registered models and their versions beyond the first tables.

CREATE TABLE registered_model_tag (
    project TEXT NOT NULL,
    model TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (project, model, key),
    FOREIGN KEY (project, model) REFERENCES registered_model (project, name) ON DELETE CASCADE
);
CREATE INDEX registered_model_tag_key ON registered_model_tag (project, key);
CREATE INDEX model_version_tag_key ON model_version_tag (project, key);

-- A version whose `artifact_digest` is empty has no ONNX file: it can be registered and not served.

-- Where the model came from, as its client wrote it; empty: it was registered as a file.
ALTER TABLE model_version ADD COLUMN source TEXT NOT NULL DEFAULT '';
-- Where clients find its files; empty: at `source`.
ALTER TABLE model_version ADD COLUMN storage_location TEXT NOT NULL DEFAULT '';
-- The run as the client named it, which need not be a run of this server; none: `run_id` is.
ALTER TABLE model_version ADD COLUMN source_run_id TEXT;
ALTER TABLE model_version ADD COLUMN run_link TEXT NOT NULL DEFAULT '';
-- READY, PENDING_REGISTRATION, FAILED_REGISTRATION
ALTER TABLE model_version ADD COLUMN status TEXT NOT NULL DEFAULT 'READY';
ALTER TABLE model_version ADD COLUMN status_message TEXT NOT NULL DEFAULT '';
-- None, Staging, Production, Archived
ALTER TABLE model_version ADD COLUMN stage TEXT NOT NULL DEFAULT 'None';
ALTER TABLE model_version ADD COLUMN user_id TEXT NOT NULL DEFAULT '';
-- The logged model that was registered.
ALTER TABLE model_version ADD COLUMN model_id TEXT;
-- None: it was not changed since it was created.
ALTER TABLE model_version ADD COLUMN updated_at BIGINT;
CREATE INDEX model_version_stage ON model_version (project, model, stage, version);
CREATE INDEX model_version_source_run ON model_version (project, COALESCE(source_run_id, run_id));
CREATE INDEX model_version_model_id ON model_version (model_id) WHERE model_id IS NOT NULL;

-- The history of aliases outlives the models.
ALTER TABLE model_alias_change DROP CONSTRAINT model_alias_change_project_model_fkey;
ALTER TABLE model_alias_change
ADD CONSTRAINT model_alias_change_project_fkey FOREIGN KEY (project) REFERENCES project (name);

-- A model gets another name in one transaction, in which these are checked at the end. SQLite needs no such word.
ALTER TABLE registered_model_tag
ALTER CONSTRAINT registered_model_tag_project_model_fkey DEFERRABLE INITIALLY IMMEDIATE;
ALTER TABLE model_version
ALTER CONSTRAINT model_version_project_model_fkey DEFERRABLE INITIALLY IMMEDIATE;
ALTER TABLE model_version_tag
ALTER CONSTRAINT model_version_tag_project_model_version_fkey DEFERRABLE INITIALLY IMMEDIATE;
ALTER TABLE model_alias
ALTER CONSTRAINT model_alias_project_model_version_fkey DEFERRABLE INITIALLY IMMEDIATE;

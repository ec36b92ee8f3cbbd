-- What lineage is followed by, each way that no key leads already.

-- From a dataset version to the runs that read it, and to the versions that were trained on it.
CREATE INDEX run_input_dataset ON run_input (dataset, version, run_id);
CREATE INDEX model_version_dataset ON model_version (project, dataset, dataset_version) WHERE dataset IS NOT NULL;

-- From a dataset that clients describe to the runs that read it, and to the logged models that were measured on it.
CREATE INDEX run_dataset_name ON run_dataset (name, digest, run_id);
CREATE INDEX logged_model_metric_dataset ON logged_model_metric (dataset_name, dataset_digest, model_id)
WHERE dataset_name <> '';
CREATE INDEX logged_model_metric_measured ON logged_model_metric (model_id, dataset_name, dataset_digest)
WHERE dataset_name <> '';

-- From a run to those within it, and from the run of a pipeline to what it made. Longer values name nothing.
CREATE INDEX run_tag_parent ON run_tag (value, run_id) WHERE key = 'mlflow.parentRunId' AND length(value) <= 256;
CREATE INDEX run_tag_pipeline ON run_tag (value, run_id) WHERE key = 'pipeline_run' AND length(value) <= 256;
CREATE INDEX model_version_tag_pipeline ON model_version_tag (project, value, model, version)
WHERE key = 'pipeline_run' AND length(value) <= 256;

-- From a version to its copies: their source begins like this, and a whole source may be too long for an index.
CREATE INDEX model_version_copied ON model_version (project, substr(source, 1, 300)) WHERE source <> '';

-- From a model to the endpoints that refer to it.
CREATE INDEX endpoint_route_model ON endpoint_route (project, model);

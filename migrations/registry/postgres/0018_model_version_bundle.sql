-- The Sigstore bundle with the signature of the files of a version.
ALTER TABLE model_version ADD COLUMN bundle_digest TEXT;
CREATE INDEX model_version_bundle ON model_version (project, bundle_digest);

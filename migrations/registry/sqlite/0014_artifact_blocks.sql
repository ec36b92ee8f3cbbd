-- Parts of large files are verified by the digests of their blocks: 32 bytes for each MiB.
ALTER TABLE artifact_file ADD COLUMN blocks BLOB;

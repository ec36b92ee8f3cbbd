-- Which collection removes a blob; none: whoever completed or gave up an upload in parts.
ALTER TABLE blob_removal ADD COLUMN collection_id TEXT;

-- What is forgotten by its age.
CREATE INDEX webhook_delivery_created_at ON webhook_delivery (created_at);

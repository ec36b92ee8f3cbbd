-- Identities, what they may do, secrets, and the audit chain. Times are microseconds since the epoch; JSON is text.

ALTER TABLE project ADD COLUMN description TEXT NOT NULL DEFAULT '';
-- A project that was removed: nobody sees it, and its name is not given again.
ALTER TABLE project ADD COLUMN removed_at BIGINT;

-- `access` counts the changes of what decisions rest on; who changes something raises it first.
INSERT INTO counter (name, value) VALUES ('access', 1);

CREATE TABLE identity (
    -- user, service-account
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    display_name TEXT NOT NULL,
    enabled BIGINT NOT NULL,
    -- Argon2id in PHC form. None: signs in elsewhere, or not at all.
    password_hash TEXT,
    password_revision BIGINT NOT NULL,
    -- ["group"], as an admin or the identity provider says.
    "groups" TEXT NOT NULL,
    -- Who it is at an identity provider.
    issuer TEXT,
    subject TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (kind, name),
    UNIQUE (issuer, subject)
);

CREATE TABLE access_token (
    id TEXT PRIMARY KEY,
    -- SHA-256 of its text, in hexadecimal digits. The text is told once and kept nowhere.
    hash TEXT NOT NULL UNIQUE,
    -- api, session, exchanged
    kind TEXT NOT NULL,
    owner_kind TEXT NOT NULL,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    -- ["ROLE@PLACE"]; none: all that the owner may.
    scope TEXT,
    created_at BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    expires_at BIGINT,
    last_used_at BIGINT,
    revoked_at BIGINT,
    FOREIGN KEY (owner_kind, owner) REFERENCES identity (kind, name) ON DELETE CASCADE
);
CREATE INDEX access_token_owner ON access_token (owner_kind, owner, id);
CREATE INDEX access_token_expires_at ON access_token (expires_at) WHERE expires_at IS NOT NULL;

-- Roles, role bindings and policies, as they are declared.
CREATE TABLE access_resource (
    -- role, role-binding, policy
    kind TEXT NOT NULL,
    -- Empty for the installation; in a project there are role bindings only.
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    spec TEXT NOT NULL,
    -- Of a role binding: user:NAME, service-account:NAME, group:NAME.
    subject TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (kind, project, name)
);
CREATE INDEX access_resource_subject ON access_resource (subject) WHERE subject IS NOT NULL;

-- What is read with an audit event.
CREATE TABLE sensitive_resource (
    project TEXT NOT NULL REFERENCES project (name),
    -- dataset, model, ...
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (project, kind, name)
);

CREATE TABLE secret (
    project TEXT NOT NULL REFERENCES project (name),
    name TEXT NOT NULL,
    -- Sealed with a key that is not in the database.
    sealed TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (project, name)
);

-- The audit chain: rows are only added. Each carries the hash of the one before it.
CREATE TABLE audit_event (
    seq BIGINT PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    at BIGINT NOT NULL,
    -- Empty for the installation.
    project TEXT NOT NULL,
    actor TEXT NOT NULL,
    on_behalf_of TEXT,
    action TEXT NOT NULL,
    resource_kind TEXT NOT NULL,
    resource TEXT NOT NULL,
    -- success, denied, failed
    outcome TEXT NOT NULL,
    reason TEXT,
    before_digest TEXT,
    after_digest TEXT,
    request_id TEXT,
    source_address TEXT,
    details TEXT NOT NULL,
    prev_hash TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE INDEX audit_event_at ON audit_event (at);
CREATE INDEX audit_event_actor ON audit_event (actor, seq);
CREATE INDEX audit_event_on_behalf_of ON audit_event (on_behalf_of, seq) WHERE on_behalf_of IS NOT NULL;
CREATE INDEX audit_event_resource ON audit_event (project, resource_kind, resource, seq);

-- Where the chain ends: its row is held from the appending of an event to the commit.
CREATE TABLE audit_head (
    id BIGINT PRIMARY KEY,
    seq BIGINT NOT NULL,
    hash TEXT NOT NULL
);
INSERT INTO audit_head (id, seq, hash)
VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');

-- Signatures over the chain up to an event.
CREATE TABLE audit_checkpoint (
    seq BIGINT PRIMARY KEY,
    hash TEXT NOT NULL,
    at BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    signature TEXT NOT NULL
);

-- The keys that signed; the newest signs. The private half is sealed with a key that is not in the database.
CREATE TABLE audit_key (
    id TEXT PRIMARY KEY,
    public_key TEXT NOT NULL,
    sealed TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

-- Twice: by permission, so that not even a mistake of ours can change a row, and by trigger for roles that have more.
REVOKE UPDATE, DELETE, TRUNCATE ON audit_event, audit_checkpoint FROM PUBLIC, CURRENT_USER;

CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit chain is only added to';
END;
$$;
CREATE TRIGGER audit_event_stays BEFORE UPDATE OR DELETE ON audit_event
FOR EACH ROW EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_event_remains BEFORE TRUNCATE ON audit_event
FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_checkpoint_stays BEFORE UPDATE OR DELETE ON audit_checkpoint
FOR EACH ROW EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_checkpoint_remains BEFORE TRUNCATE ON audit_checkpoint
FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();

//! Roles, role bindings, policies and marks, and all that decisions rest on as one state.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::{
    Binding, Identity as KnownIdentity, Kind, Principal, PrincipalKind, ResourceKey, State, Subject, TokenEntry,
    audit::NewEvent,
    is_built_in_role,
    token::{TokenHash, TokenKind},
};
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use serde_json::Value;

use super::{SqlStore, json, number, to_json, word};
use crate::{
    error::{Error, Result},
    model::{
        access::{
            AccessKind, AccessRecord, AccessSpec as _, MAX_OF_A_KIND, PolicySpec, RoleBindingSpec, RoleSpec,
            SensitiveMark,
        },
        endpoint::Outcome,
        identity::IdentityKind,
        page::{Page, PageRequest},
    },
};

/// What decides who may do what.
#[async_trait]
pub trait AccessStore: Send + Sync {
    /// The revision of the last change.
    async fn access_revision(&self) -> Result<u64>;
    /// Everything that decisions rest on, and the revision of that. Tokens that have ended by `now` are not in it.
    async fn access_state(&self, now: Timestamp) -> Result<(u64, State)>;
    /// Makes or changes a resource, whose spec was checked.
    async fn put_access(&self, record: &AccessRecord, event: &NewEvent) -> Result<Outcome>;
    /// A resource.
    async fn find_access(&self, kind: AccessKind, project: &str, name: &str) -> Result<Option<AccessRecord>>;
    /// The resources of a kind in a project by name.
    async fn list_access(
        &self,
        kind: AccessKind,
        project: &str,
        page: &PageRequest<String>,
    ) -> Result<Page<AccessRecord>>;
    /// Removes a resource; whether there was one. A role that is held is not removed.
    async fn remove_access(&self, kind: AccessKind, project: &str, name: &str, event: &NewEvent) -> Result<bool>;
    /// Marks a resource as sensitive, or takes the mark away. Whether that changed anything.
    async fn mark_sensitive(&self, key: &ResourceKey, is_sensitive: bool, event: &NewEvent) -> Result<bool>;
    /// What is marked in a project.
    async fn list_sensitive(&self, project: &str) -> Result<Vec<SensitiveMark>>;
}

/// The event with who holds which role where, of a role binding; other kinds have none of these.
fn told(event: &NewEvent, spec: &Value) -> NewEvent {
    let mut event = event.clone();
    for field in ["subject", "role", "place"] {
        if let Some(text) = spec.get(field).and_then(Value::as_str) {
            event.add_detail(field, text);
        }
    }
    event
}

fn must_exist(known: i64, what: &str, name: &str, remedy: &str) -> Result<()> {
    if known > 0 {
        return Ok(());
    }
    Err(Error::request(format!("{what} `{name}` does not exist: {remedy}")))
}

#[derive(sqlx::FromRow)]
struct AccessRow {
    kind: String,
    project: String,
    name: String,
    spec: String,
    subject: Option<String>,
    created_at: i64,
    updated_at: i64,
}

impl AccessRow {
    fn into_record(self) -> Result<AccessRecord> {
        Ok(AccessRecord {
            kind: word("kind of an access resource", &self.kind, AccessKind::parse)?,
            project: self.project,
            name: self.name,
            spec: json("spec", &self.spec)?,
            subject: self.subject,
            created_at: Timestamp::from_micros(self.created_at),
            updated_at: Timestamp::from_micros(self.updated_at),
        })
    }
}

macro_rules! select_access {
    ($rest:literal) => {
        concat!(
            "SELECT kind, project, name, spec, subject, created_at, updated_at FROM access_resource ",
            $rest
        )
    };
}

#[derive(sqlx::FromRow)]
struct TokenStateRow {
    id: String,
    hash: String,
    kind: String,
    owner_kind: String,
    owner: String,
    scope: Option<String>,
    expires_at: Option<i64>,
}

impl TokenStateRow {
    fn into_entry(self) -> Result<(TokenHash, TokenEntry)> {
        let hash = self.hash.parse();
        let hash = hash.map_err(|_| modelyard_db::Error::value("hash of a token", &self.id))?;
        let entry = TokenEntry {
            owner: word("kind of an owner", &self.owner_kind, IdentityKind::parse)?.principal(&self.owner),
            kind: word("kind of a token", &self.kind, TokenKind::parse)?,
            scope: self.scope.map(|scope| json("scope", &scope)).transpose()?,
            expires_at: self.expires_at.map(Timestamp::from_micros),
            id: self.id,
        };
        Ok((hash, entry))
    }
}

/// Puts a stored resource into the state.
fn include(state: &mut State, record: AccessRecord) -> Result<()> {
    let spec = |value: Value| modelyard_db::Error::value("spec of an access resource", &value.to_string());
    match record.kind {
        AccessKind::Role => {
            let role: RoleSpec = serde_json::from_value(record.spec.clone()).map_err(|_| spec(record.spec))?;
            state.roles.insert(record.name, role.actions);
        }
        AccessKind::RoleBinding => {
            let binding: RoleBindingSpec =
                serde_json::from_value(record.spec.clone()).map_err(|_| spec(record.spec))?;
            state.bindings.push(Binding {
                name: record.name,
                grant: binding.grant()?,
                subject: binding.subject,
            });
        }
        AccessKind::Policy => {
            let policy: PolicySpec = serde_json::from_value(record.spec.clone()).map_err(|_| spec(record.spec))?;
            state.policies.insert(record.name, policy.policy);
        }
    }
    Ok(())
}

type IdentityStateRow = (String, String, i64, String, i64);

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// The next revision of who may do what. From here to the commit nobody else changes it.
    pub(super) async fn raise_access(tx: &mut Transaction<<P as Pools>::Db>) -> Result<u64> {
        let query = sqlx::query_scalar("UPDATE counter SET value = value + 1 WHERE name = 'access' RETURNING value");
        number("revision of access", query.fetch_one(&mut **tx).await?)
    }

    /// Refuses to bind what does not exist: it would give nothing, and nobody would notice. Groups are the provider's.
    async fn check_binding(tx: &mut Transaction<<P as Pools>::Db>, spec: &Value) -> Result<()> {
        let binding: RoleBindingSpec = serde_json::from_value(spec.clone())
            .map_err(|_| modelyard_db::Error::value("role binding", &spec.to_string()))?;
        if !is_built_in_role(&binding.role) {
            let known = sqlx::query_scalar("SELECT COUNT(*) FROM access_resource WHERE kind = $1 AND name = $2")
                .bind(AccessKind::Role.as_str())
                .bind(&binding.role);
            let remedy = "declare it first, or give one of `modelyard get roles`";
            must_exist(known.fetch_one(&mut **tx).await?, "role", &binding.role, remedy)?;
        }
        if let Subject::Principal(principal) = &binding.subject {
            let kind = if principal.kind() == PrincipalKind::ServiceAccount {
                IdentityKind::ServiceAccount.as_str()
            } else {
                IdentityKind::User.as_str()
            };
            let known = sqlx::query_scalar("SELECT COUNT(*) FROM identity WHERE kind = $1 AND name = $2")
                .bind(kind)
                .bind(principal.name());
            let remedy = "create it first, or bind a group for those who sign in at a provider";
            must_exist(
                known.fetch_one(&mut **tx).await?,
                "subject",
                &binding.subject.to_string(),
                remedy,
            )?;
        }
        if let Some(project) = binding.grant()?.place.project() {
            let known =
                sqlx::query_scalar("SELECT COUNT(*) FROM project WHERE name = $1 AND removed_at IS NULL").bind(project);
            must_exist(known.fetch_one(&mut **tx).await?, "project", project, "create it first")?;
        }
        Ok(())
    }

    async fn identities(tx: &mut Transaction<<P as Pools>::Db>) -> Result<BTreeMap<Principal, KnownIdentity>> {
        let rows: Vec<IdentityStateRow> =
            sqlx::query_as("SELECT kind, name, enabled, \"groups\", password_revision FROM identity")
                .fetch_all(&mut **tx)
                .await?;
        let identities = rows
            .into_iter()
            .map(|(kind, name, enabled, groups, password_revision)| {
                let principal = word("kind of an identity", &kind, IdentityKind::parse)?.principal(&name);
                let identity = KnownIdentity {
                    enabled: enabled != 0,
                    groups: json("groups", &groups)?,
                    password_revision: number("revision of a password", password_revision)?,
                };
                Ok((principal, identity))
            });
        identities.collect()
    }

    async fn tokens(tx: &mut Transaction<<P as Pools>::Db>, now: Timestamp) -> Result<HashMap<TokenHash, TokenEntry>> {
        let rows: Vec<TokenStateRow> = sqlx::query_as(
            "SELECT id, hash, kind, owner_kind, owner, scope, expires_at FROM access_token
             WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1)",
        )
        .bind(now.as_micros())
        .fetch_all(&mut **tx)
        .await?;
        rows.into_iter().map(TokenStateRow::into_entry).collect()
    }

    async fn marks(tx: &mut Transaction<<P as Pools>::Db>) -> Result<BTreeSet<ResourceKey>> {
        let rows: Vec<(String, String, String)> = sqlx::query_as("SELECT kind, project, name FROM sensitive_resource")
            .fetch_all(&mut **tx)
            .await?;
        let marks = rows.into_iter().map(|(kind, project, name)| {
            let kind = word("kind of a resource", &kind, Kind::find)?;
            Ok(ResourceKey { kind, project, name })
        });
        marks.collect()
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl AccessStore for SqlStore<P> {
    async fn access_revision(&self) -> Result<u64> {
        let query = sqlx::query_scalar("SELECT value FROM counter WHERE name = 'access'");
        number("revision of access", query.fetch_one(self.pools.reader()).await?)
    }

    async fn access_state(&self, now: Timestamp) -> Result<(u64, State)> {
        let mut tx = self.pools.snapshot().await?;
        let revision: i64 = sqlx::query_scalar("SELECT value FROM counter WHERE name = 'access'")
            .fetch_one(&mut *tx)
            .await?;
        let projects: Vec<String> = sqlx::query_scalar("SELECT name FROM project WHERE removed_at IS NULL")
            .fetch_all(&mut *tx)
            .await?;
        let mut state = State {
            projects: projects.into_iter().collect(),
            identities: Self::identities(&mut tx).await?,
            tokens: Self::tokens(&mut tx, now).await?,
            sensitive: Self::marks(&mut tx).await?,
            ..State::default()
        };
        let rows: Vec<AccessRow> = sqlx::query_as(select_access!("ORDER BY kind, project, name"))
            .fetch_all(&mut *tx)
            .await?;
        for row in rows {
            include(&mut state, row.into_record()?)?;
        }
        Ok((number("revision of access", revision)?, state))
    }

    async fn put_access(&self, record: &AccessRecord, event: &NewEvent) -> Result<Outcome> {
        let mut tx = self.pools.begin().await?;
        Self::raise_access(&mut tx).await?;
        let spec = to_json("spec", &record.spec)?;
        let row: Option<AccessRow> = sqlx::query_as(select_access!("WHERE kind = $1 AND project = $2 AND name = $3"))
            .bind(record.kind.as_str())
            .bind(&record.project)
            .bind(&record.name)
            .fetch_optional(&mut *tx)
            .await?;
        let present = row.map(AccessRow::into_record).transpose()?;
        if present.as_ref().is_some_and(|present| present.spec == record.spec) {
            return Ok(Outcome::Unchanged);
        }
        if present.is_none() {
            let count: i64 =
                sqlx::query_scalar("SELECT COUNT(*) FROM access_resource WHERE kind = $1 AND project = $2")
                    .bind(record.kind.as_str())
                    .bind(&record.project)
                    .fetch_one(&mut *tx)
                    .await?;
            if count >= MAX_OF_A_KIND {
                return Err(Error::State(format!(
                    "there are {count} of the kind {}, as many as there may be: remove some first",
                    record.kind.resource_kind()
                )));
            }
        }
        if record.kind == AccessKind::RoleBinding {
            Self::check_binding(&mut tx, &record.spec).await?;
        }
        sqlx::query(
            "INSERT INTO access_resource (kind, project, name, spec, subject, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (kind, project, name)
             DO UPDATE SET spec = excluded.spec, subject = excluded.subject, updated_at = excluded.updated_at",
        )
        .bind(record.kind.as_str())
        .bind(&record.project)
        .bind(&record.name)
        .bind(&spec)
        .bind(&record.subject)
        .bind(record.created_at.as_micros())
        .bind(record.updated_at.as_micros())
        .execute(&mut *tx)
        .await?;
        let before = present
            .as_ref()
            .map(|present| to_json("spec", &present.spec))
            .transpose()?;
        let event = told(event, &record.spec).with_digests(before.as_deref(), Some(&spec));
        Self::append_audit(&mut tx, &event).await?;
        tx.commit().await?;
        Ok(if present.is_some() {
            Outcome::Updated
        } else {
            Outcome::Created
        })
    }

    async fn find_access(&self, kind: AccessKind, project: &str, name: &str) -> Result<Option<AccessRecord>> {
        let row: Option<AccessRow> = sqlx::query_as(select_access!("WHERE kind = $1 AND project = $2 AND name = $3"))
            .bind(kind.as_str())
            .bind(project)
            .bind(name)
            .fetch_optional(self.pools.reader())
            .await?;
        row.map(AccessRow::into_record).transpose()
    }

    async fn list_access(
        &self,
        kind: AccessKind,
        project: &str,
        page: &PageRequest<String>,
    ) -> Result<Page<AccessRecord>> {
        let rows: Vec<AccessRow> = sqlx::query_as(select_access!(
            "WHERE kind = $1 AND project = $2 AND name > $3 ORDER BY name LIMIT $4"
        ))
        .bind(kind.as_str())
        .bind(project)
        .bind(page.after.as_deref().unwrap_or_default())
        .bind(page.rows())
        .fetch_all(self.pools.reader())
        .await?;
        let records = rows
            .into_iter()
            .map(AccessRow::into_record)
            .collect::<Result<Vec<_>>>()?;
        Ok(page.cut(records, |record| record.name.clone()))
    }

    async fn remove_access(&self, kind: AccessKind, project: &str, name: &str, event: &NewEvent) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        Self::raise_access(&mut tx).await?;
        if kind == AccessKind::Role {
            let bindings: Vec<String> = sqlx::query_scalar("SELECT spec FROM access_resource WHERE kind = $1")
                .bind(AccessKind::RoleBinding.as_str())
                .fetch_all(&mut *tx)
                .await?;
            let mut held = 0;
            for spec in &bindings {
                let binding: RoleBindingSpec = json("spec", spec)?;
                held += usize::from(binding.role == name);
            }
            if held > 0 {
                return Err(Error::State(format!(
                    "role `{name}` is given by {held} {}s: remove those first",
                    RoleBindingSpec::KIND.as_str()
                )));
            }
        }
        let query = "DELETE FROM access_resource WHERE kind = $1 AND project = $2 AND name = $3 RETURNING spec";
        let removed: Option<String> = sqlx::query_scalar(query)
            .bind(kind.as_str())
            .bind(project)
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
        let Some(spec) = removed else {
            return Ok(false);
        };
        let removed: Value = json("spec", &spec)?;
        let event = told(event, &removed);
        Self::append_audit(&mut tx, &event.with_digests(Some(&spec), None)).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn mark_sensitive(&self, key: &ResourceKey, is_sensitive: bool, event: &NewEvent) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        Self::raise_access(&mut tx).await?;
        let changed = if is_sensitive {
            sqlx::query(
                "INSERT INTO sensitive_resource (project, kind, name, created_at) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (project, kind, name) DO NOTHING",
            )
            .bind(&key.project)
            .bind(key.kind.word())
            .bind(&key.name)
            .bind(event.at.as_micros())
            .execute(&mut *tx)
            .await?
            .rows_affected()
        } else {
            sqlx::query("DELETE FROM sensitive_resource WHERE project = $1 AND kind = $2 AND name = $3")
                .bind(&key.project)
                .bind(key.kind.word())
                .bind(&key.name)
                .execute(&mut *tx)
                .await?
                .rows_affected()
        };
        if changed == 0 {
            return Ok(false);
        }
        Self::append_audit(&mut tx, event).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn list_sensitive(&self, project: &str) -> Result<Vec<SensitiveMark>> {
        let rows: Vec<(String, String, i64)> = sqlx::query_as(
            "SELECT kind, name, created_at FROM sensitive_resource WHERE project = $1 ORDER BY kind, name LIMIT 10000",
        )
        .bind(project)
        .fetch_all(self.pools.reader())
        .await?;
        let marks = rows.into_iter().map(|(kind, name, created_at)| SensitiveMark {
            kind,
            name,
            created_at: Timestamp::from_micros(created_at),
        });
        Ok(marks.collect())
    }
}

//! Where people and workloads sign in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use modelyard_auth::{Binding, Grant, Subject, check_identity_name};
use modelyard_common::{
    config::{Secret, duration},
    name::check_name,
};
use openidconnect::core::CoreJwsSigningAlgorithm;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use url::{Host, Url};

/// The longest life of an exchanged token.
const MAX_LIFETIME: Duration = Duration::from_hours(1);
/// The shortest one that is of any use.
const MIN_LIFETIME: Duration = Duration::from_mins(1);
/// The shortest client secret that may sign tokens, in bytes: what HMAC with SHA-256 needs (RFC 7518, 3.2).
const MIN_SIGNING_SECRET: usize = 32;

/// What the names of bindings begin with that the configuration makes.
pub const BINDING_PREFIX: &str = "sign-in/";
/// How many hexadecimal digits of a SHA-256 tell such bindings apart.
const BINDING_DIGITS: usize = 24;

/// Where people and workloads sign in, beside names with passwords.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SignIn {
    /// The address that browsers and workloads reach this installation by, as in `https://yard.example`. Providers send
    /// browsers back there, and it is the audience of workloads' tokens.
    pub public_url: Option<String>,
    /// OpenID providers at which people sign in.
    pub providers: Vec<Provider>,
    /// Issuers whose signed tokens workloads exchange for ours.
    pub workloads: Vec<Workload>,
}

/// An OpenID provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Provider {
    /// Its name, a part of the address that it sends browsers back to.
    pub name: String,
    /// What the sign-in page calls it; its name by default.
    pub label: Option<String>,
    /// Its issuer, exactly as it calls itself.
    pub issuer: String,
    /// The name under which it knows this installation.
    pub client_id: String,
    /// The secret that it shares with this installation; none for a public client.
    pub client_secret: Option<Secret>,
    /// What is asked for, beside `openid`.
    pub scopes: Vec<String>,
    /// The claim that names the user. By default `preferred_username`, or `email` where the provider verified it. What
    /// begins with `/` is a JSON pointer.
    pub name_claim: Option<String>,
    /// The claim with the user's groups. What begins with `/` is a JSON pointer, as in `/realm_access/roles`.
    pub groups_claim: String,
    /// What is put before the names of its groups, so that those of two providers are told apart.
    pub group_prefix: String,
    /// Only members of these groups are let in; empty: everybody whom the provider lets in.
    pub allowed_groups: BTreeSet<String>,
    /// Roles of the members of groups, as in `{ "ml-team" = ["contributor@default"] }`.
    #[schemars(with = "BTreeMap<String, Vec<String>>")]
    pub group_roles: BTreeMap<String, Vec<Grant>>,
    /// Whether who signs in for the first time becomes a user; otherwise only those come in who came in before.
    pub create_users: bool,
    /// How its tokens may be signed. `HS256` and the like take the client secret for the key, and count only when they are
    /// named here.
    pub algorithms: Vec<String>,
    /// File with certificates to trust beside the system's, as PEM.
    pub ca_file: Option<PathBuf>,
}

impl Default for Provider {
    fn default() -> Self {
        Self {
            name: String::new(),
            label: None,
            issuer: String::new(),
            client_id: String::new(),
            client_secret: None,
            scopes: vec!["profile".to_owned(), "email".to_owned()],
            name_claim: None,
            groups_claim: "groups".to_owned(),
            group_prefix: String::new(),
            allowed_groups: BTreeSet::new(),
            group_roles: BTreeMap::new(),
            create_users: true,
            algorithms: asymmetric(),
            ca_file: None,
        }
    }
}

/// An issuer of workloads' tokens: a Kubernetes cluster, GitHub Actions, GitLab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Workload {
    /// Its name, in the audit chain.
    pub name: String,
    /// Its issuer, exactly as the claim `iss` has it.
    pub issuer: String,
    /// What the claim `aud` must be; `public_url` by default.
    pub audience: Option<String>,
    /// Where its keys are: an address, or a file for clusters that cannot be reached. By default where it says itself.
    pub jwks_uri: Option<String>,
    /// File with certificates to trust beside the system's, as PEM.
    pub ca_file: Option<PathBuf>,
    /// Which tokens open which service account; the first rule that fits counts.
    pub rules: Vec<Rule>,
    /// How long the tokens live that it is given, an hour at most.
    #[serde(with = "duration")]
    pub lifetime: Duration,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            name: String::new(),
            issuer: String::new(),
            audience: None,
            jwks_uri: None,
            ca_file: None,
            rules: Vec::new(),
            lifetime: Duration::from_mins(15),
        }
    }
}

/// Which tokens open a service account.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Claims and what they must be; all must fit. `*` stands for any text. What begins with `/` is a JSON pointer, as in
    /// `/kubernetes.io/namespace`.
    pub claims: BTreeMap<String, String>,
    /// The service account that the token is made for. It must exist.
    pub service_account: String,
    /// The most that the token opens; left out: all that the service account may.
    #[schemars(with = "Option<Vec<String>>")]
    pub scope: Option<Vec<Grant>>,
}

/// The names of the signatures that need no shared secret.
fn asymmetric() -> Vec<String> {
    [
        "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
    ]
    .map(str::to_owned)
    .into()
}

/// Signatures by their names.
pub(super) fn algorithms(names: &[String]) -> Result<Vec<CoreJwsSigningAlgorithm>, String> {
    let parse = |name: &String| match serde_json::from_value(Value::from(name.as_str())) {
        Ok(CoreJwsSigningAlgorithm::None | CoreJwsSigningAlgorithm::EcdsaP521Sha512) | Err(_) => Err(format!(
            "`{name}` is no signature that can be verified: use {} or HS256, HS384, HS512",
            asymmetric().join(", ")
        )),
        Ok(algorithm) => Ok(algorithm),
    };
    names.iter().map(parse).collect()
}

pub(super) fn asymmetric_algorithms() -> Vec<CoreJwsSigningAlgorithm> {
    algorithms(&asymmetric()).unwrap_or_default()
}

fn is_symmetric(name: &str) -> bool {
    name.starts_with("HS")
}

/// Whether an address is safe from listeners: TLS, or this machine itself.
pub(super) fn is_safe(url: &Url) -> bool {
    let is_local = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    };
    url.host().is_some() && (url.scheme() == "https" || url.scheme() == "http" && is_local)
}

/// The address in a setting.
fn address(what: &str, text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("{what} `{text}` is no address ({error})"))?;
    if !is_safe(&url) || !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(format!(
            "{what} `{text}` must begin with https:// (http:// for this machine only), without a password and without `#`"
        ));
    }
    Ok(url)
}

impl SignIn {
    /// Checks what can be checked without opening anything.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(text) = &self.public_url {
            match address("registry.sign_in.public_url", text) {
                Ok(url) if url.path() != "/" || url.query().is_some() => problems.push(format!(
                    "registry.sign_in.public_url `{text}` must be scheme, host and port alone, as in https://yard.example"
                )),
                Ok(_) => {}
                Err(problem) => problems.push(problem),
            }
        } else if !self.providers.is_empty() {
            problems.push("registry.sign_in.public_url is missing: providers send browsers back there".to_owned());
        }
        let mut names = BTreeSet::new();
        for provider in &self.providers {
            let what = format!("registry.sign_in.providers `{}`", provider.name);
            if !names.insert(&provider.name) {
                problems.push(format!("{what} is there twice: give each its own name"));
            }
            problems.extend(
                provider
                    .problems()
                    .into_iter()
                    .map(|problem| format!("{what}: {problem}")),
            );
        }
        let mut names = BTreeSet::new();
        for workload in &self.workloads {
            let what = format!("registry.sign_in.workloads `{}`", workload.name);
            if !names.insert(&workload.name) {
                problems.push(format!("{what} is there twice: give each its own name"));
            }
            if workload.audience.is_none() && self.public_url.is_none() {
                problems.push(format!(
                    "{what}: audience is missing, and there is no public_url in its place"
                ));
            }
            problems.extend(
                workload
                    .problems()
                    .into_iter()
                    .map(|problem| format!("{what}: {problem}")),
            );
        }
        problems
    }

    /// The address of this installation, without a slash at its end.
    pub(crate) fn origin(&self) -> Option<&str> {
        self.public_url.as_deref().map(|url| url.trim_end_matches('/'))
    }

    /// The roles that the configuration gives to groups.
    ///
    /// At each start of the registry its bindings of this origin become these: what is taken out of the configuration is gone
    /// then. They are rows as all others and not a part of the state of one process, so that every process decides the same
    /// whatever its own configuration says, admins see them in the list, and the audit chain tells when they changed. They
    /// are bound to groups and not to those who sign in: who is new in the group has the roles at once, and who is not in it
    /// any more has them no longer.
    #[must_use]
    pub fn bindings(&self) -> Vec<Binding> {
        let mut bindings = Vec::new();
        for provider in &self.providers {
            for (group, grants) in &provider.group_roles {
                let subject = Subject::Group(format!("{}{group}", provider.group_prefix));
                bindings.extend(grants.iter().map(|grant| Binding {
                    name: binding_name(&provider.name, &subject, grant),
                    subject: subject.clone(),
                    grant: grant.clone(),
                }));
            }
        }
        bindings.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        bindings.dedup_by(|one, other| one.name == other.name);
        bindings
    }
}

/// A name that changes with what is bound, and that no admin can choose: names of bindings have no slash.
fn binding_name(provider: &str, subject: &Subject, grant: &Grant) -> String {
    let mut digest = hex::encode(Sha256::digest(format!("{subject} {grant}")));
    digest.truncate(BINDING_DIGITS);
    format!("{BINDING_PREFIX}{provider}/{digest}")
}

impl Provider {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        problems.extend(
            check_name("a provider", &self.name)
                .err()
                .map(|error| error.to_string()),
        );
        problems.extend(address("issuer", &self.issuer).err());
        if self.client_id.is_empty() {
            problems.push(
                "client_id is missing: it is the name under which the provider knows this installation".to_owned(),
            );
        }
        if self.algorithms.is_empty() {
            problems.push("algorithms is empty: leave it out for the usual ones".to_owned());
        }
        problems.extend(algorithms(&self.algorithms).err());
        let secret = self.client_secret.as_ref().map_or(0, |secret| secret.reveal().len());
        if self.algorithms.iter().any(|name| is_symmetric(name)) && secret < MIN_SIGNING_SECRET {
            problems.push(format!(
                "signatures by the client secret need one of at least {MIN_SIGNING_SECRET} bytes: take another algorithm"
            ));
        }
        let groups = self.group_roles.keys().chain(&self.allowed_groups);
        for group in groups {
            let name = format!("{}{group}", self.group_prefix);
            problems.extend(check_identity_name(&name).err().map(|error| error.to_string()));
        }
        problems
    }

    /// What the sign-in page calls it.
    pub(crate) fn label(&self) -> &str {
        self.label.as_deref().unwrap_or(&self.name)
    }
}

impl Workload {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        problems.extend(
            check_name("an issuer of workloads", &self.name)
                .err()
                .map(|error| error.to_string()),
        );
        if Url::parse(&self.issuer).is_err() {
            problems.push(format!(
                "issuer `{}` is no address: write what the claim `iss` of its tokens says",
                self.issuer
            ));
        }
        match self.key_source() {
            Ok(KeySource::Discovery) => problems.extend(address("issuer", &self.issuer).err()),
            Ok(KeySource::Address(_) | KeySource::File(_)) => {}
            Err(problem) => problems.push(problem),
        }
        if self.lifetime < MIN_LIFETIME || self.lifetime > MAX_LIFETIME {
            problems.push(format!(
                "lifetime must be between {} and {} minutes",
                MIN_LIFETIME.as_secs() / 60,
                MAX_LIFETIME.as_secs() / 60
            ));
        }
        if self.rules.is_empty() {
            problems.push("rules is empty: no token would open anything".to_owned());
        }
        for (index, rule) in self.rules.iter().enumerate() {
            let what = format!("rule {}", index + 1);
            if rule.claims.values().all(|pattern| pattern.chars().all(|c| c == '*')) {
                problems.push(format!(
                    "{what} fits every token of the issuer: name a claim that tells them apart"
                ));
            }
            if let Err(error) = check_identity_name(&rule.service_account) {
                problems.push(format!("{what}: service_account: {error}"));
            }
        }
        problems
    }

    /// Where its keys come from.
    pub(super) fn key_source(&self) -> Result<KeySource, String> {
        let Some(text) = &self.jwks_uri else {
            return Ok(KeySource::Discovery);
        };
        if let Some(path) = text.strip_prefix("file://") {
            return Ok(KeySource::File(path.into()));
        }
        if text.starts_with('/') {
            return Ok(KeySource::File(text.into()));
        }
        address("jwks_uri", text).map(KeySource::Address)
    }
}

/// Where an issuer's keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// From where the issuer says.
    Discovery,
    /// From an address.
    Address(Url),
    /// From a file.
    File(PathBuf),
}

//! Where webhooks may go. Who declares one must not reach, through the server, what only the server reaches.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::time::timeout;
use url::{Host, Url};

use crate::{
    error::{Error, Result},
    model::mlflow_registry::shown,
};

/// The longest that looking up a name may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// The most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 16;

/// What an operator allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) allow_http: bool,
    pub(super) allow_private: bool,
}

/// How far an address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Anywhere.
    Public,
    /// This machine, and networks that belong to somebody.
    Private,
    /// Neighbours, the metadata services of clouds, and what is no address of one machine.
    Never,
}

/// Addresses at which machines in clouds are told their credentials, where the networks of [`Reach::Never`] do not have them.
const METADATA: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

fn reach(address: IpAddr) -> Reach {
    if METADATA.contains(&address) {
        return Reach::Never;
    }
    match address {
        IpAddr::V4(address) => reach_v4(address),
        IpAddr::V6(address) => match embedded(address) {
            Some(inner) => reach(IpAddr::V4(inner)),
            None => reach_v6(address),
        },
    }
}

fn reach_v4(address: Ipv4Addr) -> Reach {
    match address.octets() {
        [10 | 127, ..] | [192, 168, ..] | [172, 16..=31, ..] | [100, 64..=127, ..] => Reach::Private,
        // This network, link-local, protocols, documentation, benchmarks, multicast, and what is reserved.
        [0 | 224..=255, ..]
        | [169, 254, ..]
        | [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _] => Reach::Never,
        _ => Reach::Public,
    }
}

fn reach_v6(address: Ipv6Addr) -> Reach {
    let segments = address.segments();
    // Protocols, documentation.
    let is_special = matches!(segments, [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, ..]);
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] | [0xfc00..=0xfdff, ..] => Reach::Private,
        [0x2000..=0x3fff, ..] if !is_special => Reach::Public,
        _ => Reach::Never,
    }
}

/// The IPv4 address to which an IPv6 address leads.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let joined = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        // Mapped and translated ones, and 6to4.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            Some(joined(high, low))
        }
        _ => None,
    }
}

/// An address to which nothing is sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{host}` leads to {address}, {}", if *.can_be_allowed { NOT_ALLOWED } else { NEVER })]
pub(super) struct Refused {
    host: String,
    address: IpAddr,
    can_be_allowed: bool,
}

const NOT_ALLOWED: &str =
    "which is not public: the operator can allow that with `registry.webhooks.allow_private_addresses`";
const NEVER: &str = "to which webhooks never go";

impl Rules {
    fn check_address(self, host: &str, address: IpAddr) -> Result<(), Refused> {
        let can_be_allowed = match reach(address) {
            Reach::Public => return Ok(()),
            Reach::Private if self.allow_private => return Ok(()),
            Reach::Private => true,
            Reach::Never => false,
        };
        Err(Refused {
            host: host.to_owned(),
            address,
            can_be_allowed,
        })
    }

    /// Reads an address, and refuses one that can never be right. The names in it are not looked up.
    pub(super) fn read(self, text: &str) -> Result<Url> {
        let text_shown = shown(text);
        if text.trim().is_empty() {
            return Err(Error::request(format!(
                "Webhook URL cannot be empty or just whitespace: '{text_shown}'"
            )));
        }
        let scheme = scheme(text);
        let is_allowed = scheme == "https" || (scheme == "http" && self.allow_http);
        if !is_allowed {
            let (allowed, remedy) = match (self.allow_http, scheme.as_str()) {
                (true, _) => ("http, https", ""),
                (false, "http") => (
                    "https",
                    " The operator can allow http with `registry.webhooks.allow_http`.",
                ),
                (false, _) => ("https", ""),
            };
            return Err(Error::request(format!(
                "Invalid webhook URL scheme: '{}'. Allowed schemes are: {allowed}.{remedy}",
                shown(&scheme)
            )));
        }
        let no_host = || Error::request(format!("Webhook URL must include a hostname: '{text_shown}'"));
        // Browsers pass over further slashes, and would take what follows for the host.
        let after = text.get(scheme.len()..).unwrap_or_default();
        let authority = after.strip_prefix("://").ok_or_else(no_host)?;
        if authority.is_empty() || authority.starts_with(['/', '\\', '?', '#']) {
            return Err(no_host());
        }
        let invalid = |error: url::ParseError| Error::request(format!("Invalid webhook URL '{text_shown}': {error}"));
        let url = Url::parse(text).map_err(invalid)?;
        self.check_literal(&url).map_err(|refused| not_public(&refused))?;
        Ok(url)
    }

    /// Refuses an address that is written as a number.
    pub(super) fn check_literal(self, url: &Url) -> Result<(), Refused> {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(_)) | None => return Ok(()),
        };
        self.check_address(url.host_str().unwrap_or_default(), address)
    }

    /// Refuses a name that leads where nothing is sent. It is looked up again when something is sent.
    pub(super) async fn check_name(self, url: &Url) -> Result<()> {
        let Some(Host::Domain(name)) = url.host() else {
            return Ok(());
        };
        // Where everything but what is refused at sending is allowed, the name need not be known here yet.
        if self.allow_private {
            return Ok(());
        }
        match self.look_up(name).await {
            Ok(_) => Ok(()),
            Err(LookupError::Refused(refused)) => Err(not_public(&refused)),
            Err(LookupError::Unknown(problem)) => Err(Error::request(format!(
                "Cannot resolve Webhook URL hostname '{}': {problem}",
                shown(name)
            ))),
        }
    }

    /// The addresses of a name. One that is refused refuses all: which is taken is not for the name's owner to choose.
    async fn look_up(self, name: &str) -> Result<Vec<SocketAddr>, LookupError> {
        let unknown = |problem: String| LookupError::Unknown(problem);
        let found = timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((name, 0)))
            .await
            .map_err(|_| unknown("the name was not found in time".to_owned()))?;
        let found = found.map_err(|error| unknown(error.to_string()))?;
        let addresses: Vec<SocketAddr> = found.take(MAX_ADDRESSES).collect();
        if addresses.is_empty() {
            return Err(unknown("the name has no address".to_owned()));
        }
        for address in &addresses {
            self.check_address(name, address.ip()).map_err(LookupError::Refused)?;
        }
        Ok(addresses)
    }
}

/// What comes before the first colon, if that can be a scheme.
fn scheme(text: &str) -> String {
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    if is_scheme {
        scheme.to_ascii_lowercase()
    } else {
        String::new()
    }
}

fn not_public(refused: &Refused) -> Error {
    Error::request(format!(
        "Webhook URL must not resolve to a non-public IP address. {refused}"
    ))
}

/// A name without addresses that are used.
#[derive(Debug, thiserror::Error)]
enum LookupError {
    #[error(transparent)]
    Refused(Refused),
    #[error("the name cannot be looked up: {0}")]
    Unknown(String),
}

/// Looks up names for the client: what is checked here is what it connects to.
pub(super) struct Lookup(pub(super) Rules);

impl Resolve for Lookup {
    fn resolve(&self, name: Name) -> Resolving {
        let rules = self.0;
        Box::pin(async move {
            match rules.look_up(name.as_str()).await {
                Ok(addresses) => Ok(Box::new(addresses.into_iter()) as Addrs),
                Err(LookupError::Refused(refused)) => Err(refused.into()),
                Err(unknown) => Err(unknown.into()),
            }
        })
    }
}

/// Whether the request ended because of where it would have gone.
pub(super) fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        if error.is::<Refused>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: Rules = Rules {
        allow_http: false,
        allow_private: false,
    };
    const LAPTOP: Rules = Rules {
        allow_http: true,
        allow_private: true,
    };

    #[test]
    fn addresses_that_lead_inside_are_known_in_every_spelling() {
        for (address, expected) in [
            ("8.8.8.8", Reach::Public),
            ("2606:4700::1111", Reach::Public),
            ("127.0.0.1", Reach::Private),
            ("10.1.2.3", Reach::Private),
            ("172.31.0.1", Reach::Private),
            ("172.32.0.1", Reach::Public),
            ("192.168.1.1", Reach::Private),
            ("100.64.0.1", Reach::Private),
            ("::1", Reach::Private),
            ("fd12::1", Reach::Private),
            ("::ffff:127.0.0.1", Reach::Private),
            ("2002:7f00:1::", Reach::Private),
            ("64:ff9b::10.0.0.1", Reach::Private),
            ("::ffff:169.254.169.254", Reach::Never),
            ("169.254.169.254", Reach::Never),
            ("100.100.100.200", Reach::Never),
            ("fd00:ec2::254", Reach::Never),
            ("fe80::1", Reach::Never),
            ("0.0.0.0", Reach::Never),
            ("::", Reach::Never),
            ("224.0.0.1", Reach::Never),
            ("255.255.255.255", Reach::Never),
            ("ff02::1", Reach::Never),
            ("2001:db8::1", Reach::Never),
        ] {
            assert_eq!(reach(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn numbers_in_addresses_are_read_as_the_client_reads_them() {
        for bad in [
            "https://127.0.0.1/",
            "https://127.1/",
            "https://0x7f000001/",
            "https://2130706433/",
            "https://0177.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]:8080/x",
            "https://user@127.0.0.1/",
        ] {
            let refused = STRICT.read(bad).unwrap_err().to_string();
            assert!(
                refused.contains("must not resolve to a non-public IP address"),
                "{bad}: {refused}"
            );
            assert!(LAPTOP.read(bad).is_ok(), "{bad}");
        }
        let refused = LAPTOP.read("http://169.254.169.254/latest/meta-data").unwrap_err();
        assert!(refused.to_string().contains("never go"), "{refused}");
        assert!(STRICT.read("https://1.1.1.1/").is_ok() && STRICT.read("https://hooks.example.com/x?y=z").is_ok());
    }

    #[test]
    fn refusals_say_what_mlflow_says() {
        for (rules, url, expected) in [
            (STRICT, "  ", "Webhook URL cannot be empty or just whitespace: '  '"),
            (
                STRICT,
                "nourl",
                "Invalid webhook URL scheme: ''. Allowed schemes are: https.",
            ),
            (
                LAPTOP,
                "ftp://x/",
                "Invalid webhook URL scheme: 'ftp'. Allowed schemes are: http, https.",
            ),
            (LAPTOP, "http:///x", "Webhook URL must include a hostname: 'http:///x'"),
            (LAPTOP, "http:x", "Webhook URL must include a hostname: 'http:x'"),
        ] {
            assert_eq!(rules.read(url).unwrap_err().to_string(), expected);
        }
        let refused = STRICT.read("http://example.com/").unwrap_err().to_string();
        assert!(
            refused.contains("Allowed schemes are: https.") && refused.contains("allow_http"),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn a_name_is_refused_for_where_it_leads() {
        let url = Url::parse("https://localhost/").unwrap();
        let refused = STRICT.check_name(&url).await.unwrap_err().to_string();
        assert!(
            refused.contains("must not resolve to a non-public IP address"),
            "{refused}"
        );
        assert!(LAPTOP.check_name(&url).await.is_ok());
    }
}

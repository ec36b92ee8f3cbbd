//! Where a request came from: behind proxies and other processes of the installation, the client's own address.

use std::{fmt, net::IpAddr, str::FromStr};

use http::{HeaderMap, HeaderName, HeaderValue};
use modelyard_common::tls::Connection;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The addresses that a request passed, the client's first; each proxy adds the one that it was called from.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The most addresses that are looked at.
const MAX_HOPS: usize = 16;

/// A range of addresses, such as `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// How many leading bits count.
    prefix: u8,
}

/// A text that is no network.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no network: write it as 10.0.0.0/8 or as an address")]
pub struct InvalidNetwork(String);

fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    }
}

impl Network {
    fn contains(self, address: IpAddr) -> bool {
        let ((own, width), (other, other_width)) = (bits(self.address), bits(address.to_canonical()));
        let shift = u32::from(width - self.prefix);
        // All bits shifted out: every address of the family is in it.
        width == other_width && (own ^ other).checked_shr(shift).unwrap_or(0) == 0
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidNetwork(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let (_, width) = bits(address);
        let prefix = match prefix {
            Some(prefix) => prefix.parse().map_err(|_| invalid())?,
            None => width,
        };
        if prefix > width {
            return Err(invalid());
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Network {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Network".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "description": "A range of addresses, such as `10.0.0.0/8`, or one address."})
    }
}

/// Whose word about the origin of a request is believed.
pub struct Origins {
    trusted: Vec<Network>,
}

impl Origins {
    /// The proxies of the configuration.
    pub const fn new(trusted: Vec<Network>) -> Self {
        Self { trusted }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }

    /// Puts the client's address in the place of the last proxy's: the last address in the header that no trusted proxy has.
    pub fn apply(&self, connection: &mut Connection, headers: &HeaderMap) {
        if !self.trusts(connection.remote.ip()) {
            return;
        }
        let values = headers.get_all(FORWARDED_FOR).iter().rev();
        let hops = values.flat_map(|value| value.as_bytes().rsplit(|&byte| byte == b','));
        let addresses = hops.map(|hop| str::from_utf8(hop).ok()?.trim().parse::<IpAddr>().ok());
        for address in addresses.take(MAX_HOPS) {
            // What cannot be read ends what is believed.
            let Some(address) = address else {
                break;
            };
            connection.remote.set_ip(address);
            if !self.trusts(address) {
                break;
            }
        }
    }
}

/// Says to whom a request is forwarded where it came from; what the client said of that is kept only where it was believed.
pub fn name(connection: &Connection, headers: &mut HeaderMap) {
    headers.remove(FORWARDED_FOR);
    if let Ok(value) = HeaderValue::from_str(&connection.remote.ip().to_string()) {
        headers.insert(FORWARDED_FOR, value);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn seen(trusted: &[&str], remote: &str, forwarded: &[&str]) -> String {
        let forwarded: Vec<&[u8]> = forwarded.iter().map(|value| value.as_bytes()).collect();
        seen_of_bytes(trusted, remote, &forwarded)
    }

    fn seen_of_bytes(trusted: &[&str], remote: &str, forwarded: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        let mut connection = Connection {
            remote: SocketAddr::new(remote.parse().unwrap(), 4711),
            verified_peer: false,
        };
        for value in forwarded {
            headers.append(FORWARDED_FOR, HeaderValue::from_bytes(value).unwrap());
        }
        let trusted = trusted.iter().map(|network| network.parse().unwrap()).collect();
        Origins::new(trusted).apply(&mut connection, &headers);
        name(&connection, &mut headers);
        headers[FORWARDED_FOR].to_str().unwrap().to_owned()
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let nets = ["10.0.0.0/8", "2001:db8::/32"];
        assert_eq!(seen(&[], "10.0.0.1", &["192.0.2.7"]), "10.0.0.1");
        assert_eq!(seen(&nets, "192.0.2.1", &["192.0.2.7"]), "192.0.2.1");
        assert_eq!(seen(&nets, "10.0.0.1", &["192.0.2.7"]), "192.0.2.7");
        assert_eq!(seen(&nets, "10.0.0.1", &[]), "10.0.0.1");
        // A client that forges the header only writes before what the proxies write.
        assert_eq!(seen(&nets, "10.0.0.1", &["1.2.3.4, 192.0.2.7, 10.0.0.2"]), "192.0.2.7");
        assert_eq!(seen(&nets, "10.0.0.1", &["1.2.3.4", "192.0.2.7"]), "192.0.2.7");
        assert_eq!(seen(&nets, "10.0.0.1", &["192.0.2.7, what, 10.0.0.2"]), "10.0.0.2");
        // Nor does it gain by bytes that are no text, in a header of its own or in one that a proxy went on with.
        let seen_of_bytes = |forwarded: &[&[u8]]| seen_of_bytes(&nets, "10.0.0.1", forwarded);
        assert_eq!(seen_of_bytes(&[b"1.2.3.4", b"\xff, 192.0.2.7"]), "192.0.2.7");
        assert_eq!(seen_of_bytes(&[b"1.2.3.4", b"\xff, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(seen(&nets, "2001:db8::1", &["2001:dead::1"]), "2001:dead::1");
        assert_eq!(seen(&nets, "::ffff:10.0.0.1", &["192.0.2.7"]), "192.0.2.7");
    }

    #[test]
    fn networks_are_read() {
        for (text, written) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("127.0.0.1", "127.0.0.1/32"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), written);
        }
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("192.0.2.1".parse().unwrap()) && !all.contains("::1".parse().unwrap()));
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "host", "10.0.0.0/-1"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}

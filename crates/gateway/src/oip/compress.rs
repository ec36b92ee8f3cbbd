//! Compression of requests, and of answers to predictions for clients that ask for it. Nothing else is compressed: some
//! clients read errors and metadata as they come.

use std::io::{self, Read, Write as _};

use bytes::Bytes;
use flate2::{
    Compression,
    read::{GzDecoder, ZlibDecoder},
    write::{GzEncoder, ZlibEncoder},
};
use http::HeaderValue;

use super::MAX_BODY_BYTES;
use crate::error::{Error, Result};

/// Smaller answers are sent as they are: there is nothing to gain.
const MIN_BYTES: usize = 1024;
/// Longer lists of encodings are not read.
const MAX_ENCODINGS: usize = 16;

/// How an answer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// RFC 1952.
    Gzip,
    /// With zlib's wrapper (RFC 1950), as HTTP means it.
    Deflate,
}

impl Encoding {
    /// Its name in headers.
    pub(crate) const fn header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        })
    }

    /// The one that a client likes most of what it accepts; of equal ones gzip. None: no compression.
    pub(crate) fn accepted(header: Option<&HeaderValue>) -> Option<Self> {
        let header = header?.to_str().ok()?;
        let mut best = (0, None);
        for entry in header.split(',').take(MAX_ENCODINGS) {
            let mut parts = entry.split(';').map(str::trim);
            let encoding = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "gzip" | "x-gzip" | "*" => Some(Self::Gzip),
                "deflate" => Some(Self::Deflate),
                // The answer as it is, where the client likes that as much as compression.
                "identity" => None,
                _ => continue,
            };
            let quality = parts.find_map(|part| part.strip_prefix("q=")?.trim().parse::<f32>().ok());
            // In thousandths, which is as fine as HTTP has it.
            let quality = (quality.unwrap_or(1.0).clamp(0.0, 1.0) * 1000.0) as u32;
            let is_better = quality > best.0 || (quality == best.0 && encoding == Some(Self::Gzip));
            if quality > 0 && is_better {
                best = (quality, encoding);
            }
        }
        best.1
    }
}

/// The body compressed; none where it is small, or would not become smaller.
pub(crate) fn compress(body: &[u8], encoding: Encoding) -> Option<Bytes> {
    if body.len() < MIN_BYTES {
        return None;
    }
    let room = Vec::with_capacity(body.len() / 2);
    let compressed = match encoding {
        Encoding::Gzip => {
            let mut encoder = GzEncoder::new(room, Compression::fast());
            encoder.write_all(body).and_then(|()| encoder.finish())
        }
        Encoding::Deflate => {
            let mut encoder = ZlibEncoder::new(room, Compression::fast());
            encoder.write_all(body).and_then(|()| encoder.finish())
        }
    };
    // Writing into memory does not fail.
    compressed
        .ok()
        .filter(|compressed| compressed.len() < body.len())
        .map(Bytes::from)
}

/// A request's body as it was before its client compressed it.
///
/// # Errors
/// `UnsupportedMedia`, `InvalidRequest` if it is broken, `BodyTooLarge`.
pub(crate) fn decompress(encoding: Option<&HeaderValue>, body: Bytes) -> Result<Bytes> {
    let Some(encoding) = encoding else {
        return Ok(body);
    };
    let read = match encoding.as_bytes() {
        b"identity" | b"" => return Ok(body),
        b"gzip" => unpack(GzDecoder::new(body.as_ref()), gzip_length(&body)),
        b"deflate" => unpack(ZlibDecoder::new(body.as_ref()), body.len().saturating_mul(4)),
        other => {
            return Err(Error::UnsupportedMedia {
                detail: format!(
                    "content encoding `{}` is not read: use gzip, deflate or none",
                    other.escape_ascii()
                ),
            });
        }
    };
    let plain = read.map_err(|error| Error::invalid(format!("the compressed body is broken: {error}")))?;
    if plain.len() > MAX_BODY_BYTES {
        return Err(Error::BodyTooLarge {
            limit_bytes: MAX_BODY_BYTES,
        });
    }
    Ok(plain.into())
}

/// How long a gzip body says that it is without its compression (RFC 1952, section 2.3.1), where that can be.
fn gzip_length(body: &[u8]) -> usize {
    const DEFLATE_FACTOR_MAX: usize = 1032;
    let said = body
        .last_chunk()
        .map_or(0, |length| u32::from_le_bytes(*length) as usize);
    said.min(body.len().saturating_mul(DEFLATE_FACTOR_MAX))
}

/// What `packed` holds, of which about `expected` bytes are made room for: at most one byte more than may be, which
/// tells that there is more.
///
/// A vector that grows by itself would have copied up to twice the limit before that is known.
fn unpack(mut packed: impl Read, expected: usize) -> io::Result<Vec<u8>> {
    const LIMIT: usize = MAX_BODY_BYTES + 1;
    let mut plain = Vec::new();
    let mut room = expected.saturating_add(1).min(LIMIT);
    loop {
        plain.reserve_exact(room);
        let read = packed.by_ref().take(room as u64).read_to_end(&mut plain)?;
        if read < room || plain.len() == LIMIT {
            return Ok(plain);
        }
        room = plain.len().min(LIMIT - plain.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_what_the_client_likes_most() {
        for (header, expected) in [
            ("gzip", Some(Encoding::Gzip)),
            ("deflate", Some(Encoding::Deflate)),
            ("deflate, gzip", Some(Encoding::Gzip)),
            ("gzip;q=0.5, deflate;q=0.9", Some(Encoding::Deflate)),
            ("gzip;q=0, br", None),
            ("br, identity", None),
            ("*", Some(Encoding::Gzip)),
            ("", None),
        ] {
            let found = Encoding::accepted(Some(&HeaderValue::from_static(header)));
            assert_eq!(found, expected, "{header}");
        }
        assert_eq!(Encoding::accepted(None), None);
    }

    #[test]
    fn what_is_compressed_comes_back() {
        let body: Vec<u8> = (0..20_000_u32).flat_map(|number| (number % 7).to_le_bytes()).collect();
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let compressed = compress(&body, encoding).unwrap();
            assert_eq!(decompress(Some(&encoding.header()), compressed).unwrap(), body);
        }
        assert_eq!(compress(b"short", Encoding::Gzip), None);
        assert_eq!(decompress(None, body.clone().into()).unwrap(), body);
    }

    #[test]
    fn what_is_said_of_the_length_does_not_change_what_is_unpacked() {
        let body = vec![7; 100_000];
        for expected in [0, 1, body.len() - 1, body.len(), body.len() + 1, usize::MAX] {
            let plain = unpack(body.as_slice(), expected).unwrap();
            assert_eq!(plain, body, "{expected}");
        }
    }

    #[test]
    fn more_than_may_be_is_read_by_one_byte() {
        for expected in [0, MAX_BODY_BYTES, usize::MAX] {
            let plain = unpack(io::repeat(0), expected).unwrap();
            assert_eq!(plain.len(), MAX_BODY_BYTES + 1);
            assert_eq!(plain.capacity(), plain.len(), "grown by itself");
        }
        let bomb = compress(&vec![0; MAX_BODY_BYTES + 1], Encoding::Gzip).unwrap();
        let refused = decompress(Some(&Encoding::Gzip.header()), bomb);
        assert!(matches!(refused, Err(Error::BodyTooLarge { .. })));
    }
}

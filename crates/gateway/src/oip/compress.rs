//! Compression of answers to predictions, for clients that ask for it. Nothing else is compressed: some clients read errors and
//! metadata as they come.

use std::io::Write as _;

use bytes::Bytes;
use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};
use http::HeaderValue;

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

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::{GzDecoder, ZlibDecoder};

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
        let (mut gzip, mut deflate) = (Vec::new(), Vec::new());
        let compressed = compress(&body, Encoding::Gzip).unwrap();
        GzDecoder::new(compressed.as_ref()).read_to_end(&mut gzip).unwrap();
        let compressed = compress(&body, Encoding::Deflate).unwrap();
        ZlibDecoder::new(compressed.as_ref()).read_to_end(&mut deflate).unwrap();
        assert!(gzip == body && deflate == body);
        assert_eq!(compress(b"short", Encoding::Gzip), None);
    }
}

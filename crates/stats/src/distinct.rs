//! How many different values a stream has, in bounded memory: HyperLogLog (Flajolet et al. 2007) over a hash that is the
//! same on every machine and in every release, because sketches are stored and merged later.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bits of the hash that choose the register: 2^10 registers give a standard error of 3.25 %.
const PRECISION: u32 = 10;
const REGISTERS: usize = 1 << PRECISION;
/// Bias correction of the harmonic mean for this number of registers.
const ALPHA: f64 = 0.721_3 / (1.0 + 1.079 / REGISTERS as f64);
/// Below this many times the registers, counting the empty ones is the better estimate.
const LINEAR_LIMIT: f64 = 2.5;

/// Scrambles 64 bits (the finalizer of SplitMix64): every output bit depends on every input bit.
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Hash of a text, stable over machines and releases.
pub(crate) fn hash_text(text: &str) -> u64 {
    let mut hash = mix(text.len() as u64);
    for chunk in text.as_bytes().chunks(8) {
        let mut word = [0_u8; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = mix(hash ^ u64::from_le_bytes(word));
    }
    hash
}

/// Hash of a number, stable over machines and releases.
pub(crate) fn hash_number(value: f64) -> u64 {
    mix(value.to_bits())
}

/// Mergeable estimate of a number of different values; standard error 3.25 %.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DistinctSketch {
    registers: Vec<u8>,
}

impl Default for DistinctSketch {
    fn default() -> Self {
        Self {
            registers: vec![0; REGISTERS],
        }
    }
}

impl DistinctSketch {
    /// Adds a value by its hash.
    pub(crate) fn insert(&mut self, hash: u64) {
        let register = (hash >> (64 - PRECISION)) as usize;
        // The bit below the used ones bounds the run of zeros.
        let rest = (hash << PRECISION) | (1 << (PRECISION - 1));
        let rank = rest.leading_zeros() as u8 + 1;
        let slot = &mut self.registers[register];
        *slot = (*slot).max(rank);
    }

    /// Adds what `other` saw; the result is that of one sketch over both streams.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.registers.iter_mut().zip(&other.registers) {
            *mine = (*mine).max(*theirs);
        }
    }

    /// Estimated number of different values.
    pub fn estimate(&self) -> u64 {
        let registers = REGISTERS as f64;
        let (mut sum, mut empty) = (0.0, 0_u32);
        for &rank in &self.registers {
            sum += (-f64::from(rank)).exp2();
            empty += u32::from(rank == 0);
        }
        let raw = ALPHA * registers * registers / sum;

        let estimate = if raw <= LINEAR_LIMIT * registers && empty > 0 {
            registers * (registers / f64::from(empty)).ln()
        } else {
            raw
        };
        estimate.round() as u64
    }
}

/// Two hexadecimal digits a register: a fifth of the size of a JSON array.
impl Serialize for DistinctSketch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use std::fmt::Write as _;
        let mut text = String::with_capacity(2 * REGISTERS);
        for rank in &self.registers {
            write!(text, "{rank:02x}").map_err(serde::ser::Error::custom)?;
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for DistinctSketch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() != 2 * REGISTERS || !text.is_ascii() {
            return Err(de::Error::custom("distinct sketch has a wrong length"));
        }
        let registers = (0..REGISTERS)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16))
            .collect::<Result<Vec<u8>, _>>()
            .map_err(de::Error::custom)?;
        if registers.iter().any(|&rank| u32::from(rank) > 64) {
            return Err(de::Error::custom("distinct sketch has a rank over 64"));
        }
        Ok(Self { registers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(range: std::ops::Range<u32>) -> DistinctSketch {
        let mut sketch = DistinctSketch::default();
        for value in range {
            sketch.insert(hash_number(f64::from(value)));
        }
        sketch
    }

    #[test]
    fn estimates_within_four_standard_errors() {
        for n in [0_u32, 1, 50, 1_000, 3_000, 20_000, 500_000] {
            let estimate = of(0..n).estimate() as f64;
            let allowed = 4.0 * 0.0325 * f64::from(n);
            assert!((estimate - f64::from(n)).abs() <= allowed, "{n}: {estimate}");
        }
    }

    #[test]
    fn merging_parts_equals_the_whole_and_survives_json() {
        let mut merged = of(0..7_000);
        merged.merge(&of(5_000..12_000));
        assert_eq!(merged, of(0..12_000));
        let json = serde_json::to_string(&merged).unwrap();
        assert_eq!(serde_json::from_str::<DistinctSketch>(&json).unwrap(), merged);
        assert!(serde_json::from_str::<DistinctSketch>("\"00\"").is_err());
    }

    #[test]
    fn text_hashes_depend_on_every_byte_and_the_length() {
        let hashes = ["", "a", "b", "aaaaaaaa", "aaaaaaaab", "aaaaaaaac", "a\0"].map(hash_text);
        for (i, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..i].contains(hash));
        }
    }
}

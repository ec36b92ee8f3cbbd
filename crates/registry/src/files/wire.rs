//! Walks over protobuf messages in a file without reading what nobody asked for, so that a model of gigabytes is looked at
//! in kilobytes.

use std::io::{self, BufReader, Read, Seek};

/// Why a message cannot be walked.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The bytes are no protobuf message.
    #[error("{0}")]
    Malformed(String),
    /// The file cannot be read.
    #[error(transparent)]
    Io(io::Error),
}

type Result<T> = std::result::Result<T, WireError>;

fn malformed(problem: impl Into<String>) -> WireError {
    WireError::Malformed(problem.into())
}

/// A field's header, with the reader behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// A number.
    Number {
        /// The field's number in the schema.
        number: u32,
        /// Its value.
        value: u64,
    },
    /// Bytes, text or a message of this length, which the caller reads, walks or skips.
    Bytes {
        /// The field's number in the schema.
        number: u32,
        /// Its length in bytes.
        length: u64,
    },
    /// Four or eight bytes, passed over.
    Fixed,
}

/// A file of protobuf messages.
pub struct Wire<R> {
    reader: BufReader<R>,
    position: u64,
    end: u64,
}

impl<R: Read + Seek> Wire<R> {
    /// A file of `size_bytes`.
    pub fn new(reader: R, size_bytes: u64) -> Self {
        Self {
            reader: BufReader::new(reader),
            position: 0,
            end: size_bytes,
        }
    }

    /// Where the file ends.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Where the reader stands.
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// The next field of the message that ends at `end`; None at its end.
    pub fn next(&mut self, end: u64) -> Result<Option<Field>> {
        if self.position == end {
            return Ok(None);
        }
        let tag = self.varint(end)?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0);
        let number = number.ok_or_else(|| malformed("it has a field without a number"))?;
        match tag & 7 {
            0 => Ok(Some(Field::Number {
                number,
                value: self.varint(end)?,
            })),
            1 => self.skip(8, end).map(|()| Some(Field::Fixed)),
            5 => self.skip(4, end).map(|()| Some(Field::Fixed)),
            2 => {
                let length = self.varint(end)?;
                if length > end - self.position {
                    return Err(malformed("it is cut off, or something else"));
                }
                Ok(Some(Field::Bytes { number, length }))
            }
            _ => Err(malformed("it is something else")),
        }
    }

    /// Passes over bytes.
    pub fn skip(&mut self, length: u64, end: u64) -> Result<()> {
        let step = i64::try_from(length).ok().filter(|_| length <= end - self.position);
        let step = step.ok_or_else(|| malformed("it is cut off, or something else"))?;
        self.reader.seek_relative(step).map_err(WireError::Io)?;
        self.position += length;
        Ok(())
    }

    /// Reads bytes that must not be more than `limit`.
    pub fn read(&mut self, length: u64, limit: u64, what: &str) -> Result<Vec<u8>> {
        if length > limit {
            return Err(malformed(format!("{what} has {length} bytes, more than {limit}")));
        }
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes).map_err(of_io)?;
        self.position += length;
        Ok(bytes)
    }

    fn varint(&mut self, end: u64) -> Result<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            if self.position >= end {
                return Err(malformed("it is cut off, or something else"));
            }
            let mut byte = [0];
            self.reader.read_exact(&mut byte).map_err(of_io)?;
            self.position += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(value);
            }
        }
        Err(malformed("it is something else"))
    }
}

fn of_io(error: io::Error) -> WireError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return malformed("it is cut off");
    }
    WireError::Io(error)
}

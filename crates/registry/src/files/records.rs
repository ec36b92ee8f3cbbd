//! Reading CSV so that no record of it is larger than memory: who parses it holds one record whole.

use std::io::{self, Read};

/// The largest record of a CSV file, in bytes.
pub const MAX_RECORD_BYTES: u64 = 16 << 20;

/// Where in a record the reader stands. As the parser does, it takes a quote for one only where a field begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    FieldStart,
    Field,
    Quoted,
    /// Behind a quote in a quoted field, which ends it or is the first of two.
    Quote,
}

/// A reader of CSV that refuses records that are too long or have too many fields before the parser has them.
pub struct Records<R> {
    reader: R,
    max_bytes: u64,
    max_fields: usize,
    place: Place,
    /// Of the record that is being read.
    bytes: u64,
    fields: usize,
    first_line: u64,
    line: u64,
    longest: u64,
}

impl<R: Read> Records<R> {
    /// Records of at most [`MAX_RECORD_BYTES`] and so many fields.
    pub const fn new(reader: R, max_fields: usize) -> Self {
        Self {
            reader,
            max_bytes: MAX_RECORD_BYTES,
            max_fields,
            place: Place::FieldStart,
            bytes: 0,
            fields: 1,
            first_line: 1,
            line: 1,
            longest: 0,
        }
    }

    /// The size of the longest record so far, in bytes.
    pub fn longest(&self) -> u64 {
        self.longest.max(self.bytes)
    }

    fn end_record(&mut self) {
        self.longest = self.longest.max(self.bytes);
        (self.bytes, self.fields) = (0, 1);
        self.place = Place::FieldStart;
    }

    fn pass(&mut self, byte: u8) {
        if self.bytes == 0 {
            self.first_line = self.line;
        }
        self.bytes += 1;
        self.line += u64::from(byte == b'\n');
        self.place = match (self.place, byte) {
            (Place::Quoted, b'"') => Place::Quote,
            (Place::FieldStart | Place::Quote, b'"') | (Place::Quoted, _) => Place::Quoted,
            (_, b'\n' | b'\r') => return self.end_record(),
            (_, b',') => {
                self.fields += 1;
                Place::FieldStart
            }
            _ => Place::Field,
        };
    }

    fn check(&self) -> io::Result<()> {
        let line = self.first_line;
        if self.bytes > self.max_bytes {
            return Err(io::Error::other(format!(
                "the row that begins at line {line} has more than {} bytes: close its quotes, or save the file as Parquet",
                self.max_bytes
            )));
        }
        if self.fields > self.max_fields {
            return Err(io::Error::other(format!(
                "the row that begins at line {line} has more than {} columns",
                self.max_fields
            )));
        }
        Ok(())
    }
}

impl<R: Read> Read for Records<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        for byte in buffer.iter().take(count) {
            self.pass(*byte);
            self.check()?;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str, max_bytes: u64, max_fields: usize) -> Result<u64, String> {
        let mut records = Records::new(content.as_bytes(), max_fields);
        records.max_bytes = max_bytes;
        let mut passed = String::new();
        records.read_to_string(&mut passed).map_err(|error| error.to_string())?;
        assert_eq!(passed, content);
        Ok(records.longest())
    }

    #[test]
    fn records_end_where_the_parser_ends_them() {
        for (content, longest) in [
            ("", 0),
            ("a,b\n1,2\n", 4),
            ("a\r\n1234\r\n5", 5),
            ("\"a\nb\",c\nd\n", 8),
            ("\"a\"\"\nb\"\nc\n", 8),
            ("a\"b\nc\n", 4),
            ("\"a\"b\"\nc\n", 6),
            ("a\n123456", 6),
        ] {
            assert_eq!(read(content, 100, 10), Ok(longest), "{content:?}");
        }
    }

    #[test]
    fn what_is_too_long_is_named_by_its_line() {
        let long = format!("a,b\n1,2\n3,\"{}", "x\n".repeat(50));
        let refused = read(&long, 60, 10).unwrap_err();
        assert!(refused.contains("line 3 has more than 60 bytes"), "{refused}");
        assert_eq!(read(&long.replace('"', ""), 60, 10), Ok(4));
        let refused = read("a,b\n1,2,3\n", 60, 2).unwrap_err();
        assert!(refused.contains("line 2 has more than 2 columns"), "{refused}");
    }
}

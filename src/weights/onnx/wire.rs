//! The part of the wire format of Protocol Buffers (<https://protobuf.dev/programming-guides/encoding/>) that
//! onnx.proto uses: the fields of one message, one after the other, without a copy.
//!
//! facegrad has a reader of its own, because a general parser cannot be given a hostile file. Such parsers make an
//! object of several hundred bytes from an empty message of two, follow nested messages by recursion, and some
//! believe a length before they have seen the bytes. A model needs only about forty fields of nine messages. Here
//! the depth is that of the calls in `super::graph`, the time is linear, and memory is taken only for what is kept,
//! within the file's budget.

use crate::error::{Error, Result};

/// A field's value.
#[derive(Debug, Clone, Copy)]
pub enum Field<'a> {
    /// Integers, booleans and enumerations.
    Varint(u64),
    /// `double`, and integers of fixed width.
    Fixed64([u8; 8]),
    /// `float`, and integers of fixed width.
    Fixed32([u8; 4]),
    /// Strings, bytes, messages and packed numbers.
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    /// As a signed integer or enumeration.
    pub fn int(self) -> Result<i64> {
        match self {
            Field::Varint(value) => Ok(value as i64),
            _ => Err(damaged("a number of the wrong kind")),
        }
    }

    /// As bytes or a message.
    pub fn bytes(self) -> Result<&'a [u8]> {
        match self {
            Field::Bytes(bytes) => Ok(bytes),
            _ => Err(damaged("a number in place of a message")),
        }
    }

    /// As a string.
    pub fn text(self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| damaged("a name that is no UTF-8"))
    }
}

/// The fields of a message in their order: number and value.
pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

/// See [`fields`]. Ends after the first error.
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u64, Field<'a>)> {
        let tag = varint(&mut self.rest)?;
        let value = match tag & 7 {
            0 => Field::Varint(varint(&mut self.rest)?),
            1 => Field::Fixed64(fixed(&mut self.rest)?),
            2 => {
                let length = varint(&mut self.rest)?;
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                Field::Bytes(take(&mut self.rest, length)?)
            }
            5 => Field::Fixed32(fixed(&mut self.rest)?),
            // Groups (3 and 4) are of proto2; ONNX has none.
            other => return Err(damaged(&format!("a field of wire type {other}"))),
        };
        match tag >> 3 {
            0 => Err(damaged("a field of number 0")),
            number => Ok((number, value)),
        }
    }
}

/// Calls `each` with every number of a repeated field, which is packed or not.
pub fn ints(field: Field, mut each: impl FnMut(i64) -> Result<()>) -> Result<()> {
    match field {
        Field::Bytes(mut packed) => {
            while !packed.is_empty() {
                each(varint(&mut packed)? as i64)?;
            }
            Ok(())
        }
        single => each(single.int()?),
    }
}

/// Calls `each` with every number of `N` bytes of a repeated field, which is packed or not.
pub fn fixeds<const N: usize>(
    field: Field,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    match field {
        Field::Bytes(packed) if packed.len() % N == 0 => each(packed),
        Field::Fixed32(value) if N == 4 => each(&value),
        Field::Fixed64(value) if N == 8 => each(&value),
        _ => Err(damaged("numbers of the wrong kind")),
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let [byte] = fixed(bytes)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(damaged("a number of more than ten bytes"))
}

fn fixed<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N]> {
    let mut value = [0; N];
    value.copy_from_slice(take(bytes, N)?);
    Ok(value)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8]> {
    match bytes.split_at_checked(count) {
        Some((taken, rest)) => {
            *bytes = rest;
            Ok(taken)
        }
        None => Err(damaged("it ends inside a message")),
    }
}

/// The error for bytes that do not belong to an ONNX model.
pub fn damaged(what: &str) -> Error {
    Error::Format(format!("a damaged ONNX model ({what}); download it again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(bytes: &[u8]) -> String {
        let fields: Result<Vec<_>> = fields(bytes).collect();
        fields.unwrap_err().message().to_string()
    }

    #[test]
    fn a_length_of_2_to_the_40_is_not_believed() {
        assert!(error(&[0x12, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20]).contains("ends inside"));
    }

    #[test]
    fn a_number_without_end_is_refused() {
        assert!(
            error(&[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0])
                .contains("ten bytes")
        );
    }

    #[test]
    fn groups_are_refused() {
        assert!(error(&[0x0b, 0x0b, 0x0c]).contains("wire type 3"));
    }

    #[test]
    fn numbers_come_packed_or_one_by_one() {
        let mut read = vec![];
        for field in [Field::Bytes(&[1, 0x80, 1]), Field::Varint(u64::MAX)] {
            let push = |n| {
                read.push(n);
                Ok(())
            };
            ints(field, push).unwrap();
        }
        assert_eq!(read, [1, 128, -1]);
    }
}

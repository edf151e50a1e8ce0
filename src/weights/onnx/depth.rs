//! How deep a model's messages nest, before a recursive parser sees them: graphs inside attributes
//! and sequences inside types may nest without end, and a parser's stack does not.

use crate::error::{Result, bail};

/// Deeper than any exporter nests.
const MAX_DEPTH: usize = 40;

/// The messages of onnx.proto3 that can contain one of themselves.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    ValueInfo,
    Type,
    Sequence,
    Leaf,
}

impl Message {
    fn field(self, number: u64) -> Message {
        match (self, number) {
            (Message::Model, 7) => Message::Graph,
            (Message::Graph, 1) => Message::Node,
            (Message::Graph, 11..=13) => Message::ValueInfo,
            (Message::Node, 5) => Message::Attribute,
            (Message::Attribute, 6 | 11) => Message::Graph,
            (Message::ValueInfo, 2) => Message::Type,
            (Message::Type, 4) => Message::Sequence,
            (Message::Sequence, 1) => Message::Type,
            _ => Message::Leaf,
        }
    }
}

/// Fails where messages nest too deep; damage is left for the parser to find.
pub fn check(bytes: &[u8]) -> Result<()> {
    walk(bytes, Message::Model, 0)
}

fn walk(mut bytes: &[u8], message: Message, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        bail!(Limit, "the model's messages nest deeper than {MAX_DEPTH}");
    }
    while !bytes.is_empty() {
        let Some(tag) = varint(&mut bytes) else {
            return Ok(());
        };
        match tag & 7 {
            0 => {
                varint(&mut bytes);
            }
            1 => bytes = bytes.get(8..).unwrap_or(&[]),
            5 => bytes = bytes.get(4..).unwrap_or(&[]),
            2 => {
                let length = varint(&mut bytes).and_then(|n| usize::try_from(n).ok());
                let Some((inner, rest)) = length.and_then(|n| bytes.split_at_checked(n)) else {
                    return Ok(());
                };
                let field = message.field(tag >> 3);
                if !matches!(field, Message::Leaf) {
                    walk(inner, field, depth + 1)?;
                }
                bytes = rest;
            }
            _ => return Ok(()),
        }
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(levels: usize) -> Vec<u8> {
        // model.graph(7) → (node(1) → attribute(5) → g(6)) repeated.
        let mut bytes = vec![];
        for _ in 0..levels {
            for tag in [6 << 3 | 2, 5 << 3 | 2, 1 << 3 | 2] {
                let mut outer = vec![tag];
                let mut length = bytes.len();
                while length >= 0x80 {
                    outer.push((length & 0x7f) as u8 | 0x80);
                    length >>= 7;
                }
                outer.push(length as u8);
                outer.append(&mut bytes);
                bytes = outer;
            }
        }
        let mut model = vec![7 << 3 | 2];
        let mut length = bytes.len();
        while length >= 0x80 {
            model.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        model.push(length as u8);
        model.extend(bytes);
        model
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert!(check(&nested(5)).is_ok());
        assert_eq!(check(&nested(2000)).unwrap_err().status(), 102);
    }
}

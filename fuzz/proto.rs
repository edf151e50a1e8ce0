//! Messages of Protocol Buffers, of which ONNX files consist.

/// A number, seven bits a byte.
pub fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = vec![];
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A field with a number.
pub fn int(number: u64, value: u64) -> Vec<u8> {
    [varint(number << 3), varint(value)].concat()
}

/// A field with bytes, a text or a message.
pub fn bytes(number: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [
        varint(number << 3 | 2),
        varint(value.len() as u64),
        value.to_vec(),
    ]
    .concat()
}

/// A model of operator set 11 with the fields of its graph.
pub fn model(graph: &[Vec<u8>]) -> Vec<u8> {
    [int(1, 8), bytes(8, int(2, 11)), bytes(7, graph.concat())].concat()
}

/// A node without attributes.
pub fn node(op: &str, input: &str, output: &str) -> Vec<u8> {
    node_of(op, &[input], output, &[])
}

/// A node with attributes, each a list of numbers.
pub fn node_of(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, &[u64])]) -> Vec<u8> {
    let inputs = inputs.iter().flat_map(|name| bytes(1, name));
    let mut fields: Vec<u8> = inputs.collect();
    fields.extend([bytes(2, output), bytes(4, op)].concat());
    for (name, values) in attributes {
        let values: Vec<u8> = values.iter().flat_map(|&n| int(8, n)).collect();
        fields.extend(bytes(5, [bytes(1, name), int(20, 7), values].concat()));
    }
    bytes(1, fields)
}

/// A float tensor with the given sizes and further fields.
pub fn tensor(name: &str, sizes: &[u64], more: &[Vec<u8>]) -> Vec<u8> {
    let sizes: Vec<u8> = sizes.iter().flat_map(|&n| int(1, n)).collect();
    let head = [bytes(8, name), int(2, 1), sizes].concat();
    bytes(5, [head, more.concat()].concat())
}

/// An input (`number` 11) or output (12) of a graph. A size of 0 stands for any.
pub fn value(number: u64, name: &str, sizes: &[u64]) -> Vec<u8> {
    let sizes = sizes.iter().flat_map(|&n| match n {
        0 => bytes(1, bytes(2, "any")),
        n => bytes(1, int(1, n)),
    });
    let kind = [int(1, 1), bytes(2, sizes.collect::<Vec<u8>>())].concat();
    bytes(number, [bytes(1, name), bytes(2, bytes(1, kind))].concat())
}

//! An ONNX file as plain data: nodes in topological order, initialisers as arrays.

use super::{Array, Dtype};
use crate::error::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// A model's graph.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Version of the default operator set.
    pub opset: i64,
    /// What the caller must give: graph inputs that no initialiser fills.
    pub inputs: Vec<Value>,
    /// What the graph yields, in file order.
    pub outputs: Vec<Value>,
    /// Topologically sorted: every input of a node is a graph input, an initialiser or an earlier output.
    pub nodes: Vec<Node>,
    /// Constants by name.
    pub initializers: BTreeMap<String, Array>,
}

/// A graph input or output.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Its name in the graph.
    pub name: String,
    /// Element type, where the file gives it.
    pub dtype: Option<Dtype>,
    /// Sizes; `None` where symbolic, unknown or not positive.
    pub shape: Vec<Option<i64>>,
}

/// One operator call.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The node's own name; may be empty.
    pub name: String,
    /// Operator (`Conv`).
    pub op: String,
    /// Operator set; empty for the default one.
    pub domain: String,
    /// Value names; an empty name is an omitted optional input.
    pub inputs: Vec<String>,
    /// Value names.
    pub outputs: Vec<String>,
    /// Attributes by name.
    pub attributes: BTreeMap<String, Attribute>,
}

/// The value of a node's attribute.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Attribute {
    Int(i64),
    Float(f32),
    Text(String),
    Tensor(Array),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
}

/// Reads a model file.
pub fn read(path: &Path) -> Result<Model> {
    let _ = path;
    unimplemented!()
}

//! An ONNX file as plain data: nodes in topological order, initialisers as arrays.

mod external;
mod graph;
mod tensor;
mod wire;

use super::source::Source;
use super::{Array, Dtype};
use crate::error::{Result, bail, brief};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// A model's graph.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Version of the default operator set.
    pub opset: i64,
    /// The inputs that the caller must give: graph inputs without an initialiser.
    pub inputs: Vec<Value>,
    /// The graph's outputs, in the order of the file.
    pub outputs: Vec<Value>,
    /// Topologically sorted: every input of a node is a graph input, an initialiser or an earlier
    /// output.
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
#[derive(Debug, Clone, PartialEq, Default)]
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

/// Reads a model file, and the files in its folder that it names.
///
/// Memory, time and errors: as [`super::load`]; `Operator` for subgraphs, sparse tensors and the like.
pub fn read(path: &Path) -> Result<Model> {
    let read = || {
        let source = Source::open(path)?;
        source.settled(match super::kind::of(&source)? {
            super::Kind::Onnx => model(&source, Some(path)),
            other => bail!(Format, "expected an ONNX model, found {other:?}"),
        })
    };
    read().map_err(|e| e.context(path.display()))
}

/// Reads a model from a file's content. It must not use other files.
pub fn parse(bytes: &[u8]) -> Result<Model> {
    model(&Source::of(bytes), None)
}

pub(super) fn model(source: &Source, path: Option<&Path>) -> Result<Model> {
    let bytes = source.all()?;
    let neighbours = external::Neighbours::of(path);
    let reader = graph::Reader {
        budget: source.budget(),
        neighbours: &neighbours,
    };
    in_order(reader.model(&bytes)?)
}

/// Sorts the nodes and checks that every value is made once.
fn in_order(mut model: Model) -> Result<Model> {
    let inputs = model.inputs.iter().map(|input| input.name.as_str());
    let known = inputs.chain(model.initializers.keys().map(String::as_str));
    let makers = makers(&model.nodes, known)?;
    for output in &model.outputs {
        if !makers.contains_key(output.name.as_str()) {
            bail!(
                Format,
                "the graph's output {} is made by no node",
                brief(&output.name)
            );
        }
    }
    let order = sorted(&model.nodes, &makers)?;
    let mut slots: Vec<Option<Node>> = model.nodes.into_iter().map(Some).collect();
    model.nodes = order
        .into_iter()
        .filter_map(|at| slots[at].take())
        .collect();
    Ok(model)
}

/// The number of the node that makes each value; `None` for inputs and constants.
fn makers<'a>(
    nodes: &'a [Node],
    known: impl Iterator<Item = &'a str>,
) -> Result<HashMap<&'a str, Option<usize>>> {
    let made = nodes.iter().enumerate().flat_map(|(at, node)| {
        let outputs = node.outputs.iter().filter(|name| !name.is_empty());
        outputs.map(move |name| (name.as_str(), Some(at)))
    });
    let mut makers = HashMap::new();
    for (name, maker) in known.map(|name| (name, None)).chain(made) {
        if makers.insert(name, maker).is_some() {
            bail!(Format, "the value {} is made twice", brief(name));
        }
    }
    Ok(makers)
}

/// The nodes' order of computing: each after those that make its inputs.
fn sorted(nodes: &[Node], makers: &HashMap<&str, Option<usize>>) -> Result<Vec<usize>> {
    let mut waiting = vec![0usize; nodes.len()];
    let mut users: Vec<Vec<usize>> = vec![vec![]; nodes.len()];
    for (at, node) in nodes.iter().enumerate() {
        for input in node.inputs.iter().filter(|name| !name.is_empty()) {
            match makers.get(input.as_str()) {
                Some(Some(from)) => {
                    users[*from].push(at);
                    waiting[at] += 1;
                }
                Some(None) => {}
                None => bail!(
                    Format,
                    "node {} ({}) uses the value {}, which nothing makes",
                    brief(&node.name),
                    brief(&node.op),
                    brief(input)
                ),
            }
        }
    }
    let mut ready: BTreeSet<usize> = (0..nodes.len()).filter(|&at| waiting[at] == 0).collect();
    let mut order = vec![];
    while let Some(at) = ready.pop_first() {
        order.push(at);
        for &user in &users[at] {
            waiting[user] -= 1;
            if waiting[user] == 0 {
                ready.insert(user);
            }
        }
    }
    if order.len() < nodes.len() {
        let stuck = (0..nodes.len()).find(|&at| waiting[at] > 0).unwrap_or(0);
        bail!(
            Format,
            "node {} ({}) waits for its own output: the graph has a cycle",
            brief(&nodes[stuck].name),
            brief(&nodes[stuck].op)
        );
    }
    Ok(order)
}

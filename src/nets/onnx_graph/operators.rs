//! The operators that are implemented, and the check that a model uses no other.

use super::budget::{MAX_NAMES, MAX_NODES};
use super::node::Operator;
use super::{activation, arithmetic, conv, pick, pool, reduce, resize, scatter, shape};
use crate::error::{Error, Result, bail};
use crate::weights::onnx::{Model, Node};
use std::collections::BTreeSet;

/// The tables of operators, one per file.
pub const TABLES: [&[Operator]; 9] = [
    activation::OPERATORS,
    arithmetic::OPERATORS,
    conv::OPERATORS,
    pick::OPERATORS,
    pool::OPERATORS,
    reduce::OPERATORS,
    resize::OPERATORS,
    scatter::OPERATORS,
    shape::OPERATORS,
];

/// The operator of a node; `None` where it is not implemented.
pub fn find(node: &Node) -> Option<&'static Operator> {
    if !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return None;
    }
    TABLES
        .iter()
        .flat_map(|table| table.iter())
        .find(|operator| operator.name == node.op)
}

/// Checks before anything is loaded that every operator and attribute is implemented, and that there are not too many.
pub fn known(model: &Model) -> Result<()> {
    let names: usize = model
        .nodes
        .iter()
        .map(|node| node.inputs.len() + node.outputs.len())
        .sum();
    if model.nodes.len() > MAX_NODES || names > MAX_NAMES {
        bail!(
            Limit,
            "the model has {} nodes with {names} inputs and outputs; the most is {MAX_NODES} and {MAX_NAMES}",
            model.nodes.len()
        );
    }
    let missing: BTreeSet<String> = model
        .nodes
        .iter()
        .filter(|node| find(node).is_none())
        .map(|node| match node.domain.as_str() {
            "" | "ai.onnx" => node.op.clone(),
            domain => format!("{domain}.{}", node.op),
        })
        .collect();
    if !missing.is_empty() {
        let example = model.nodes.iter().find(|node| find(node).is_none());
        let example = example.map_or("", |node| node.name.as_str());
        // A damaged file may have thousands.
        let shown: Vec<String> = missing.iter().take(20).cloned().collect();
        let more = match missing.len() - shown.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        return Err(Error::Operator(format!(
            "the model uses operators that are not implemented: {}{more} (opset {}; for example in node \"{example}\")",
            shown.join(", "),
            model.opset
        )));
    }
    for node in &model.nodes {
        let known = find(node).map_or(&[] as &[_], |operator| operator.attributes);
        if let Some(name) = node
            .attributes
            .keys()
            .find(|name| !known.contains(&name.as_str()))
        {
            bail!(
                Operator,
                "{} \"{}\": the attribute {name} is not implemented (opset {}); export the model without it",
                node.op,
                node.name,
                model.opset
            );
        }
    }
    Ok(())
}

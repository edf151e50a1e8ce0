//! Batch norms that follow a convolution, folded into its weights.

use crate::weights::onnx::{Attribute, Model, Node};
use crate::weights::{Array, Dtype};
use std::collections::HashMap;

/// What folding makes of a node.
pub enum Folded {
    /// A convolution with the weights and the bias of the norm behind it, whose output it makes.
    Conv {
        /// The norm's place.
        norm: usize,
        /// The weights.
        weight: Array,
        /// The bias.
        bias: Array,
    },
    /// A norm that has become part of the convolution before it.
    Gone,
}

/// Folds every BatchNormalization whose input is a Conv with constant weights that no other node uses. Returns the
/// changed nodes by their index.
pub fn batch_norms(model: &Model) -> HashMap<usize, Folded> {
    let mut uses: HashMap<&str, usize> = HashMap::new();
    let outputs = model.outputs.iter().map(|output| &output.name);
    for name in model
        .nodes
        .iter()
        .flat_map(|node| &node.inputs)
        .chain(outputs)
    {
        *uses.entry(name).or_default() += 1;
    }
    let convs: HashMap<&str, usize> = (0..)
        .zip(&model.nodes)
        .filter(|(_, node)| node.op == "Conv")
        .filter_map(|(at, node)| Some((node.outputs.first()?.as_str(), at)))
        .collect();
    // Many convolutions may share one weight. After folding, each has a copy of its own.
    let mut room = elements(model).saturating_add(1 << 20);
    let mut folded = HashMap::new();
    for (at, norm) in model.nodes.iter().enumerate() {
        if norm.op != "BatchNormalization" {
            continue;
        }
        let Some(input) = norm.inputs.first() else {
            continue;
        };
        if uses.get(input.as_str()) == Some(&1)
            && let Some(&conv) = convs.get(input.as_str())
            && let Some(made) = fold(model, &model.nodes[conv], at, &mut room)
        {
            folded.insert(conv, made);
            folded.insert(at, Folded::Gone);
        }
    }
    folded
}

/// The elements of a model's constants.
pub fn elements(model: &Model) -> u64 {
    model
        .initializers
        .values()
        .map(|array| length(array) as u64)
        .sum()
}

fn length(array: &Array) -> usize {
    array.data.len() / array.dtype.size()
}

/// `None` where an operand is not a constant of floats, a shape does not fit, or the norm is not one of plain
/// inference.
fn fold(model: &Model, conv: &Node, at: usize, room: &mut u64) -> Option<Folded> {
    let norm = &model.nodes[at];
    let plain = |name: &str| matches!(name, "epsilon" | "momentum");
    if !norm.attributes.keys().all(|name| plain(name))
        || norm.outputs.len() != 1
        || conv.outputs.len() != 1
    {
        return None;
    }
    let weight = model.initializers.get(conv.inputs.get(1)?)?;
    let shape = weight.shape.clone();
    let channels = *shape.first()?;
    let constant = |name: &String| {
        let values = model.initializers.get(name)?;
        if length(values) == channels {
            floats(values)
        } else {
            None
        }
    };
    let [scale, shift, mean, var] = [1, 2, 3, 4].map(|at| norm.inputs.get(at).and_then(constant));
    let (scale, shift, mean, var) = (scale?, shift?, mean?, var?);
    let bias = match conv.inputs.get(2).filter(|name| !name.is_empty()) {
        Some(name) => constant(name)?,
        None => vec![0.0; channels],
    };
    let per_channel = length(weight) / channels.max(1);
    if per_channel == 0 {
        return None;
    }
    let epsilon = match norm.attributes.get("epsilon") {
        Some(Attribute::Float(value)) => f64::from(*value),
        None => 1e-5,
        Some(_) => return None,
    };
    *room = room.checked_sub(length(weight) as u64)?;
    let mut kernel = floats(weight)?;
    let factors: Vec<f64> = scale
        .iter()
        .zip(&var)
        .map(|(s, v)| s / (v + epsilon).sqrt())
        .collect();
    for (row, factor) in kernel.chunks_mut(per_channel).zip(&factors) {
        row.iter_mut().for_each(|w| *w *= factor);
    }
    let bias = (0..channels)
        .map(|c| (bias[c] - mean[c]) * factors[c] + shift[c])
        .collect();
    Some(Folded::Conv {
        norm: at,
        weight: array(shape, kernel),
        bias: array(vec![channels], bias),
    })
}

fn floats(array: &Array) -> Option<Vec<f64>> {
    let values = array.data.chunks_exact(array.dtype.size());
    Some(match array.dtype {
        Dtype::F32 => values
            .map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])))
            .collect(),
        Dtype::F16 => values
            .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64())
            .collect(),
        _ => return None,
    })
}

fn array(shape: Vec<usize>, values: Vec<f64>) -> Array {
    Array {
        dtype: Dtype::F32,
        shape,
        data: values
            .iter()
            .flat_map(|&v| (v as f32).to_le_bytes())
            .collect(),
    }
}

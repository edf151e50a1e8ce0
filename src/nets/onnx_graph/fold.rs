//! Batch norms that follow a convolution, folded into its weights.

use crate::weights::onnx::{Attribute, Model};
use crate::weights::{Array, Dtype};
use std::collections::HashMap;

/// Folds every BatchNormalization whose input is a Conv with constant weights that nobody else uses.
pub fn batch_norms(model: &mut Model) {
    let mut uses: HashMap<String, usize> = HashMap::new();
    for name in model.nodes.iter().flat_map(|node| &node.inputs) {
        *uses.entry(name.clone()).or_default() += 1;
    }
    for output in &model.outputs {
        *uses.entry(output.name.clone()).or_default() += 1;
    }
    let mut folded = vec![];
    for at in 0..model.nodes.len() {
        if model.nodes[at].op != "BatchNormalization" {
            continue;
        }
        let input = model.nodes[at].inputs.first().cloned().unwrap_or_default();
        let made = model
            .nodes
            .iter()
            .position(|node| node.op == "Conv" && node.outputs.first() == Some(&input));
        if uses.get(&input) == Some(&1)
            && let Some(conv) = made
            && fold(model, conv, at).is_some()
        {
            folded.push(at);
        }
    }
    let mut at = 0;
    model.nodes.retain(|_| {
        at += 1;
        !folded.contains(&(at - 1))
    });
}

/// `None`, and nothing changed, where a number is not a constant float or a shape is odd.
fn fold(model: &mut Model, conv: usize, norm: usize) -> Option<()> {
    let (conv_node, norm_node) = (&model.nodes[conv], &model.nodes[norm]);
    let constant = |name: &String| floats(model.initializers.get(name)?);
    let weight = model.initializers.get(conv_node.inputs.get(1)?)?;
    let shape = weight.shape.clone();
    let mut kernel = floats(weight)?;
    let channels = *shape.first()?;
    let [scale, shift, mean, var] =
        [1, 2, 3, 4].map(|at| norm_node.inputs.get(at).and_then(constant));
    let (scale, shift, mean, var) = (scale?, shift?, mean?, var?);
    let bias = match conv_node.inputs.get(2).filter(|name| !name.is_empty()) {
        Some(name) => constant(name)?,
        None => vec![0.0; channels],
    };
    let per_channel = kernel.len() / channels.max(1);
    if [&scale, &shift, &mean, &var, &bias]
        .iter()
        .any(|v| v.len() != channels)
        || per_channel == 0
    {
        return None;
    }
    let epsilon = match norm_node.attributes.get("epsilon") {
        Some(Attribute::Float(value)) => f64::from(*value),
        _ => 1e-5,
    };
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
    // Names of their own: another convolution may share the weights.
    let output = norm_node.outputs.first()?.clone();
    let (weight_name, bias_name) = (
        format!("{output}/folded/weight"),
        format!("{output}/folded/bias"),
    );
    model
        .initializers
        .insert(weight_name.clone(), array(shape, kernel));
    model
        .initializers
        .insert(bias_name.clone(), array(vec![channels], bias));
    let node = &mut model.nodes[conv];
    node.inputs.truncate(1);
    node.inputs.extend([weight_name, bias_name]);
    node.outputs = vec![output];
    Some(())
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

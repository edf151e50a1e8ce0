//! Recognises by their inputs and outputs networks that are not face recognisers.

use crate::error::{Result, bail};
use crate::log::warn_host;
use crate::weights::onnx;
use std::path::Path;

/// Networks that are not recognisers, by the length of their output.
const OTHERS: [(i64, &str); 8] = [
    (1, "one number, such as a quality or an age"),
    (2, "two numbers, such as a gender or a liveness"),
    (3, "what InsightFace's genderage yields"),
    (10, "five points"),
    (136, "68 points"),
    (204, "68 points in space"),
    (212, "InsightFace's 106 points (2d106det)"),
    (3309, "InsightFace's 1k3d68"),
];

/// Fails where an output of `dim` numbers is no embedding. Known embeddings have 128 to 2048 numbers, always a multiple
/// of 8.
pub fn embedding_size(dim: i64) -> Result<()> {
    let other = OTHERS
        .iter()
        .find(|(size, _)| *size == dim)
        .map(|(_, name)| *name);
    if other.is_none() && (32..=4096).contains(&dim) && dim % 8 == 0 {
        return Ok(());
    }
    bail!(
        Weights,
        "the network yields {dim} numbers for a face{}: this is no face recogniser, whose embeddings have 128, 256 or \
         512 numbers",
        other
            .map(|name| format!(", which is {name}"))
            .unwrap_or_default()
    );
}

/// Fails where the model at `path` cannot be a recogniser. Warns where it has several outputs, of which the first is
/// used.
pub fn interface(model: &onnx::Model, path: &Path) -> Result<()> {
    let names: Vec<&str> = model
        .outputs
        .iter()
        .take(8)
        .map(|output| output.name.as_str())
        .collect();
    let names = names.join(", ");
    let Some(first) = model.outputs.first().filter(|_| model.inputs.len() == 1) else {
        bail!(
            Weights,
            "a recogniser has one input, and the embedding as its first output; this model has {} inputs and {} \
             outputs ({names})",
            model.inputs.len(),
            model.outputs.len()
        );
    };
    let embedding = matches!(*first.shape, [_, Some(numbers)] if numbers >= 32);
    match model.outputs.len() {
        1 => {}
        count @ (6 | 9 | 10 | 15) if !embedding => bail!(
            Weights,
            "this model has {count} outputs ({names}): it looks like an SCRFD detector, which is given as the detector; \
             a recogniser's first output is the embedding"
        ),
        count => warn_host!(
            "{}: the model has {count} outputs ({names}); the first one, {}, is taken as the embedding. If it is another, \
             keep that one alone: onnx.utils.extract_model(\"in.onnx\", \"out.onnx\", [INPUT], [OUTPUT])",
            path.display(),
            first.name
        ),
    }
    Ok(())
}

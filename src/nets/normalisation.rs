//! What a recogniser's input is: its normalisation, and the size that an ONNX file fixes.

use crate::error::{Result, bail};
use crate::weights::{Dtype, onnx};

/// How a family normalises an image in [0, 1].
pub struct Norm {
    pub mean: [f64; 3],
    pub std: [f64; 3],
    /// Where the numbers come from, for the description.
    pub source: &'static str,
}

/// InsightFace's (x − 127.5) / 127.5 in units of an image in [0, 1] (`arcface_onnx.py`).
pub const PLUS_MINUS_ONE: Norm = Norm {
    mean: [0.5; 3],
    std: [0.5; 3],
    source: "InsightFace's",
};

/// The normalisation of an ONNX model's input. Old mxnet exports have a Sub and a Mul among their first eight
/// nodes: they normalise by themselves, and take 0..255 (`arcface_onnx.py`, lines 29-43).
pub fn onnx_norm(model: &onnx::Model) -> Norm {
    let starts = |prefixes: [&str; 2]| {
        let named = |node: &onnx::Node| prefixes.iter().any(|p| node.name.starts_with(p));
        model.nodes.iter().take(8).any(named)
    };
    if starts(["Sub", "_minus"]) && starts(["Mul", "_mul"]) {
        return Norm {
            mean: [0.0; 3],
            std: [1.0 / 255.0; 3],
            source: "the model normalises 0..255 itself",
        };
    }
    PLUS_MINUS_ONE
}

/// Height and width of the model's input, where the file fixes them.
pub fn onnx_size(model: &onnx::Model) -> Result<Option<(i64, i64)>> {
    let Some(input) = model.inputs.first() else {
        bail!(Weights, "a model without an input");
    };
    if let Some(dtype) = input.dtype
        && !matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16)
    {
        bail!(
            Weights,
            "the model takes pictures in {dtype:?}; expected floating-point numbers, which are normalised before they go \
             in. Export it without its own conversion"
        );
    }
    match input.shape.as_slice() {
        [_, Some(3) | None, height, width] => match (height, width) {
            (Some(h), Some(w)) => Ok(Some((*h, *w))),
            (None, None) => Ok(None),
            _ => bail!(
                Weights,
                "the model takes {}; export it with both sides of the input fixed, or both dynamic",
                sizes(&input.shape)
            ),
        },
        [] => Ok(None),
        last @ [_, _, _, Some(3)] => bail!(
            Weights,
            "expected an input [N,3,H,W], the model takes {}, with the colours last, as TensorFlow has them; convert it with \
             them first (tf2onnx: --inputs-as-nchw {})",
            sizes(last),
            input.name
        ),
        other => bail!(
            Weights,
            "expected an input [N,3,H,W], the model takes {}; a recogniser works on colour pictures",
            sizes(other)
        ),
    }
}

/// Sizes for a text; `?` where the file leaves one open.
fn sizes(shape: &[Option<i64>]) -> String {
    let sizes = shape
        .iter()
        .map(|size| size.map_or("?".into(), |n| n.to_string()));
    format!("[{}]", sizes.collect::<Vec<_>>().join(","))
}

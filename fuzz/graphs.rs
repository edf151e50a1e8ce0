//! Fuzz targets that need libtorch: the graph interpreter, and descriptors of tensors.

use super::choices::Choices;
use facegrad::nets::OnnxGraph;
use facegrad::tensor::{RawTensor, Use, View};
use facegrad::weights::onnx::{Attribute, Model, Node, Value};
use facegrad::weights::{Array, Dtype};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

const OPERATORS: [&str; 68] = [
    "Conv",
    "BatchNormalization",
    "InstanceNormalization",
    "Gemm",
    "MatMul",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Relu",
    "Sigmoid",
    "Tanh",
    "Exp",
    "Log",
    "Sqrt",
    "Abs",
    "Neg",
    "Floor",
    "Ceil",
    "Reciprocal",
    "Erf",
    "Softplus",
    "Identity",
    "Dropout",
    "HardSwish",
    "Elu",
    "LeakyRelu",
    "HardSigmoid",
    "PRelu",
    "Clip",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Sum",
    "Max",
    "Min",
    "Where",
    "Equal",
    "Greater",
    "Less",
    "Cast",
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceL2",
    "ReduceSumSquare",
    "LpNormalization",
    "Softmax",
    "Resize",
    "Upsample",
    "Constant",
    "ConstantOfShape",
    "Shape",
    "Reshape",
    "Flatten",
    "Transpose",
    "Concat",
    "Gather",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Expand",
    "Tile",
    "Pad",
    "Split",
];

const ATTRIBUTES: [&str; 34] = [
    "kernel_shape",
    "strides",
    "pads",
    "dilations",
    "group",
    "epsilon",
    "alpha",
    "beta",
    "axis",
    "axes",
    "keepdims",
    "mode",
    "coordinate_transformation_mode",
    "nearest_mode",
    "to",
    "perm",
    "starts",
    "ends",
    "value",
    "value_int",
    "value_floats",
    "split",
    "num_outputs",
    "transA",
    "transB",
    "ceil_mode",
    "count_include_pad",
    "auto_pad",
    "p",
    "allowzero",
    "noop_with_empty_axes",
    "min",
    "max",
    "scales",
];

const TEXTS: [&str; 12] = [
    "nearest",
    "linear",
    "cubic",
    "asymmetric",
    "half_pixel",
    "align_corners",
    "pytorch_half_pixel",
    "floor",
    "SAME_UPPER",
    "VALID",
    "constant",
    "reflect",
];

fn array(choices: &mut Choices) -> Array {
    let shape: Vec<usize> = (0..choices.byte() % 5)
        .map(|_| usize::from(choices.byte() % 5))
        .collect();
    let count: usize = shape.iter().product();
    let dtype = *choices.of(&[
        Dtype::I64,
        Dtype::F32,
        Dtype::F16,
        Dtype::I32,
        Dtype::Bool,
        Dtype::F64,
    ]);
    let mut data = vec![];
    for _ in 0..count {
        let number = choices.number();
        match dtype {
            Dtype::I64 => data.extend(number.to_le_bytes()),
            Dtype::F64 => data.extend((number as f64).to_le_bytes()),
            Dtype::F32 => data.extend((number as f32).to_le_bytes()),
            _ => data.extend_from_slice(&number.to_le_bytes()[..dtype.size()]),
        }
    }
    Array { dtype, shape, data }
}

fn attribute(choices: &mut Choices) -> Attribute {
    match choices.byte() % 6 {
        0 => Attribute::Int(choices.number()),
        1 => Attribute::Ints(choices.numbers()),
        2 => Attribute::Float(choices.number() as f32),
        3 => Attribute::Floats(choices.numbers().into_iter().map(|n| n as f32).collect()),
        4 => Attribute::Text((*choices.of(&TEXTS)).into()),
        _ => Attribute::Tensor(array(choices)),
    }
}

/// A graph of up to twelve nodes, each of which takes what is there before it, and runs it.
pub fn graph(data: &[u8]) {
    let choices = &mut Choices(data);
    let opset = i64::from(choices.byte() % 22);
    let size = |choices: &mut Choices| Some(i64::from(choices.byte() % 12)).filter(|&n| n > 0);
    let shape: Vec<_> = vec![Some(1), Some(3), size(choices), size(choices)];
    let input = Value {
        name: "x".into(),
        dtype: Some(Dtype::F32),
        shape: shape.clone(),
    };
    let mut names = vec!["x".to_string()];
    let mut initializers = BTreeMap::new();
    for at in 0..choices.byte() % 8 {
        names.push(format!("c{at}"));
        initializers.insert(format!("c{at}"), array(choices));
    }
    let mut nodes = vec![];
    for at in 0..1 + choices.byte() % 12 {
        let op = (*choices.of(&OPERATORS)).to_string();
        let mut inputs = vec![];
        for _ in 0..choices.byte() % 5 {
            // The latest value most often, so that chains form.
            let which = usize::from(choices.byte());
            inputs.push(match which {
                0 => String::new(),
                1..128 => names[names.len() - 1].clone(),
                _ => names[which % names.len()].clone(),
            });
        }
        let outputs: Vec<String> = (0..1 + choices.byte() % 8 / 6)
            .map(|n| format!("n{at}.{n}"))
            .collect();
        names.extend(outputs.iter().cloned());
        let count = choices.byte() % 5;
        let attributes = (0..count).map(|_| {
            let name = (*choices.of(&ATTRIBUTES)).to_string();
            (name, attribute(choices))
        });
        nodes.push(Node {
            op,
            inputs,
            attributes: attributes.collect(),
            outputs,
            ..Node::default()
        });
    }
    let output = |name: &String| Value {
        name: name.clone(),
        dtype: None,
        shape: vec![],
    };
    let model = Model {
        opset,
        inputs: vec![input],
        outputs: names.last().map(output).into_iter().collect(),
        nodes,
        initializers,
    };
    let Ok(graph) = OnnxGraph::new(&model, Device::Cpu, Kind::Float) else {
        return;
    };
    let sizes: Vec<i64> = shape.into_iter().map(|n| n.unwrap_or(4)).collect();
    if let Ok(x) = Tensor::f_ones(&sizes[..], (Kind::Float, Device::Cpu)) {
        let _ = graph.forward(&[&x]);
    }
}

/// A DLTensor over memory of 4096 bytes: where its sizes and strides stay inside, it is borrowed and read.
pub fn tensor(data: &[u8]) {
    let choices = &mut Choices(data);
    let mut memory = vec![0u64; 512];
    let ndim = choices.byte() % 12;
    let mut shape: Vec<i64> = (0..ndim).map(|_| choices.number()).collect();
    let mut strides: Vec<i64> = (0..ndim).map(|_| choices.number()).collect();
    let nulls = choices.byte();
    let raw = RawTensor {
        data: match nulls & 1 {
            0 => memory.as_mut_ptr().cast(),
            _ => std::ptr::null_mut(),
        },
        device_type: i32::from(choices.byte() % 4),
        device_id: i32::from(choices.byte() as i8) / 64,
        ndim: i32::from(ndim),
        dtype_code: choices.byte() % 6,
        dtype_bits: *choices.of(&[8, 16, 32, 64, 0, 1, 128, 255]),
        dtype_lanes: u16::from(choices.byte() % 3),
        shape: match nulls & 2 {
            0 => shape.as_mut_ptr(),
            _ => std::ptr::null_mut(),
        },
        strides: match nulls & 4 {
            0 => strides.as_mut_ptr(),
            _ => std::ptr::null_mut(),
        },
        byte_offset: choices.number() as u64,
    };
    let usage = *choices.of(&[Use::Input, Use::Output]);
    // SAFETY: shape and strides are NULL or hold `ndim` numbers. That the memory holds the elements is
    // checked below before any of them is touched.
    let Ok(view) = (unsafe { View::read("t", &raw, usage) }) else {
        return;
    };
    let _ = (
        view.expect_numbers(),
        view.expect_float(),
        view.kind(),
        view.device(),
    );
    let bits = i128::from(raw.dtype_bits);
    let mut dense = 1i128;
    let mut reach = i128::from(raw.byte_offset) * 8 + bits;
    for at in (0..usize::from(ndim)).rev() {
        let stride = match raw.strides.is_null() {
            true => dense,
            false => i128::from(strides[at]),
        };
        dense = dense.saturating_mul(i128::from(shape[at]));
        reach = reach.saturating_add(
            (i128::from(shape[at]) - 1)
                .saturating_mul(stride)
                .saturating_mul(bits),
        );
    }
    // The sum is the target's own: a view may repeat one element a hundred million times.
    let inside = reach <= 8 * 4096 && dense <= 1 << 20;
    if raw.device_type == 1 && !raw.data.is_null() && inside {
        let _ = view
            .borrow()
            .and_then(|tensor| Ok(tensor.f_sum(Kind::Double)?));
    }
}

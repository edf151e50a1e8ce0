//! One operator call: its inputs and attributes, with errors that say what is wrong.

use crate::error::{Result, bail};
use crate::weights::onnx::{Attribute, Node};
use tch::{Device, Kind, Tensor};

/// An operator's implementation.
pub type Operator = fn(&Call) -> Result<Vec<Tensor>>;

/// A node with its inputs.
pub struct Call<'a> {
    /// The node.
    pub node: &'a Node,
    /// Version of the operator set.
    pub opset: i64,
    /// Its inputs; `None` where an optional one is left out.
    pub inputs: Vec<Option<&'a Tensor>>,
}

impl<'a> Call<'a> {
    /// `Conv "Conv_12"`, for errors.
    pub fn title(&self) -> String {
        format!("{} \"{}\"", self.node.op, self.node.name)
    }

    /// A required input.
    pub fn input(&self, at: usize) -> Result<&'a Tensor> {
        match self.optional(at) {
            Some(tensor) => Ok(tensor),
            None => bail!(Format, "input {at} is missing"),
        }
    }

    /// An input that may be left out.
    pub fn optional(&self, at: usize) -> Option<&'a Tensor> {
        self.inputs.get(at).copied().flatten()
    }

    /// An input's numbers as integers: axes, sizes, indices.
    pub fn integers(&self, at: usize) -> Result<Option<Vec<i64>>> {
        self.optional(at).map(integers).transpose()
    }

    /// An integer attribute.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        match self.node.attributes.get(name) {
            Some(Attribute::Int(value)) => *value,
            _ => default,
        }
    }

    /// A float attribute.
    pub fn float(&self, name: &str, default: f64) -> f64 {
        match self.node.attributes.get(name) {
            Some(Attribute::Float(value)) => f64::from(*value),
            _ => default,
        }
    }

    /// An attribute of several integers.
    pub fn ints(&self, name: &str) -> Option<Vec<i64>> {
        match self.node.attributes.get(name) {
            Some(Attribute::Ints(values)) => Some(values.clone()),
            _ => None,
        }
    }

    /// A text attribute.
    pub fn text(&self, name: &str, default: &'a str) -> &'a str {
        match self.node.attributes.get(name) {
            Some(Attribute::Text(value)) => value,
            _ => default,
        }
    }

    /// Axes, from the attribute (older operator sets) or from an input (newer ones).
    pub fn axes(&self, name: &str, input: usize) -> Result<Option<Vec<i64>>> {
        match self.ints(name) {
            Some(axes) => Ok(Some(axes)),
            None => self.integers(input),
        }
    }
}

/// The numbers of a tensor as integers.
pub fn integers(tensor: &Tensor) -> Result<Vec<i64>> {
    let flat = tensor
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Int64)?
        .f_reshape([-1i64])?;
    Ok(Vec::try_from(flat)?)
}

/// A dimension that may count from the end.
pub fn axis(value: i64, rank: usize) -> Result<i64> {
    let rank = rank as i64;
    if value < -rank || value >= rank {
        bail!(Format, "axis {value} of a value with {rank} dimensions");
    }
    Ok(value.rem_euclid(rank.max(1)))
}

/// A constant where it is needed: floats in the model's dtype on its device, integers in 64 bits on the
/// CPU. A single float stays on the CPU too, where it can be read without waiting for a GPU.
pub fn constant(tensor: Tensor, device: Device, kind: Kind) -> Result<Tensor> {
    Ok(match tensor.kind() {
        Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16 => {
            let device = if tensor.dim() == 0 {
                Device::Cpu
            } else {
                device
            };
            tensor.f_to_device(device)?.f_to_kind(kind)?
        }
        Kind::Bool => tensor.f_to_device(Device::Cpu)?,
        _ => tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?,
    })
}

/// One value from one tensor.
pub fn one(tensor: std::result::Result<Tensor, tch::TchError>) -> Result<Vec<Tensor>> {
    Ok(vec![tensor?])
}

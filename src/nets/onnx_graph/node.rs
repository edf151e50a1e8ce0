//! One operator call: its inputs and attributes, with errors for those that do not fit.

use super::budget::{Cost, count};
use crate::error::{Result, bail};
use crate::weights::onnx::{Attribute, Node};
use tch::{Device, Kind, Tensor};

/// An operator of ONNX.
pub struct Operator {
    /// Its name in the file.
    pub name: &'static str,
    /// The attributes that it understands. Any other is an error, because ignoring it would change the result.
    pub attributes: &'static [&'static str],
    /// Checks the inputs of a call and returns its cost.
    pub cost: fn(&Call) -> Result<Cost>,
    /// Computes the outputs of a call.
    pub run: fn(&Call) -> Result<Vec<Tensor>>,
}

/// An [`Operator`], as one line of a table.
pub const fn op(
    name: &'static str,
    attributes: &'static [&'static str],
    cost: fn(&Call) -> Result<Cost>,
    run: fn(&Call) -> Result<Vec<Tensor>>,
) -> Operator {
    Operator {
        name,
        attributes,
        cost,
        run,
    }
}

/// A node with its inputs.
pub struct Call<'a> {
    /// The node.
    pub node: &'a Node,
    /// Version of the operator set.
    pub opset: i64,
    /// Whether a shape in a Reshape that begins with 1 means one that begins with the batch.
    pub free_batch: bool,
    /// Whether the output may overwrite the first input, because neither a later step nor the backward pass needs it.
    pub in_place: bool,
    /// Its inputs; `None` where an optional one is left out.
    pub inputs: Vec<Option<&'a Tensor>>,
}

/// The most numbers in a list of axes, sizes or pads.
const MAX_LIST: usize = 1 << 10;

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

    /// A required input that has elements.
    pub fn full(&self, at: usize) -> Result<&'a Tensor> {
        let x = self.input(at)?;
        if x.numel() == 0 {
            bail!(
                Format,
                "input {at} has no elements: its shape is {:?}",
                x.size()
            );
        }
        Ok(x)
    }

    /// A required input of floating-point numbers that has elements.
    pub fn float_input(&self, at: usize) -> Result<&'a Tensor> {
        let x = self.full(at)?;
        if class(x) != Class::Float {
            bail!(
                Format,
                "input {at}: expected floating-point numbers, got {:?}",
                x.kind()
            );
        }
        Ok(x)
    }

    /// An input that may be left out.
    pub fn optional(&self, at: usize) -> Option<&'a Tensor> {
        self.inputs.get(at).copied().flatten()
    }

    /// An input's numbers as integers: axes, sizes, indices.
    pub fn integers(&self, at: usize) -> Result<Option<Vec<i64>>> {
        let Some(tensor) = self.optional(at) else {
            return Ok(None);
        };
        if class(tensor) != Class::Integer || tensor.numel() > MAX_LIST {
            bail!(
                Format,
                "input {at}: expected at most {MAX_LIST} integers, got {:?} of shape {:?}",
                tensor.kind(),
                tensor.size()
            );
        }
        let flat = tensor
            .f_to_device(Device::Cpu)?
            .f_to_kind(Kind::Int64)?
            .f_reshape([-1i64])?;
        Ok(Some(Vec::try_from(flat)?))
    }

    /// The single floating-point number of an input; `None` where it is left out.
    pub fn number(&self, at: usize) -> Result<Option<f64>> {
        let Some(tensor) = self.optional(at) else {
            return Ok(None);
        };
        if tensor.numel() != 1 {
            bail!(
                Format,
                "input {at}: expected one number, got a value of shape {:?}",
                tensor.size()
            );
        }
        let one = tensor
            .f_to_device(Device::Cpu)?
            .f_to_kind(Kind::Double)?
            .f_reshape([1i64])?;
        Ok(Vec::<f64>::try_from(one)?.first().copied())
    }

    /// An integer attribute.
    pub fn int(&self, name: &str, default: i64) -> Result<i64> {
        Ok(match self.node.attributes.get(name) {
            Some(Attribute::Int(value)) => *value,
            None => default,
            Some(_) => bail!(Format, "attribute {name}: expected an integer"),
        })
    }

    /// Whether an attribute that is 0 or 1 is set.
    pub fn flag(&self, name: &str) -> Result<bool> {
        Ok(self.int(name, 0)? != 0)
    }

    /// A float attribute.
    pub fn float(&self, name: &str, default: f64) -> Result<f64> {
        Ok(match self.node.attributes.get(name) {
            Some(Attribute::Float(value)) => f64::from(*value),
            None => default,
            Some(_) => bail!(Format, "attribute {name}: expected a floating-point number"),
        })
    }

    /// An attribute of several integers.
    pub fn ints(&self, name: &str) -> Result<Option<Vec<i64>>> {
        Ok(match self.node.attributes.get(name) {
            Some(Attribute::Ints(values)) if values.len() <= MAX_LIST => Some(values.clone()),
            None => None,
            Some(_) => bail!(
                Format,
                "attribute {name}: expected at most {MAX_LIST} integers"
            ),
        })
    }

    /// A text attribute.
    pub fn text(&self, name: &str, default: &'a str) -> Result<&'a str> {
        Ok(match self.node.attributes.get(name) {
            Some(Attribute::Text(value)) => value,
            None => default,
            Some(_) => bail!(Format, "attribute {name}: expected a text"),
        })
    }

    /// Axes, from the attribute (older operator sets) or from an input (newer ones).
    pub fn axes(&self, name: &str, input: usize) -> Result<Option<Vec<i64>>> {
        match self.ints(name)? {
            Some(axes) => Ok(Some(axes)),
            None => self.integers(input),
        }
    }
}

/// The class of a value's numbers. Integers are kept in 64 bits, floats in the model's dtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Floating-point numbers.
    Float,
    /// Integers.
    Integer,
    /// Truth values.
    Truth,
}

/// The class of a tensor.
pub fn class(x: &Tensor) -> Class {
    match x.kind() {
        Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16 => Class::Float,
        Kind::Bool => Class::Truth,
        _ => Class::Integer,
    }
}

/// The elements of a tensor.
pub fn elements(x: &Tensor) -> u64 {
    count(&x.size())
}

/// The cost of an operator over floats that keeps its first input's shape.
pub fn same(call: &Call) -> Result<Cost> {
    Ok(Cost::of(elements(call.float_input(0)?)))
}

/// The cost of a view of the first input.
pub fn view(call: &Call) -> Result<Cost> {
    call.input(0)?;
    Ok(Cost::FREE)
}

/// A dimension that may count from the end.
pub fn axis(value: i64, rank: usize) -> Result<i64> {
    let rank = rank as i64;
    if value < -rank || value >= rank {
        bail!(Format, "axis {value} of a value with {rank} dimensions");
    }
    Ok(if value < 0 { value + rank } else { value })
}

/// Several dimensions, each once.
pub fn distinct_axes(values: &[i64], rank: usize) -> Result<Vec<i64>> {
    let axes = values
        .iter()
        .map(|&a| axis(a, rank))
        .collect::<Result<Vec<_>>>()?;
    let mut seen = vec![false; rank];
    for &at in &axes {
        if std::mem::replace(&mut seen[at as usize], true) {
            bail!(Format, "axes {values:?} name one dimension twice");
        }
    }
    Ok(axes)
}

/// One number as a value without dimensions. tch's own scalars are not used, because they panic where a call with one
/// fails.
pub fn scalar(value: f64, kind: Kind) -> Result<Tensor> {
    let no_dimensions: [i64; 0] = [];
    Ok(Tensor::f_from_slice(&[value])?
        .f_to_kind(kind)?
        .f_reshape(no_dimensions)?)
}

/// Moves a constant to where it is needed: floats to the model's device, in its dtype; integers stay on the CPU, in 64
/// bits. A single float also stays on the CPU, where it can be read without waiting for a GPU.
pub fn constant(tensor: Tensor, device: Device, kind: Kind) -> Result<Tensor> {
    Ok(match class(&tensor) {
        Class::Float => {
            let device = if tensor.dim() == 0 {
                Device::Cpu
            } else {
                device
            };
            tensor.f_to_device(device)?.f_to_kind(kind)?
        }
        Class::Truth => tensor.f_to_device(Device::Cpu)?,
        Class::Integer => tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?,
    })
}

/// The outputs of a call that has one output.
pub fn one(tensor: std::result::Result<Tensor, tch::TchError>) -> Result<Vec<Tensor>> {
    Ok(vec![tensor?])
}

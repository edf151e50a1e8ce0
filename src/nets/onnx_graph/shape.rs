//! Operators that move elements or compute with sizes.

use super::node::{Call, Operator, axis, integers, one};
use crate::error::{Result, bail};
use crate::tensor::from_array;
use crate::weights::onnx::Attribute;
use tch::{Device, Kind, Tensor};

/// This file's operators.
pub const OPERATORS: &[(&str, Operator)] = &[
    ("Constant", constant),
    ("ConstantOfShape", constant_of_shape),
    ("Shape", shape),
    ("Reshape", reshape),
    ("Flatten", flatten),
    ("Transpose", transpose),
    ("Concat", concat),
    ("Split", split),
    ("Slice", slice),
    ("Gather", gather),
    ("Squeeze", squeeze),
    ("Unsqueeze", unsqueeze),
    ("Expand", expand),
    ("Pad", pad),
];

/// No value of a face network has more elements; a file that asks for more is damaged or hostile.
const MAX_ELEMENTS: i64 = 1 << 28;

fn constant(call: &Call) -> Result<Vec<Tensor>> {
    let attribute = |name: &str| call.node.attributes.get(name);
    if let Some(Attribute::Tensor(array)) = attribute("value") {
        return Ok(vec![from_array(array, Device::Cpu)?]);
    }
    Ok(vec![match call.node.attributes.values().next() {
        Some(Attribute::Float(value)) => {
            Tensor::f_full([], f64::from(*value), (Kind::Float, Device::Cpu))?
        }
        Some(Attribute::Int(value)) => Tensor::f_full([], *value, (Kind::Int64, Device::Cpu))?,
        Some(Attribute::Floats(values)) => Tensor::f_from_slice(values)?,
        Some(Attribute::Ints(values)) => Tensor::f_from_slice(values)?,
        _ => bail!(Operator, "a constant that is neither numbers nor a tensor"),
    }])
}

fn constant_of_shape(call: &Call) -> Result<Vec<Tensor>> {
    let sizes = limited(integers(call.input(0)?)?)?;
    match call.node.attributes.get("value") {
        Some(Attribute::Tensor(array)) => one(from_array(array, Device::Cpu)?
            .f_reshape([1i64])?
            .f_expand(&sizes, false)?
            .f_contiguous()),
        _ => one(Tensor::f_zeros(&sizes, (Kind::Float, Device::Cpu))),
    }
}

fn limited(sizes: Vec<i64>) -> Result<Vec<i64>> {
    let count = sizes
        .iter()
        .try_fold(1i64, |n, &size| n.checked_mul(size.max(0)));
    match count {
        Some(count) if count <= MAX_ELEMENTS && sizes.iter().all(|&size| size >= 0) => Ok(sizes),
        _ => bail!(Limit, "a value of shape {sizes:?}"),
    }
}

fn shape(call: &Call) -> Result<Vec<Tensor>> {
    let sizes = call.input(0)?.size();
    let rank = sizes.len() as i64;
    let bound = |value: i64| if value < 0 { (value + rank).max(0) } else { value.min(rank) } as usize;
    let (start, end) = (bound(call.int("start", 0)), bound(call.int("end", rank)));
    one(Tensor::f_from_slice(sizes.get(start..end).unwrap_or(&[])))
}

fn reshape(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let wanted = match call.integers(1)? {
        Some(shape) => shape,
        None => call.ints("shape").unwrap_or_default(),
    };
    let keep_zero = call.int("allowzero", 0) != 0;
    let mut sizes = vec![];
    for (at, &size) in wanted.iter().enumerate() {
        sizes.push(match size {
            0 if !keep_zero => match x.size().get(at) {
                Some(&size) => size,
                None => bail!(
                    Format,
                    "shape {wanted:?} copies a dimension of {:?}",
                    x.size()
                ),
            },
            size => size,
        });
    }
    one(x.f_reshape(&sizes))
}

fn flatten(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let sizes = x.size();
    let value = call.int("axis", 1);
    let at = if value == sizes.len() as i64 {
        value
    } else {
        axis(value, sizes.len())?
    };
    let rows: i64 = sizes[..at as usize].iter().product();
    let columns: i64 = sizes[at as usize..].iter().product();
    one(x.f_reshape([rows, columns]))
}

fn transpose(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let order = call
        .ints("perm")
        .unwrap_or_else(|| (0..x.dim() as i64).rev().collect());
    one(x.f_permute(&order))
}

fn concat(call: &Call) -> Result<Vec<Tensor>> {
    let parts = (0..call.inputs.len())
        .map(|at| call.input(at))
        .collect::<Result<Vec<_>>>()?;
    let rank = call.input(0)?.dim();
    one(Tensor::f_cat(&parts, axis(call.int("axis", 0), rank)?))
}

fn split(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let at = axis(call.int("axis", 0), x.dim())?;
    let sizes = match call.axes("split", 1)? {
        Some(sizes) => sizes,
        None => {
            let count = call.node.outputs.len() as i64;
            let total = x.size()[at as usize];
            let part = (total + count - 1) / count.max(1);
            (0..count)
                .map(|i| part.min(total - i * part).max(0))
                .collect()
        }
    };
    Ok(x.f_split_with_sizes(&sizes, at)?)
}

fn slice(call: &Call) -> Result<Vec<Tensor>> {
    let mut x = call.input(0)?.shallow_clone();
    let (Some(starts), Some(ends)) = (call.axes("starts", 1)?, call.axes("ends", 2)?) else {
        bail!(Format, "a slice without starts and ends");
    };
    let axes = call
        .axes("axes", 3)?
        .unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = call.integers(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        bail!(
            Format,
            "a slice of {} starts, {} ends, {} axes, {} steps",
            starts.len(),
            ends.len(),
            axes.len(),
            steps.len()
        );
    }
    for (((start, end), at), step) in starts.into_iter().zip(ends).zip(axes).zip(steps) {
        let at = axis(at, x.dim())?;
        if step >= 1 {
            x = x.f_slice(at, start, end, step)?;
            continue;
        }
        if step == 0 {
            bail!(Format, "a slice of step 0");
        }
        let size = x.size()[at as usize];
        let wrapped = |v: i64| if v < 0 { v.saturating_add(size) } else { v };
        let (mut from, to) = (wrapped(start).min(size - 1), wrapped(end).max(-1));
        let mut picked = vec![];
        while from > to && from >= 0 {
            picked.push(from);
            from += step;
        }
        x = x.f_index_select(at, &Tensor::f_from_slice(&picked)?.f_to_device(x.device())?)?;
    }
    Ok(vec![x])
}

fn gather(call: &Call) -> Result<Vec<Tensor>> {
    let (x, indices) = (call.input(0)?, call.input(1)?);
    let at = axis(call.int("axis", 0), x.dim())?;
    let size = x.size()[at as usize];
    let flat = integers(indices)?;
    let mut wrapped = vec![];
    for index in flat {
        if index < -size || index >= size {
            bail!(Format, "index {index} into a dimension of {size}");
        }
        wrapped.push(index.rem_euclid(size));
    }
    if indices.dim() == 0 {
        return one(x.f_select(at, wrapped[0]));
    }
    let picked = x.f_index_select(
        at,
        &Tensor::f_from_slice(&wrapped)?.f_to_device(x.device())?,
    )?;
    let mut sizes = x.size();
    sizes.splice(at as usize..=at as usize, indices.size());
    one(picked.f_reshape(&sizes))
}

fn squeeze(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let Some(axes) = call.axes("axes", 1)? else {
        return one(x.f_squeeze());
    };
    let axes = axes
        .iter()
        .map(|&a| axis(a, x.dim()))
        .collect::<Result<Vec<_>>>()?;
    one(x.f_squeeze_dims(&axes))
}

fn unsqueeze(call: &Call) -> Result<Vec<Tensor>> {
    let mut x = call.input(0)?.shallow_clone();
    let axes = call.axes("axes", 1)?.unwrap_or_default();
    let rank = x.dim() + axes.len();
    let mut axes = axes
        .iter()
        .map(|&a| axis(a, rank))
        .collect::<Result<Vec<_>>>()?;
    axes.sort_unstable();
    for at in axes {
        x = x.f_unsqueeze(at)?;
    }
    Ok(vec![x])
}

fn expand(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let mut sizes = integers(call.input(1)?)?;
    // A size of 1 keeps what is there, and fewer dimensions than the value has keep its first ones.
    let own = x.size();
    let extra = own.len().saturating_sub(sizes.len());
    sizes.splice(0..0, own[..extra].iter().copied());
    let offset = sizes.len() - own.len();
    for (at, &size) in own.iter().enumerate() {
        if sizes[at + offset] == 1 {
            sizes[at + offset] = size;
        }
    }
    one(x.f_expand(limited(sizes)?, false))
}

fn pad(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let pads = call.axes("pads", 1)?.unwrap_or_default();
    let rank = x.dim();
    if call.optional(3).is_some() || pads.len() != 2 * rank {
        bail!(Operator, "pads {pads:?} of a value with {rank} dimensions");
    }
    let mut turned: Vec<i64> = (0..rank)
        .rev()
        .flat_map(|i| [pads[i], pads[rank + i]])
        .collect();
    let value = match call.optional(2) {
        Some(value) => value.f_double_value(&[])?,
        None => call.float("value", 0.0),
    };
    let mode = match call.text("mode", "constant") {
        "constant" => return one(x.f_pad(&turned, "constant", value)),
        "reflect" => "reflect",
        "edge" => "replicate",
        other => bail!(Operator, "mode {other}"),
    };
    // libtorch mirrors only the last dimensions and wants no word about the others.
    while turned.len() > 4 && turned.ends_with(&[0, 0]) {
        turned.truncate(turned.len() - 2);
    }
    one(x.f_pad(&turned, mode, None))
}

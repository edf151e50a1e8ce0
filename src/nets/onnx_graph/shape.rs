//! Constants, and operators that change or compute shapes.

use super::budget::{Cost, MAX_RANK, count, limited, limited_array};
use super::node::{Call, Operator, axis, distinct_axes, elements, one, op, view};
use crate::error::{Result, bail};
use crate::tensor::from_array;
use crate::weights::onnx::Attribute;
use tch::{Device, Kind, Tensor};

/// This file's operators.
pub const OPERATORS: &[Operator] = &[
    op(
        "Constant",
        &[
            "value",
            "value_float",
            "value_int",
            "value_floats",
            "value_ints",
        ],
        constant_cost,
        constant,
    ),
    op(
        "ConstantOfShape",
        &["value"],
        of_shape_cost,
        constant_of_shape,
    ),
    op("Shape", &["start", "end"], view, shape),
    op("Reshape", &["allowzero", "shape"], reshape_cost, reshape),
    op("Flatten", &["axis"], reshape_cost, flatten),
    op("Transpose", &["perm"], view, transpose),
    op("Squeeze", &["axes"], view, squeeze),
    op("Unsqueeze", &["axes"], view, unsqueeze),
    op(
        "Expand",
        &[],
        |c| Ok(Cost::of(count(&expanded(c)?))),
        |c| one(c.input(0)?.f_expand(expanded(c)?, false)),
    ),
    op(
        "Tile",
        &[],
        |c| Ok(Cost::of(count(&tiled(c)?.1))),
        |c| one(c.input(0)?.f_repeat(tiled(c)?.0)),
    ),
];

fn constant_cost(call: &Call) -> Result<Cost> {
    Ok(Cost::of(match call.node.attributes.values().next() {
        Some(Attribute::Tensor(array)) => array.data.len() as u64 / array.dtype.size() as u64,
        Some(Attribute::Floats(values)) => values.len() as u64,
        Some(Attribute::Ints(values)) => values.len() as u64,
        _ => 1,
    }))
}

fn constant(call: &Call) -> Result<Vec<Tensor>> {
    let mut attributes = call.node.attributes.values();
    let (Some(attribute), None) = (attributes.next(), attributes.next()) else {
        bail!(Format, "expected one attribute");
    };
    let no_dimensions: [i64; 0] = [];
    Ok(vec![match attribute {
        Attribute::Tensor(array) => {
            limited_array(array)?;
            from_array(array, Device::Cpu)?
        }
        Attribute::Float(value) => Tensor::f_from_slice(&[*value])?.f_reshape(no_dimensions)?,
        Attribute::Int(value) => Tensor::f_from_slice(&[*value])?.f_reshape(no_dimensions)?,
        Attribute::Floats(values) => Tensor::f_from_slice(values)?,
        Attribute::Ints(values) => Tensor::f_from_slice(values)?,
        Attribute::Text(_) => bail!(Operator, "a text as a constant"),
    }])
}

fn asked_shape(call: &Call) -> Result<Vec<i64>> {
    match call.integers(0)? {
        Some(sizes) => limited(sizes),
        None => bail!(Format, "input 0 is missing"),
    }
}

fn of_shape_cost(call: &Call) -> Result<Cost> {
    Ok(Cost::of(count(&asked_shape(call)?)))
}

fn constant_of_shape(call: &Call) -> Result<Vec<Tensor>> {
    let sizes = asked_shape(call)?;
    match call.node.attributes.get("value") {
        Some(Attribute::Tensor(array)) => {
            if array.shape.iter().any(|&n| n != 1) {
                bail!(
                    Format,
                    "attribute value: expected one number, got a shape of {:?}",
                    array.shape
                );
            }
            let one_dimension = vec![1; sizes.len()];
            one(from_array(array, Device::Cpu)?
                .f_reshape(one_dimension)?
                .f_expand(&sizes, false)?
                .f_contiguous())
        }
        Some(_) => bail!(Format, "attribute value: expected a tensor"),
        None => one(Tensor::f_zeros(&sizes, (Kind::Float, Device::Cpu))),
    }
}

fn shape(call: &Call) -> Result<Vec<Tensor>> {
    let sizes = call.input(0)?.size();
    let rank = sizes.len() as i64;
    let bound = |value: i64| {
        let wrapped = if value < 0 {
            value.saturating_add(rank)
        } else {
            value
        };
        wrapped.clamp(0, rank) as usize
    };
    let (start, end) = (bound(call.int("start", 0)?), bound(call.int("end", rank)?));
    one(Tensor::f_from_slice(sizes.get(start..end).unwrap_or(&[])))
}

/// The cost of a reshape: a view where the elements are contiguous, a copy otherwise.
fn reshape_cost(call: &Call) -> Result<Cost> {
    let x = call.input(0)?;
    Ok(match x.is_contiguous() {
        true => Cost::FREE,
        false => Cost::of(elements(x)),
    })
}

fn reshape(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let Some(wanted) = call.axes("shape", 1)? else {
        bail!(Format, "a reshape without a shape");
    };
    let own = x.size();
    let keep_zero = call.flag("allowzero")?;
    let mut sizes = vec![];
    for (at, &size) in wanted.iter().enumerate() {
        sizes.push(match (size, own.get(at)) {
            (0, Some(&size)) if !keep_zero => size,
            (1, Some(&size)) if at == 0 && call.free_batch => size,
            (0, None) if !keep_zero => {
                bail!(Format, "shape {wanted:?} copies a dimension of {own:?}")
            }
            (size, _) => size,
        });
    }
    let (given, open): (Vec<i64>, Vec<i64>) = sizes.iter().partition(|&&size| size != -1);
    let known = count(&limited(given)?);
    let fits = match open.len() {
        0 => known == elements(x),
        1 => known != 0 && elements(x).is_multiple_of(known),
        _ => false,
    };
    if !fits {
        bail!(Format, "a value of shape {own:?} as {wanted:?}");
    }
    one(x.f_reshape(limited(
        sizes
            .into_iter()
            .map(|size| {
                if size == -1 {
                    (elements(x) / known.max(1)) as i64
                } else {
                    size
                }
            })
            .collect(),
    )?))
}

fn flatten(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let sizes = x.size();
    let value = call.int("axis", 1)?;
    let at = if value == sizes.len() as i64 {
        value
    } else {
        axis(value, sizes.len())?
    };
    let (rows, columns) = sizes.split_at(at as usize);
    one(x.f_reshape(limited(vec![count(rows) as i64, count(columns) as i64])?))
}

fn transpose(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let order = match call.ints("perm")? {
        Some(order) => distinct_axes(&order, x.dim())?,
        None => (0..x.dim() as i64).rev().collect(),
    };
    if order.len() != x.dim() {
        bail!(
            Format,
            "perm {order:?} of a value with {} dimensions",
            x.dim()
        );
    }
    one(x.f_permute(&order))
}

fn squeeze(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let Some(axes) = call.axes("axes", 1)? else {
        return one(x.f_squeeze());
    };
    let axes = distinct_axes(&axes, x.dim())?;
    if axes.iter().any(|&at| x.size()[at as usize] != 1) {
        bail!(
            Format,
            "axes {axes:?} of a value of shape {:?} are not all of size 1",
            x.size()
        );
    }
    one(x.f_squeeze_dims(&axes))
}

fn unsqueeze(call: &Call) -> Result<Vec<Tensor>> {
    let mut x = call.input(0)?.shallow_clone();
    let Some(axes) = call.axes("axes", 1)? else {
        bail!(Format, "no axes");
    };
    let rank = x.dim() + axes.len();
    if rank > MAX_RANK {
        bail!(
            Limit,
            "a value of {rank} dimensions; the most is {MAX_RANK}"
        );
    }
    let mut axes = distinct_axes(&axes, rank)?;
    axes.sort_unstable();
    for at in axes {
        x = x.f_unsqueeze(at)?;
    }
    Ok(vec![x])
}

fn expanded(call: &Call) -> Result<Vec<i64>> {
    let x = call.input(0)?;
    match call.integers(1)? {
        Some(sizes) => super::arithmetic::broadcast(&[x.size(), limited(sizes)?]),
        None => bail!(Format, "no shape"),
    }
}

/// How often every dimension is repeated, and the resulting sizes.
fn tiled(call: &Call) -> Result<(Vec<i64>, Vec<i64>)> {
    let x = call.full(0)?;
    let repeats = limited(call.integers(1)?.unwrap_or_default())?;
    if repeats.len() != x.dim() {
        bail!(
            Format,
            "{} repeats of a value with {} dimensions",
            repeats.len(),
            x.dim()
        );
    }
    let sizes = x
        .size()
        .iter()
        .zip(&repeats)
        .map(|(size, n)| size.saturating_mul(*n))
        .collect();
    Ok((repeats, limited(sizes)?))
}

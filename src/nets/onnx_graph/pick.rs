//! Operators that join values or take parts of them.

use super::budget::{Cost, count, limited};
use super::node::{Call, Class, Operator, axis, class, distinct_axes, elements, one, op, view};
use crate::error::{Result, bail};
use crate::tensor::upload;
use tch::{Device, Kind, Tensor};

/// This file's operators.
pub const OPERATORS: &[Operator] = &[
    op("Concat", &["axis"], concat_cost, concat),
    op("Split", &["axis", "split", "num_outputs"], view, split),
    op(
        "Slice",
        &["axes", "ends", "starts"],
        |c| Ok(Cost::of(elements(c.input(0)?))),
        slice,
    ),
    op("Gather", &["axis"], gather_cost, gather),
    op(
        "Pad",
        &["mode", "pads", "value"],
        |c| Ok(Padding::read(c)?.cost),
        pad,
    ),
];

/// The inputs and the axis of a Concat.
fn parts<'a>(call: &Call<'a>) -> Result<(Vec<&'a Tensor>, i64)> {
    let parts = (0..call.inputs.len())
        .map(|at| call.input(at))
        .collect::<Result<Vec<_>>>()?;
    let first = call.input(0)?;
    let at = axis(call.int("axis", 1)?, first.dim())?;
    if call.opset >= 4 && !call.node.attributes.contains_key("axis") {
        bail!(Format, "attribute axis is missing");
    }
    let sizes = first.size();
    let alike = |part: &Tensor| {
        let own = part.size();
        let fits = own
            .iter()
            .zip(&sizes)
            .zip(0..)
            .all(|((a, b), k)| a == b || k == at);
        own.len() == sizes.len() && fits && class(part) == class(first)
    };
    if let Some(other) = parts.iter().find(|part| !alike(part)) {
        bail!(
            Format,
            "values of shapes {sizes:?} ({:?}) and {:?} ({:?}) beside each other along {at}",
            first.kind(),
            other.size(),
            other.kind()
        );
    }
    Ok((parts, at))
}

fn concat_cost(call: &Call) -> Result<Cost> {
    let (parts, at) = parts(call)?;
    let mut sizes = parts[0].size();
    sizes[at as usize] = parts
        .iter()
        .fold(0, |n: i64, part| n.saturating_add(part.size()[at as usize]));
    Ok(Cost::of(count(&limited(sizes)?))
        .times(1)
        .with_scratch(parts.len() as u64))
}

fn concat(call: &Call) -> Result<Vec<Tensor>> {
    let (parts, at) = parts(call)?;
    one(Tensor::f_cat(&parts, at))
}

fn split(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let at = axis(call.int("axis", 0)?, x.dim())?;
    let total = x.size()[at as usize];
    let count = call.node.outputs.len() as i64;
    let sizes = match call.axes("split", 1)? {
        Some(sizes) => sizes,
        None => {
            let told = call.int("num_outputs", count)?;
            if told != count || count == 0 {
                bail!(Format, "num_outputs {told} for {count} outputs");
            }
            // Since operator set 18 the last part may be smaller.
            if call.opset < 18 && total % count != 0 {
                bail!(Format, "{total} elements in {count} equal parts");
            }
            let part = (total + count - 1) / count;
            (0..count)
                .map(|i| {
                    part.min(total.saturating_sub(i.saturating_mul(part)))
                        .max(0)
                })
                .collect()
        }
    };
    let sum = sizes.iter().fold(0, |n: i64, &size| n.saturating_add(size));
    if sizes.len() as i64 != count || sum != total || sizes.iter().any(|&size| size < 0) {
        bail!(
            Format,
            "parts {sizes:?} of {total} elements for {count} outputs"
        );
    }
    Ok(x.f_split_with_sizes(&sizes, at)?)
}

fn slice(call: &Call) -> Result<Vec<Tensor>> {
    let mut x = call.input(0)?.shallow_clone();
    let (Some(starts), Some(ends)) = (call.axes("starts", 1)?, call.axes("ends", 2)?) else {
        bail!(Format, "a slice without starts and ends");
    };
    let axes = match call.axes("axes", 3)? {
        Some(axes) => axes,
        None => (0..starts.len() as i64).collect(),
    };
    let steps = call.integers(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    let counts = [starts.len(), ends.len(), axes.len(), steps.len()];
    if counts != [starts.len(); 4] {
        bail!(Format, "a slice of {counts:?} starts, ends, axes and steps");
    }
    let axes = distinct_axes(&axes, x.dim())?;
    for (((start, end), at), step) in starts.into_iter().zip(ends).zip(axes).zip(steps) {
        let size = x.size()[at as usize];
        let wrapped = |v: i64| if v < 0 { v.saturating_add(size) } else { v };
        // With a negative step, exporters write the largest integer where they mean "down to the first element".
        let open = step < 0 && (end == i64::MAX || end == i64::from(i32::MAX));
        let (start, end) = (wrapped(start), if open { -1 } else { wrapped(end) });
        if step == 0 {
            bail!(Format, "a slice of step 0");
        }
        if step > 0 {
            let (start, end) = (start.clamp(0, size), end.clamp(0, size));
            x = x.f_slice(at, start, end.max(start), step.min(size.max(1)))?;
            continue;
        }
        let (mut from, to) = (start.min(size - 1).max(-1), end.clamp(-1, size));
        if start < 0 && size > 0 {
            from = 0;
        }
        let mut picked: Vec<i64> = vec![];
        while from > to {
            picked.push(from);
            from = from.saturating_add(step);
        }
        x = x.f_index_select(at, &upload(&picked, x.device())?)?;
    }
    Ok(vec![x])
}

/// The sizes of what a Gather takes.
fn gathered(call: &Call) -> Result<Vec<i64>> {
    let (x, indices) = (call.input(0)?, call.input(1)?);
    let at = axis(call.int("axis", 0)?, x.dim())? as usize;
    if class(indices) != Class::Integer {
        bail!(Format, "indices of {:?}", indices.kind());
    }
    let mut sizes = x.size();
    sizes.splice(at..=at, indices.size());
    limited(sizes)
}

fn gather_cost(call: &Call) -> Result<Cost> {
    Ok(Cost::of(count(&gathered(call)?)).with_scratch(elements(call.input(1)?)))
}

fn gather(call: &Call) -> Result<Vec<Tensor>> {
    let (x, indices) = (call.input(0)?, call.input(1)?);
    let at = axis(call.int("axis", 0)?, x.dim())?;
    let size = x.size()[at as usize];
    let flat = indices
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Int64)?
        .f_reshape([-1i64])?;
    let mut picked = Vec::<i64>::try_from(flat)?;
    for index in &mut picked {
        if *index < -size || *index >= size {
            bail!(Format, "index {index} into a dimension of {size}");
        }
        *index += if *index < 0 { size } else { 0 };
    }
    if let ([], [index]) = (indices.size().as_slice(), picked.as_slice()) {
        return one(x.f_select(at, *index));
    }
    let picked = upload(&picked, x.device())?;
    one(x.f_index_select(at, &picked)?.f_reshape(gathered(call)?))
}

/// How many elements are added before and after every dimension. A negative number removes elements.
struct Padding {
    begin: Vec<i64>,
    end: Vec<i64>,
    cost: Cost,
}

impl Padding {
    fn read(call: &Call) -> Result<Padding> {
        let x = call.full(0)?;
        let rank = x.dim();
        let Some(pads) = call.axes("pads", 1)? else {
            bail!(Format, "no pads");
        };
        let axes = match call.integers(3)? {
            Some(axes) => distinct_axes(&axes, rank)?,
            None => (0..rank as i64).collect(),
        };
        if pads.len() != 2 * axes.len() {
            bail!(Format, "pads {pads:?} of {} dimensions", axes.len());
        }
        let (mut begin, mut end) = (vec![0; rank], vec![0; rank]);
        for (k, &at) in axes.iter().enumerate() {
            (begin[at as usize], end[at as usize]) = (pads[k], pads[axes.len() + k]);
        }
        let mut sizes = x.size();
        for (size, (b, e)) in sizes.iter_mut().zip(begin.iter().zip(&end)) {
            let own = *size;
            *size = own.saturating_add(*b).saturating_add(*e);
            if b.min(e) < &-own || *size < 1 {
                bail!(Format, "pads {pads:?} of a value of shape {:?}", x.size());
            }
        }
        let elements = count(&limited(sizes)?);
        // Where elements are repeated, the dimensions are padded one after the other.
        Ok(Padding {
            begin,
            end,
            cost: Cost::of(elements).with_scratch(elements),
        })
    }
}

fn pad(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let Padding { begin, end, .. } = Padding::read(call)?;
    let mode = call.text("mode", "constant")?;
    if mode == "constant" {
        let value = match call.optional(2).filter(|value| value.numel() > 0) {
            Some(_) => call.number(2)?.unwrap_or(0.0),
            None => call.float("value", 0.0)?,
        };
        if class(x) != Class::Float && value.abs() > 2f64.powi(53) {
            bail!(Operator, "integers padded with {value}");
        }
        let turned: Vec<i64> = (0..x.dim())
            .rev()
            .flat_map(|at| [begin[at], end[at]])
            .collect();
        return one(x.f_pad(&turned, "constant", value));
    }
    let mut y = x.shallow_clone();
    for (at, size) in x.size().into_iter().enumerate() {
        let (before, after) = (begin[at], end[at]);
        if before == 0 && after == 0 {
            continue;
        }
        let place = |i: i64| match mode {
            "edge" => Some(i.clamp(0, size - 1)),
            // Mirrored once, at the first and at the last element.
            "reflect" if i < 0 => (-i < size).then_some(-i),
            "reflect" if i >= size => (2 * (size - 1) - i >= 0).then_some(2 * (size - 1) - i),
            "reflect" => Some(i),
            _ => None,
        };
        let Some(places) = (-before..size + after)
            .map(place)
            .collect::<Option<Vec<i64>>>()
        else {
            bail!(
                Operator,
                "mode {mode} with pads {before} and {after} of {size} elements"
            );
        };
        y = y.f_index_select(at as i64, &upload(&places, y.device())?)?;
    }
    Ok(vec![y])
}

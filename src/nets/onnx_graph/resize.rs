//! Resize and its predecessor Upsample. Where libtorch has an operation that computes the same, it is used. Everything
//! else is one index or one small matrix per resized dimension.

use super::budget::{Cost, count, limited};
use super::coordinates::{Axis, Coordinates, Filter, Rounding};
use super::node::{Call, Operator, distinct_axes, elements, op, scalar};
use crate::error::{Result, bail};
use crate::tensor::upload;
use crate::weights::onnx::Attribute;
use tch::{Device, Kind, Tensor};

/// This file's operators.
pub const OPERATORS: &[Operator] = &[
    op(
        "Resize",
        &[
            "antialias",
            "axes",
            "coordinate_transformation_mode",
            "cubic_coeff_a",
            "exclude_outside",
            "extrapolation_value",
            "keep_aspect_ratio_policy",
            "mode",
            "nearest_mode",
        ],
        cost,
        resize,
    ),
    op("Upsample", &["mode", "scales"], cost, resize),
];

/// The longest side of a resized value.
const MAX_SIDE: i64 = 1 << 16;

/// The arguments of one call.
struct Plan {
    /// The dimensions whose size or place changes.
    axes: Vec<Axis>,
    coordinates: Coordinates,
    filter: Filter,
    exclude_outside: bool,
    antialias: bool,
}

impl Plan {
    fn read(call: &Call) -> Result<Plan> {
        let x = call.float_input(0)?;
        let old = call.node.op == "Upsample" || call.opset < 11;
        let coordinates = match old {
            true => Coordinates::Asymmetric,
            false => {
                Coordinates::named(call.text("coordinate_transformation_mode", "half_pixel")?)?
            }
        };
        let filter = match call.text("mode", "nearest")? {
            "nearest" if old => Filter::Nearest(Rounding::Simple),
            "nearest" => Filter::Nearest(Rounding::named(
                call.text("nearest_mode", "round_prefer_floor")?,
            )?),
            "linear" | "bilinear" => Filter::Linear,
            "cubic" => Filter::Cubic(call.float("cubic_coeff_a", -0.75)? as f32),
            other => bail!(Operator, "mode {other}"),
        };
        // In exact arithmetic these places are whole numbers. In float32 the last bit would decide how they are
        // rounded.
        if coordinates == Coordinates::HalfPixelSymmetric
            && matches!(filter, Filter::Nearest(Rounding::Floor | Rounding::Ceil))
        {
            bail!(
                Operator,
                "half_pixel_symmetric with nearest_mode floor or ceil"
            );
        }
        let mut axes = sizes(call, &x.size(), old)?;
        if coordinates == Coordinates::TfCropAndResize {
            parts(call, &mut axes)?;
        }
        // ONNX Runtime copies where no size changes, and leaves alone what has the scale 1, even where
        // `tf_crop_and_resize` names a part of it.
        let changes = axes.iter().any(|axis| axis.from != axis.to);
        axes.retain(|axis| changes && (axis.from != axis.to || axis.scale != 1.0));
        Ok(Plan {
            axes,
            coordinates,
            filter,
            exclude_outside: call.flag("exclude_outside")?,
            antialias: call.flag("antialias")?,
        })
    }

    /// The axes, where these are the last two of four dimensions, which libtorch can resize.
    fn plane(&self, x: &Tensor) -> Option<[Axis; 2]> {
        let whole = |at: usize| Axis {
            at,
            from: x.size()[at],
            to: x.size()[at],
            scale: 1.0,
            part: (0.0, 1.0),
        };
        if x.dim() != 4 || self.axes.is_empty() || self.axes.iter().any(|axis| axis.at < 2) {
            return None;
        }
        let find = |at: usize| self.axes.iter().find(|axis| axis.at == at).cloned();
        Some([2, 3].map(|at| find(at).unwrap_or_else(|| whole(at))))
    }
}

/// The size and the scale of every dimension.
fn sizes(call: &Call, own: &[i64], old: bool) -> Result<Vec<Axis>> {
    let named = match call.ints("axes")? {
        Some(axes) => distinct_axes(&axes, own.len())?,
        None => (0..own.len() as i64).collect(),
    };
    let from = |k: usize| own[named[k] as usize];
    // Inputs: Upsample X, scales; Resize 10 X, scales; Resize 11 X, roi, scales, sizes.
    let (scales_at, sizes_at) = if old { (1, usize::MAX) } else { (2, 3) };
    let asked = call.integers(sizes_at)?.filter(|sizes| !sizes.is_empty());
    let scales = scales(call, scales_at)?;
    let policy = call.text("keep_aspect_ratio_policy", "stretch")?;
    let pairs: Vec<(i64, f32)> = match (asked, scales) {
        (Some(_), Some(_)) => bail!(Format, "both scales and sizes"),
        (Some(sizes), None) => {
            if sizes.len() != named.len() || sizes.iter().any(|size| !(1..=MAX_SIDE).contains(size))
            {
                bail!(
                    Limit,
                    "sizes {sizes:?} for {} dimensions; each may be 1 to {MAX_SIDE}",
                    named.len()
                );
            }
            let batch = |(k, &to): (usize, &i64)| match to {
                1 if call.free_batch && named[k] == 0 => from(k),
                _ => to,
            };
            let sizes: Vec<i64> = sizes.iter().enumerate().map(batch).collect();
            let own = sizes
                .iter()
                .enumerate()
                .map(|(k, &to)| to as f32 / from(k) as f32);
            let one = match policy {
                "stretch" => None,
                "not_larger" => own.clone().reduce(f32::min),
                "not_smaller" => own.clone().reduce(f32::max),
                other => bail!(Operator, "keep_aspect_ratio_policy {other}"),
            };
            let pair = |(k, (scale, &to)): (usize, (f32, &i64))| match one {
                None => (to, scale),
                Some(one) => ((one * from(k) as f32).round() as i64, one),
            };
            own.zip(&sizes).enumerate().map(pair).collect()
        }
        (None, Some(scales)) => {
            if scales.len() != named.len()
                || scales
                    .iter()
                    .any(|scale| !(scale.is_finite() && *scale > 0.0))
            {
                bail!(Format, "scales {scales:?} for {} dimensions", named.len());
            }
            let pair =
                |(k, &scale): (usize, &f32)| ((from(k) as f32 * scale).floor() as i64, scale);
            scales.iter().enumerate().map(pair).collect()
        }
        (None, None) => bail!(Format, "neither scales nor sizes"),
    };
    if let Some((to, _)) = pairs.iter().find(|(to, _)| !(1..=MAX_SIDE).contains(to)) {
        bail!(Limit, "a side of {to}; it may be 1 to {MAX_SIDE}");
    }
    let axis = |(k, (to, scale)): (usize, (i64, f32))| Axis {
        at: named[k] as usize,
        from: from(k),
        to,
        scale,
        part: (0.0, 1.0),
    };
    Ok(pairs.into_iter().enumerate().map(axis).collect())
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    if tensor.numel() > 2 * super::budget::MAX_RANK {
        bail!(Format, "scales of shape {:?}", tensor.size());
    }
    let flat = tensor
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Float)?
        .f_reshape([-1i64])?;
    Ok(Vec::try_from(flat)?)
}

/// The scales, from an input or, before operator set 9, from the attribute.
fn scales(call: &Call, at: usize) -> Result<Option<Vec<f32>>> {
    match (call.optional(at), call.node.attributes.get("scales")) {
        (Some(scales), _) if scales.numel() > 0 => Ok(Some(floats(scales)?)),
        (_, Some(Attribute::Floats(scales))) => Ok(Some(scales.clone())),
        _ => Ok(None),
    }
}

/// Sets the part of every dimension that `tf_crop_and_resize` resizes.
fn parts(call: &Call, axes: &mut [Axis]) -> Result<()> {
    let Some(roi) = call.optional(1) else {
        bail!(Format, "tf_crop_and_resize without a region");
    };
    let (roi, count) = (floats(roi)?, axes.len());
    if roi.len() != 2 * count || roi.iter().any(|v| !v.is_finite()) {
        bail!(Format, "a region {roi:?} for {count} dimensions");
    }
    for (k, axis) in axes.iter_mut().enumerate() {
        axis.part = (roi[k], roi[count + k]);
    }
    Ok(())
}

fn cost(call: &Call) -> Result<Cost> {
    let x = call.float_input(0)?;
    let plan = Plan::read(call)?;
    let mut sizes = x.size();
    let mut cost = Cost::FREE;
    for axis in &plan.axes {
        sizes[axis.at] = axis.to;
        let made = count(&limited(sizes.clone())?);
        let nearest = matches!(plan.filter, Filter::Nearest(_));
        let (matrix, steps) = match nearest {
            true => (count(&[axis.to]), 1),
            false => (count(&[axis.to, axis.from]), count(&[axis.from])),
        };
        cost.work = cost
            .work
            .saturating_add(made.saturating_mul(steps))
            .saturating_add(matrix);
        cost.scratch = cost
            .scratch
            .saturating_add(made.saturating_mul(2))
            .saturating_add(matrix);
        cost.elements = made;
    }
    if let Some([height, width]) = plan.plane(x)
        && native(&plan, &height, &width).is_some()
    {
        return Ok(Cost::of(
            elements(x) / count(&[height.from, width.from]) * count(&[height.to, width.to]),
        )
        .times(4));
    }
    Ok(cost)
}

/// Resizes for which libtorch has an operation with ONNX Runtime's results.
enum Native {
    Nearest,
    Linear { corners: bool },
}

fn native(plan: &Plan, height: &Axis, width: &Axis) -> Option<Native> {
    let both = |test: &dyn Fn(&Axis) -> bool| test(height) && test(width);
    if plan.antialias {
        return None;
    }
    match plan.filter {
        Filter::Nearest(rounding) => {
            // Whether every element is repeated equally often, in order.
            let repeats = |axis: &Axis| {
                let factor = axis.to / axis.from;
                axis.to % axis.from == 0
                    && plan.coordinates != Coordinates::TfCropAndResize
                    && axis
                        .nearest(plan.coordinates, rounding)
                        .iter()
                        .zip(0..)
                        .all(|(&at, i)| at == i / factor)
            };
            both(&repeats).then_some(Native::Nearest)
        }
        Filter::Linear => match plan.coordinates {
            Coordinates::HalfPixel => Some(Native::Linear { corners: false }),
            Coordinates::PytorchHalfPixel if both(&|axis| axis.to > 1) => {
                Some(Native::Linear { corners: false })
            }
            Coordinates::AlignCorners => Some(Native::Linear { corners: true }),
            _ => None,
        },
        Filter::Cubic(_) => None,
    }
}

fn resize(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.float_input(0)?;
    let plan = Plan::read(call)?;
    if plan.antialias && matches!(plan.filter, Filter::Nearest(_)) {
        bail!(Operator, "antialias with mode nearest");
    }
    if let Some([height, width]) = plan.plane(x)
        && let Some(native) = native(&plan, &height, &width)
    {
        let size = [height.to, width.to];
        let scales = [height.scale, width.scale].map(|scale| Some(f64::from(scale)));
        return Ok(vec![match native {
            Native::Nearest => x.f_upsample_nearest2d(size, None, None)?,
            Native::Linear { corners } => {
                x.f_upsample_bilinear2d(size, corners, scales[0], scales[1])?
            }
        }]);
    }
    let mut y = x.shallow_clone();
    for axis in &plan.axes {
        y = match plan.filter {
            Filter::Nearest(rounding) => {
                let index = upload(&axis.nearest(plan.coordinates, rounding), y.device())?;
                y.f_index_select(axis.at as i64, &index)?
            }
            filter => {
                let taps = match plan.antialias {
                    true => axis.wide_taps(plan.coordinates, filter, plan.exclude_outside),
                    false => axis.taps(plan.coordinates, filter, plan.exclude_outside),
                };
                let (from, to) = (axis.from as usize, axis.to as usize);
                let mut matrix = vec![0f32; from * to];
                for (i, (at, weight)) in taps
                    .iter()
                    .enumerate()
                    .flat_map(|(i, taps)| taps.iter().map(move |t| (i, t)))
                {
                    matrix[at * to + i] += weight;
                }
                let matrix = upload(&matrix, y.device())?
                    .f_reshape([axis.from, axis.to])?
                    .f_to_kind(y.kind())?;
                let at = axis.at as i64;
                y.f_transpose(at, -1)?
                    .f_matmul(&matrix)?
                    .f_transpose(at, -1)?
            }
        };
    }
    if plan.coordinates == Coordinates::TfCropAndResize {
        y = extrapolated(call, &plan, y)?;
    }
    Ok(vec![y])
}

/// `y` with the given number wherever a place lies outside the value.
fn extrapolated(call: &Call, plan: &Plan, mut y: Tensor) -> Result<Tensor> {
    let value =
        scalar(call.float("extrapolation_value", 0.0)?, y.kind())?.f_to_device(y.device())?;
    for axis in &plan.axes {
        let outside = axis.outside(plan.coordinates);
        if outside.iter().any(|&o| o) {
            let mut shape = vec![1; y.dim()];
            shape[axis.at] = axis.to;
            let mask = upload(&outside, y.device())?.f_reshape(&shape)?;
            y = value.f_where_self(&mask, &y)?;
        }
    }
    Ok(y)
}

//! Resize and its ancestor Upsample, over the two spatial dimensions.

use super::node::{Call, Operator, one};
use crate::error::{Result, bail};
use tch::{Device, Kind, Tensor};

/// This file's operators.
pub const OPERATORS: &[(&str, Operator)] = &[("Resize", resize), ("Upsample", resize)];

fn resize(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let &[_, _, height, width] = x.size().as_slice() else {
        bail!(Operator, "resizing a value of shape {:?}", x.size());
    };
    let (size, scales) = target(call, height, width)?;
    let old = call.node.op == "Upsample" || call.opset < 11;
    let coordinates = match old {
        true => "asymmetric",
        false => call.text("coordinate_transformation_mode", "half_pixel"),
    };
    let (h, w) = scales.map_or((None, None), |(h, w)| (Some(h), Some(w)));
    match (call.text("mode", "nearest"), coordinates) {
        ("nearest", "asymmetric") => {
            let rounding = if old {
                "floor"
            } else {
                call.text("nearest_mode", "round_prefer_floor")
            };
            // Twice as large, both roundings choose the same pixel.
            let double = size == [2 * height, 2 * width];
            if rounding != "floor" && !(double && rounding == "round_prefer_floor") {
                bail!(
                    Operator,
                    "nearest_mode {rounding} with asymmetric coordinates"
                );
            }
            one(x.f_upsample_nearest2d(size, h, w))
        }
        ("nearest", "half_pixel" | "pytorch_half_pixel") => {
            let whole = size[0] % height == 0 && size[1] % width == 0;
            if !whole {
                bail!(Operator, "nearest half_pixel by a factor that is not whole");
            }
            one(x.f_internal_upsample_nearest_exact2d(size, h, w))
        }
        ("linear" | "bilinear", "half_pixel" | "pytorch_half_pixel") => {
            one(x.f_upsample_bilinear2d(size, false, h, w))
        }
        ("linear" | "bilinear", "align_corners") => one(x.f_upsample_bilinear2d(size, true, h, w)),
        (mode, coordinates) => bail!(Operator, "mode {mode} with {coordinates} coordinates"),
    }
}

type Target = ([i64; 2], Option<(f64, f64)>);

/// The new height and width, and the scales where the model gives those.
fn target(call: &Call, height: i64, width: i64) -> Result<Target> {
    // Inputs: Upsample X, scales; Resize 10 X, scales; Resize 11 X, roi, scales, sizes.
    let (scales_at, sizes_at) = match call.node.op == "Upsample" || call.opset < 11 {
        true => (1, usize::MAX),
        false => (2, 3),
    };
    let sizes = if sizes_at == usize::MAX {
        None
    } else {
        call.integers(sizes_at)?
    };
    if let Some(&[.., h, w]) = sizes.as_deref() {
        return Ok((checked([h, w])?, None));
    }
    let scales: Vec<f64> = match call.optional(scales_at) {
        Some(scales) if scales.numel() > 0 => {
            Vec::try_from(scales.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)?
        }
        _ => match call.node.attributes.get("scales") {
            Some(crate::weights::onnx::Attribute::Floats(scales)) => {
                scales.iter().map(|&s| f64::from(s)).collect()
            }
            _ => bail!(Format, "neither scales nor sizes"),
        },
    };
    let &[n, c, h, w] = scales.as_slice() else {
        bail!(Operator, "scales {scales:?}");
    };
    if n != 1.0 || c != 1.0 {
        bail!(Operator, "resizing batch or channels: scales {scales:?}");
    }
    let size = [
        (height as f64 * h).floor() as i64,
        (width as f64 * w).floor() as i64,
    ];
    Ok((checked(size)?, Some((h, w))))
}

fn checked(size: [i64; 2]) -> Result<[i64; 2]> {
    if size.iter().any(|&n| !(1..=1 << 16).contains(&n)) {
        bail!(Format, "a size of {size:?}");
    }
    Ok(size)
}

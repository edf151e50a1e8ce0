//! Brings a decoded image into [0, 1].

use crate::config::ClampPolicy;
use crate::error::Result;
use tch::Tensor;

/// Steepness of the soft ends: the curve leaves the identity about 1/β = 1/20 before the end.
const SOFT_BETA: f64 = 20.0;

/// Brings an image that may leave [0, 1] into [0, 1]. Any shape; the dtype is kept.
///
/// * `clamp`: exact, and what the method does. The gradient is zero wherever the image is below 0
///   or above 1: a burnt-out highlight cannot be pulled back by this loss.
/// * `straight_through`: the same image; the gradient passes unchanged. Saturated pixels keep
///   being pushed, also further out, since the loss cannot see how far out they are.
/// * `soft`: `(softplus(βx) − softplus(β(x−1)))/β` with β = 20. The gradient is
///   `σ(βx) − σ(β(x−1))`: one in the middle, ½ at 0 and 1, falling as e^(−β·overshoot) beyond.
///   The image changes by up to ln 2/β = 0.035 at the ends.
///
/// NaN stays NaN under every policy; an infinite pixel becomes NaN under the last two.
pub fn clamp_image(image: &Tensor, policy: ClampPolicy) -> Result<Tensor> {
    Ok(match policy {
        ClampPolicy::Clamp => image.f_clamp(0.0, 1.0)?,
        ClampPolicy::StraightThrough => {
            let fixed = image.f_detach()?;
            // The difference is exactly 0 for finite pixels, so the image is exactly clamped.
            image.f_sub(&fixed)?.f_add(&fixed.f_clamp(0.0, 1.0)?)?
        }
        ClampPolicy::Soft => {
            let x = image.f_mul_scalar(SOFT_BETA)?;
            x.f_softplus()?
                .f_sub(&x.f_sub_scalar(SOFT_BETA)?.f_softplus()?)?
                .f_div_scalar(SOFT_BETA)?
        }
    })
}

//! Converts between the transformers' layouts and `[B,C,H,W]`. Only views and permutations are used, so round
//! trips are exact. The gradient has the packed layout.

use crate::config::{Packing, Rect};
use crate::error::{Result, bail};
use tch::Tensor;

/// Packed latents → `[B,C,H,W]`.
///
/// `size` is (H, W) of the result in latent pixels. The token layouts need it, because their shape does not tell
/// it. For the other layouts it is checked where it is given.
///
/// # Errors
/// `Shape` for another rank, a channel count that is no multiple of 4, an odd or unfitting size.
pub fn unpack(latents: &Tensor, packing: Packing, size: Option<(i64, i64)>) -> Result<Tensor> {
    let shape = latents.size();
    let unpacked = match packing {
        Packing::None => {
            four(&shape, "[B,C,H,W]")?;
            latents.shallow_clone()
        }
        Packing::Flux2 => {
            let [b, c, h, w] = four(&shape, "[B,4C,H/2,W/2]")?;
            let c = quarter(c, &shape)?;
            unpatchify(latents, [b, c, h, w])?
        }
        Packing::Flux | Packing::Flux2Tokens => {
            let &[b, tokens, features] = shape.as_slice() else {
                bail!(Shape, "latents: expected tokens [B,HW/4,4C], got {shape:?}");
            };
            let c = quarter(features, &shape)?;
            let Some((h, w)) = size else {
                bail!(
                    Shape,
                    "latents: tokens do not tell the picture's size; give the latent height and width"
                );
            };
            let (h2, w2) = halves(h, w)?;
            if h2.checked_mul(w2) != Some(tokens) {
                bail!(
                    Shape,
                    "latents: {tokens} tokens of 2x2 do not make a latent of {h}x{w} ({h2}x{w2} tokens)"
                );
            }
            // Both token layouts have features (c, py, px): diffusers pipeline_flux.py
            // _unpack_latents, pipeline_flux2.py _unpack_latents_with_ids.
            let grid = latents
                .f_reshape([b, h2, w2, 4 * c])?
                .f_permute([0, 3, 1, 2])?;
            unpatchify(&grid, [b, c, h2, w2])?
        }
    };
    if let (Some((h, w)), [.., uh, uw]) = (size, unpacked.size().as_slice())
        && (h, w) != (*uh, *uw)
    {
        bail!(
            Shape,
            "latents: expected a latent of {h}x{w}, got {uh}x{uw}"
        );
    }
    Ok(unpacked)
}

/// `[B,C,H,W]` → packed latents; the inverse of [`unpack`].
///
/// # Errors
/// `Shape` for another rank or an odd size.
pub fn pack(latents: &Tensor, packing: Packing) -> Result<Tensor> {
    let shape = latents.size();
    let [b, c, h, w] = four(&shape, "[B,C,H,W]")?;
    if packing == Packing::None {
        return Ok(latents.shallow_clone());
    }
    let (h2, w2) = halves(h, w)?;
    let patches = latents.f_reshape([b, c, h2, 2, w2, 2])?;
    Ok(match packing {
        Packing::Flux2 => patches
            .f_permute([0, 1, 3, 5, 2, 4])?
            .f_reshape([b, 4 * c, h2, w2])?,
        _ => patches
            .f_permute([0, 2, 4, 1, 3, 5])?
            .f_reshape([b, h2 * w2, 4 * c])?,
    })
}

/// The rectangle of `[B,C,H,W]` latents, as a view. The gradient outside it is zero. With FLUX.2 the rectangle
/// must lie on even pixels, because the latent's statistics are per 2×2 patch.
///
/// # Errors
/// `Shape` for another rank; `Argument` for a rectangle that is empty or leaves the latent.
pub fn crop(latents: &Tensor, rect: &Rect) -> Result<Tensor> {
    let shape = latents.size();
    let [.., h, w] = four(&shape, "[B,C,H,W]")?;
    let fits = |start: i64, length: i64, size: i64| {
        start >= 0 && length >= 1 && start.checked_add(length).is_some_and(|end| end <= size)
    };
    if !fits(rect.y, rect.height, h) || !fits(rect.x, rect.width, w) {
        bail!(
            Argument,
            "crop: {}x{} latent pixels at row {}, column {} do not lie inside the latent of {h}x{w}",
            rect.height,
            rect.width,
            rect.y,
            rect.x
        );
    }
    Ok(latents
        .f_narrow(2, rect.y, rect.height)?
        .f_narrow(3, rect.x, rect.width)?)
}

fn unpatchify(grid: &Tensor, [b, c, h2, w2]: [i64; 4]) -> Result<Tensor> {
    Ok(grid
        .f_reshape([b, c, 2, 2, h2, w2])?
        .f_permute([0, 1, 4, 2, 5, 3])?
        .f_reshape([b, c, h2 * 2, w2 * 2])?)
}

fn quarter(channels: i64, shape: &[i64]) -> Result<i64> {
    if channels < 4 || channels % 4 != 0 {
        bail!(
            Shape,
            "latents: expected packed channels that are a multiple of 4, got {channels} in {shape:?}"
        );
    }
    Ok(channels / 4)
}

fn halves(h: i64, w: i64) -> Result<(i64, i64)> {
    if h < 2 || w < 2 || h % 2 != 0 || w % 2 != 0 {
        bail!(
            Shape,
            "latents: 2x2 packing needs an even height and width, got {h}x{w}"
        );
    }
    Ok((h / 2, w / 2))
}

pub(super) fn four(shape: &[i64], what: &str) -> Result<[i64; 4]> {
    match <[i64; 4]>::try_from(shape) {
        Ok(sizes) => Ok(sizes),
        Err(_) => bail!(Shape, "latents: expected {what}, got {shape:?}"),
    }
}

//! Differentiable crops: bilinear sampling of an image along a face's affine map.

mod pixels;
mod place;

pub use pixels::align_pixels;
pub use place::{Alignment, crop_for};

use crate::config::Rect;
use crate::error::{Result, bail};
use crate::face::{Affine, invert};
use crate::tensor::upload;
use crate::weights::buffer;
use tch::{Device, Kind, Tensor};

/// The pixels outside an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Border {
    /// Black pixels, as `cv2.warpAffine` with border value 0 has them.
    Zeros,
    /// The image reflected about its outermost pixels, as `F.pad(mode="reflect")`.
    Reflect,
}

/// One crop of an image in a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Crop {
    /// The row of the image in the batch.
    pub sample: i64,
    /// The map from image pixels to crop pixels, with pixel centres at integers.
    pub transform: Affine,
    /// The pixels outside the image.
    pub border: Border,
}

// Values of the enums in torch's ATen/native/GridSamplerUtils.h.
const BILINEAR: i64 = 0;
const PAD_ZEROS: i64 = 0;

/// Cuts `crops` out of `images` `[N,3,H,W]` (any float dtype, any strides). Returns `[M,3,size,size]` float32 in the
/// units of the images. The gradient flows back to `images`. Sampling is bilinear without antialiasing at every scale, as
/// in insightface. The place of a crop pixel is a constant: no gradient flows to the transforms.
pub fn align(images: &Tensor, crops: &[Crop], size: i64) -> Result<Tensor> {
    align_within(images, crops, &[], size)
}

/// Where a window lies in its image, pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// The window.
    pub window: Rect,
    /// Height of the image.
    pub height: i64,
    /// Width of the image.
    pub width: i64,
}

/// [`align`] for windows `[N,3,height,width]` of images, with one frame per window; no frames: for whole images. The
/// crops' transforms are those of the whole images. A window must contain the part of its crops'
/// [support](Crop::support) that lies in the image.
pub fn align_within(
    images: &Tensor,
    crops: &[Crop],
    frames: &[Frame],
    size: i64,
) -> Result<Tensor> {
    let &[count, channels, height, width] = images.size().as_slice() else {
        bail!(Shape, "images: expected [N,C,H,W], got {:?}", images.size());
    };
    if let Some(crop) = crops
        .iter()
        .find(|crop| crop.sample < 0 || crop.sample >= count)
    {
        bail!(
            Internal,
            "crop of image {} in a batch of {count}",
            crop.sample
        );
    }
    let device = images.device();
    if crops.is_empty() {
        return Ok(Tensor::f_zeros(
            [0, channels, size, size],
            (Kind::Float, device),
        )?);
    }
    let samples: Vec<i64> = crops.iter().map(|crop| crop.sample).collect();
    let whole = samples.len() as i64 == count && samples.is_sorted_by(|a, b| a < b);
    let source = if whole {
        images.shallow_clone()
    } else {
        images.f_index_select(0, &upload(&samples, device)?)?
    };
    let whole = Frame {
        window: Rect {
            x: 0,
            y: 0,
            width,
            height,
        },
        height,
        width,
    };
    let frame = |crop: &Crop| *frames.get(crop.sample as usize).unwrap_or(&whole);
    let frames: Vec<Frame> = crops.iter().map(frame).collect();
    let grid = grid(crops, &frames, size, device)?;
    Ok(source
        .f_to_kind(Kind::Float)?
        .f_grid_sampler(&grid, BILINEAR, PAD_ZEROS, false)?)
}

/// The position of every crop pixel in its image or window, `[M,size,size,2]` in the units of grid_sampler, where −1 and
/// 1 are the outer edges. It is computed in f64 on the CPU and rounded once.
fn grid(crops: &[Crop], frames: &[Frame], size: i64, device: Device) -> Result<Tensor> {
    let mut points = buffer(crops.len() * (size * size * 2) as usize)?;
    for (crop, frame) in crops.iter().zip(frames) {
        let window = &frame.window;
        let place = |at: f64, first: i64, length: i64| {
            ((2.0 * (at - first as f64) + 1.0) / length as f64 - 1.0) as f32
        };
        crop.sample_points(size, frame.width as f64, frame.height as f64, |x, y| {
            points.push(place(x, window.x, window.width));
            points.push(place(y, window.y, window.height));
        });
    }
    Ok(upload(&points, device)?.f_view([crops.len() as i64, size, size, 2])?)
}

impl Crop {
    /// Calls `visit` with the position in an image of `width`×`height` of every pixel of a crop of `size`, row by row.
    fn sample_points(&self, size: i64, width: f64, height: f64, mut visit: impl FnMut(f64, f64)) {
        let [[a, b, c], [d, e, f]] = invert(&self.transform);
        let place = |value: f64, length: f64| match self.border {
            Border::Zeros => value,
            Border::Reflect => mirrored(value, length),
        };
        for v in 0..size {
            for u in 0..size {
                let (u, v) = (u as f64, v as f64);
                visit(
                    place(a * u + b * v + c, width),
                    place(d * u + e * v + f, height),
                );
            }
        }
    }

    /// The rectangle of an image of (height, width) that a crop of `size` shows, with a margin of one pixel. It extends
    /// beyond the image by at most two pixels. For a crop that shows none of the image it lies outside.
    pub fn support(&self, size: i64, (height, width): (i64, i64)) -> Rect {
        let (mut x, mut y) = (
            (f64::INFINITY, f64::NEG_INFINITY),
            (f64::INFINITY, f64::NEG_INFINITY),
        );
        self.sample_points(size, width as f64, height as f64, |px, py| {
            x = (x.0.min(px), x.1.max(px));
            y = (y.0.min(py), y.1.max(py));
        });
        let span = |(least, most): (f64, f64), length: i64| {
            let end = length as f64 + 1.0;
            let first = (least.floor() - 1.0).clamp(-2.0, end) as i64;
            let last = (most.ceil() + 1.0).clamp(-2.0, end) as i64;
            (first, last - first + 1)
        };
        let ((x, width), (y, height)) = (span(x, width), span(y, height));
        Rect {
            x,
            y,
            width,
            height,
        }
    }
}

/// A coordinate reflected into `0..=length - 1` at both ends.
fn mirrored(value: f64, length: f64) -> f64 {
    let last = length - 1.0;
    if last <= 0.0 {
        return 0.0;
    }
    let folded = value.rem_euclid(2.0 * last);
    folded.min(2.0 * last - folded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn whole_pixels_are_copied_and_borders_are_as_named() {
        let image = Tensor::f_arange(12, (Kind::Float, Device::Cpu)).unwrap();
        let image = image.f_view([1, 1, 3, 4]).unwrap();
        let shifted = |border| {
            let crop = Crop {
                sample: 0,
                transform: [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]],
                border,
            };
            let crops = align(&image, &[crop], 3).unwrap();
            Vec::<f32>::try_from(crops.f_reshape(-1).unwrap()).unwrap()
        };
        let close = |got: Vec<f32>, want: [f32; 9]| {
            assert!(
                got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-4),
                "{got:?}"
            );
        };
        close(shifted(Border::Zeros), [0., 0., 0., 0., 0., 1., 0., 4., 5.]);
        close(
            shifted(Border::Reflect),
            [5., 4., 5., 1., 0., 1., 5., 4., 5.],
        );
    }

    #[test]
    fn one_pixel_and_no_crop_are_fine() {
        let image = Tensor::f_ones([1, 3, 1, 1], (Kind::Half, Device::Cpu)).unwrap();
        assert_eq!(align(&image, &[], 8).unwrap().size(), [0, 3, 8, 8]);
        let crop = Crop {
            sample: 0,
            transform: [[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]],
            border: Border::Reflect,
        };
        let got = align(&image, &[crop], 8).unwrap();
        assert!(
            (got.f_mean(Kind::Float)
                .unwrap()
                .f_double_value(&[])
                .unwrap()
                - 1.0)
                .abs()
                < 1e-6
        );
    }
}

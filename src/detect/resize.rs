//! `cv2.resize` with its default interpolation on 8-bit pixels, to the bit: fixed-point weights of 11
//! bits, and the truncations between the two passes (OpenCV `modules/imgproc/src/resize.cpp`,
//! `HResizeLinear`, `VResizeLinear`). A detector's scores move by several thousandths when every eighth
//! pixel is off by one.

use crate::error::Result;
use tch::{Device, Kind, Tensor};

const ONE: f32 = 2048.0;

/// `[1,C,H,W]` whole numbers in 0..=255 of any kind → `[1,C,height,width]` int32.
pub fn resize(pixels: &Tensor, height: i64, width: i64) -> Result<Tensor> {
    let pixels = pixels.f_to_kind(Kind::Int)?;
    let size = pixels.size();
    let device = pixels.device();
    let columns = Taps::new(size[3], width).place(3, device)?;
    let rows = Taps::new(size[2], height).place(2, device)?;
    let [left, right] = columns.weighted(&pixels)?;
    let across = left.f_add(&right)?.f_bitwise_right_shift_tensor_scalar(4)?;
    let [top, bottom] = rows.weighted(&across)?;
    let whole = |x: Tensor| x.f_bitwise_right_shift_tensor_scalar(16);
    let down = whole(top)?.f_add(&whole(bottom)?)?;
    Ok(down
        .f_add_scalar(2)?
        .f_bitwise_right_shift_tensor_scalar(2)?)
}

/// For every output pixel the two input pixels that it lies between, and their weights.
struct Taps {
    at: [Vec<i64>; 2],
    weights: [Vec<i32>; 2],
}

impl Taps {
    fn new(from: i64, to: i64) -> Taps {
        let scale = from as f64 / to as f64;
        let mut taps = Taps {
            at: Default::default(),
            weights: Default::default(),
        };
        for i in 0..to {
            let place = ((i as f64 + 0.5) * scale - 0.5) as f32;
            let first = place.floor() as i64;
            let inside = (0..from - 1).contains(&first);
            let part = if inside { place - place.floor() } else { 0.0 };
            let first = first.clamp(0, from - 1);
            taps.at[0].push(first);
            taps.at[1].push((first + 1).min(from - 1));
            taps.weights[0].push(((1.0 - part) * ONE).round_ties_even() as i32);
            taps.weights[1].push((part * ONE).round_ties_even() as i32);
        }
        taps
    }

    fn place(&self, dim: i64, device: Device) -> Result<Placed> {
        let mut shape = [1i64; 4];
        shape[dim as usize] = -1;
        let at = |i: usize| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(&self.at[i])?.f_to_device(device)?)
        };
        let weight = |i: usize| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(&self.weights[i])?
                .f_view(shape)?
                .f_to_device(device)?)
        };
        Ok(Placed {
            dim,
            at: [at(0)?, at(1)?],
            weights: [weight(0)?, weight(1)?],
        })
    }
}

/// Taps as tensors along one dimension.
struct Placed {
    dim: i64,
    at: [Tensor; 2],
    weights: [Tensor; 2],
}

impl Placed {
    fn weighted(&self, x: &Tensor) -> Result<[Tensor; 2]> {
        let part = |i: usize| {
            x.f_index_select(self.dim, &self.at[i])?
                .f_mul(&self.weights[i])
        };
        Ok([part(0)?, part(1)?])
    }
}

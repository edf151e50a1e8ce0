//! `cv2.resize` with its default interpolation on 8-bit pixels, equal to the bit: fixed-point weights of 11
//! bits, and the truncations between the two passes (OpenCV `modules/imgproc/src/resize.cpp`,
//! `HResizeLinear`, `VResizeLinear`). A detector's scores change by several thousandths when every eighth
//! pixel is off by one. There are two versions: for pixels in memory, and for tensors on a GPU.

use crate::error::Result;
use crate::tensor::{Pixels, upload};
use tch::{Device, Kind, Tensor};

const ONE: f32 = 2048.0;

/// Calls `visit` with the rows of the image scaled to `height`×`width`: plane, row, pixels.
pub fn rows(
    picture: &Pixels,
    height: usize,
    width: usize,
    mut take: impl FnMut(usize, usize, &[i32]),
) {
    let columns = Taps::new(picture.width as i64, width as i64);
    let lines = Taps::new(picture.height as i64, height as i64);
    let mut scaled = vec![0; width];
    for (plane, source) in picture
        .planes
        .chunks(picture.width * picture.height)
        .enumerate()
    {
        // The two source rows that an output row lies between, after the horizontal pass.
        let mut across: [(i64, Vec<i32>); 2] = [(-1, vec![0; width]), (-1, vec![0; width])];
        for y in 0..height {
            for side in 0..2 {
                let line = lines.at[side][y];
                if across[side].0 == line {
                    continue;
                }
                // Going down, the lower row becomes the upper one.
                if side == 0 && across[1].0 == line {
                    across.swap(0, 1);
                    continue;
                }
                let start = line as usize * picture.width;
                columns.across(&source[start..start + picture.width], &mut across[side].1);
                across[side].0 = line;
            }
            let [top, bottom] = [lines.weights[0][y], lines.weights[1][y]];
            for ((pixel, a), b) in scaled.iter_mut().zip(&across[0].1).zip(&across[1].1) {
                *pixel = (((a * top) >> 16) + ((b * bottom) >> 16) + 2) >> 2;
            }
            take(plane, y, &scaled);
        }
    }
}

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

/// Per output pixel the two input pixels that it lies between, and their weights.
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

    /// The horizontal pass for one row of pixels. It keeps 7 bits of the weights.
    fn across(&self, row: &[u8], out: &mut [i32]) {
        let [left, right] = &self.at;
        let [first, second] = &self.weights;
        for (at, out) in out.iter_mut().enumerate() {
            let (a, b) = (row[left[at] as usize], row[right[at] as usize]);
            *out = (i32::from(a) * first[at] + i32::from(b) * second[at]) >> 4;
        }
    }

    fn place(&self, dim: i64, device: Device) -> Result<Placed> {
        let mut shape = [1i64; 4];
        shape[dim as usize] = -1;
        let at = |i: usize| -> Result<Tensor> { upload(&self.at[i], device) };
        let weight =
            |i: usize| -> Result<Tensor> { Ok(upload(&self.weights[i], device)?.f_view(shape)?) };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_and_tensors_are_scaled_alike() {
        let (height, width) = (37usize, 53usize);
        let planes: Vec<u8> = (0..3 * height * width)
            .map(|i| (i * 7919 % 251) as u8)
            .collect();
        let tensor = Tensor::f_from_slice(&planes).unwrap();
        let tensor = tensor.f_view([1, 3, height as i64, width as i64]).unwrap();
        let picture = Pixels {
            planes,
            height,
            width,
        };
        for (h, w) in [(64, 40), (20, 20), (37, 53), (1, 90), (74, 106)] {
            let mut got = vec![];
            rows(&picture, h, w, |_, _, row| got.extend_from_slice(row));
            let want = resize(&tensor, h as i64, w as i64).unwrap();
            let want = Vec::<i32>::try_from(want.f_reshape(-1).unwrap()).unwrap();
            assert_eq!(got, want, "{h}x{w}");
        }
    }
}

//! Scales an image into the top left of a black canvas and normalises it. Sizes are truncated as in insightface.

use super::resize;
use crate::config::DetectionSize;
use crate::error::Result;
use crate::tensor::Pixels;
use crate::weights::buffer;
use tch::{Kind, Tensor};

/// The input of a detector's network, `[1,3,H,W]`.
pub enum Canvas {
    /// On the host.
    Host(Vec<f32>),
    /// On the context's device.
    Device(Tensor),
}

/// An image that a detector can look at.
pub trait Picture: Sized {
    /// Height and width, pixels.
    fn size(&self) -> (i64, i64);
    /// A canvas of `size` with the image scaled to `height`×`width` in its top left.
    fn canvas(&self, size: DetectionSize, height: i64, width: i64) -> Result<Canvas>;
    /// The picture with a black border of that many pixels.
    fn bordered(&self, border: i64) -> Result<Self>;
}

/// The canvas, and the factor by which the image was scaled.
pub fn letterbox<P: Picture>(picture: &P, size: DetectionSize) -> Result<(Canvas, f64)> {
    let (height, width) = picture.size();
    let ratio = height as f64 / width as f64;
    let (most_height, most_width) = (f64::from(size.height), f64::from(size.width));
    let (new_height, new_width) = match ratio > most_height / most_width {
        true => (most_height, most_height / ratio),
        false => (most_width * ratio, most_width),
    };
    let (new_height, new_width) = ((new_height as i64).max(1), (new_width as i64).max(1));
    let canvas = picture.canvas(size, new_height, new_width)?;
    Ok((canvas, new_height as f64 / height as f64))
}

const MEAN: f32 = 127.5;
const STD: f32 = 128.0;

impl Picture for Pixels {
    fn size(&self) -> (i64, i64) {
        (self.height as i64, self.width as i64)
    }

    fn canvas(&self, size: DetectionSize, height: i64, width: i64) -> Result<Canvas> {
        let (rows, columns) = (size.height as usize, size.width as usize);
        let (height, width) = (height as usize, width as usize);
        let mut values = buffer(3 * rows * columns)?;
        values.resize(3 * rows * columns, -MEAN / STD);
        resize::rows(self, height, width, |plane, y, row| {
            let start = (plane * rows + y) * columns;
            for (value, &pixel) in values[start..start + width].iter_mut().zip(row) {
                *value = (pixel as f32 - MEAN) / STD;
            }
        });
        Ok(Canvas::Host(values))
    }

    fn bordered(&self, border: i64) -> Result<Self> {
        self.padded(border as usize)
    }
}

/// `[1,3,H,W]` uint8 on a GPU.
impl Picture for Tensor {
    fn size(&self) -> (i64, i64) {
        let size = self.size();
        (size[2], size[3])
    }

    fn canvas(&self, size: DetectionSize, height: i64, width: i64) -> Result<Canvas> {
        let (rows, columns) = (i64::from(size.height), i64::from(size.width));
        let canvas = resize::resize(self, height, width)?
            .f_constant_pad_nd([0, columns - width, 0, rows - height])?
            .f_to_kind(Kind::Float)?
            .f_sub_scalar(f64::from(MEAN))?
            .f_div_scalar(f64::from(STD))?;
        Ok(Canvas::Device(canvas))
    }

    fn bordered(&self, border: i64) -> Result<Self> {
        Ok(self.f_constant_pad_nd([border; 4])?)
    }
}

//! Pictures as 8-bit pixels on the host: what detectors were trained on, and what alignment for a score
//! that is compared with other programs' starts from.

use crate::error::Result;
use tch::{Device, Kind, Tensor};

/// One picture: three planes (red, green, blue) of `height` rows of `width` pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    /// The planes, one after the other.
    pub planes: Vec<u8>,
    /// Rows.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
}

/// Images `[N,3,H,W]` in 8 bits: uint8 as they are; floats in [0, 1] rounded, and cut off where outside.
pub fn quantised(images: &Tensor) -> Result<Tensor> {
    if images.kind() == Kind::Uint8 {
        return Ok(images.shallow_clone());
    }
    Ok(images
        .f_to_kind(Kind::Float)?
        .f_clamp(0.0, 1.0)?
        .f_mul_scalar(255.0)?
        .f_round_()?
        .f_to_kind(Kind::Uint8)?)
}

/// For every image of a batch whether all its pixels are finite.
pub fn finite(images: &Tensor) -> Result<Vec<bool>> {
    if images.kind() == Kind::Uint8 {
        return Ok(vec![true; images.size()[0] as usize]);
    }
    // A sum of floats in double precision cannot overflow, so it is finite where all its terms are.
    let sums = images.f_sum_dim_intlist([1i64, 2, 3].as_slice(), false, Kind::Double)?;
    let sums: Vec<f64> = Vec::try_from(sums.f_to_device(Device::Cpu)?)?;
    Ok(sums.into_iter().map(f64::is_finite).collect())
}

/// The pictures of `[N,3,H,W]`, as [`quantised`]; `None` for one with a pixel that is not finite.
pub fn pixels(images: &Tensor) -> Result<Vec<Option<Pixels>>> {
    let finite = finite(images)?;
    let size = images.size();
    (0i64..)
        .zip(finite)
        .map(|(at, finite)| {
            if !finite {
                return Ok(None);
            }
            let planes = quantised(&images.f_select(0, at)?)?
                .f_to_device(Device::Cpu)?
                .f_contiguous()?
                .f_view([-1i64])?;
            Ok(Some(Pixels {
                planes: Vec::try_from(planes)?,
                height: size[2] as usize,
                width: size[3] as usize,
            }))
        })
        .collect()
}

impl Pixels {
    /// The same with a black border of `border` pixels on every side.
    pub fn padded(&self, border: usize) -> Pixels {
        let (height, width) = (self.height + 2 * border, self.width + 2 * border);
        let mut planes = vec![0; 3 * height * width];
        for (at, row) in self.planes.chunks(self.width).enumerate() {
            let (plane, y) = (at / self.height, at % self.height + border);
            let start = (plane * height + y) * width + border;
            planes[start..start + self.width].copy_from_slice(row);
        }
        Pixels {
            planes,
            height,
            width,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_rounded_and_what_is_not_finite_is_none() {
        let image = Tensor::f_from_slice(&[-1.0f32, 0.5, 2.0, f32::NAN, 0.1, 0.2]).unwrap();
        let pictures = pixels(&image.f_view([2, 3, 1, 1]).unwrap()).unwrap();
        assert_eq!(pictures[0].as_ref().unwrap().planes, [0, 128, 255]);
        assert_eq!(pictures[1], None);
    }

    #[test]
    fn a_border_is_black_and_around_every_plane() {
        let picture = Pixels {
            planes: vec![1, 2, 3],
            height: 1,
            width: 1,
        };
        let padded = picture.padded(1);
        assert_eq!((padded.height, padded.width), (3, 3));
        assert_eq!(padded.planes.iter().map(|&p| u32::from(p)).sum::<u32>(), 6);
        assert_eq!(padded.planes[4], 1);
        assert_eq!(padded.planes[13], 2);
    }
}

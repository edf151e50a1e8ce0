//! Images as 8-bit pixels in the host's memory. Detectors were trained on such pixels, and other programs align them
//! for their scores.

use super::transfer::{numbers, to_host};
use crate::error::{Error, Result, bail};
use tch::{Kind, Tensor};

/// One image: three planes (red, green, blue) of `height` rows of `width` pixels, 0 to 255.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    /// The planes, one after the other.
    pub planes: Vec<u8>,
    /// Rows.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
}

/// The most pixels of an image. A tensor whose strides are 0 can have any size without the memory for it.
pub const MAX_PIXELS: i64 = 1 << 28;
/// The most pixels of a batch.
const MAX_BATCH: i64 = 1 << 30;

/// Fails where a batch `[N,3,H,W]` is larger than can be copied.
///
/// # Errors
/// `Limit`, and `Shape` where it is no batch.
pub fn bounded(images: &Tensor) -> Result<()> {
    let size = images.size();
    let (count, height, width) = match *size.as_slice() {
        [count, _, height, width] => (count, height, width),
        [_, height, width] => (1, height, width),
        _ => bail!(Shape, "images: expected [N,3,H,W], got {size:?}"),
    };
    let plane = height.saturating_mul(width);
    if plane > MAX_PIXELS || plane.max(1).saturating_mul(count) > MAX_BATCH {
        bail!(
            Limit,
            "images of shape {size:?}: a picture may have {MAX_PIXELS} pixels and a batch {MAX_BATCH}; give smaller \
             pictures or fewer at a time"
        );
    }
    Ok(())
}

/// Images `[N,3,H,W]` in 8 bits: uint8 as they are; floats in [0, 1] are rounded, and values outside are cut off.
///
/// # Errors
/// `Limit` where there are more pixels than can be copied.
pub fn quantised(images: &Tensor) -> Result<Tensor> {
    bounded(images)?;
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

/// The least and the largest number of a batch that is probably not RGB in [0, 1], and the remedy; `None` for a batch
/// in the usual range. Resampling and decoders leave [0, 1] by less than a quarter.
pub fn unusual_range(images: &Tensor) -> Result<Option<(f64, f64, &'static str)>> {
    if images.kind() == Kind::Uint8 || images.numel() == 0 {
        return Ok(None);
    }
    let both = Tensor::f_stack(&[images.f_min()?, images.f_max()?], 0)?;
    let &[least, largest] = numbers(&both)?.as_slice() else {
        bail!(Internal, "two numbers came back as others");
    };
    let advice = match (least, largest) {
        (least, largest) if least < -0.25 && largest <= 1.25 => {
            "pictures in [-1, 1] need (x + 1) / 2"
        }
        (least, largest) if least >= -0.25 && largest > 1.25 => "pictures in 0 to 255 need x / 255",
        (least, largest) if least < -0.25 || largest > 1.25 => "scale them",
        (_, largest) if largest > 0.0 && largest <= 1.5 / 255.0 => {
            "pictures in [0, 1] must not be divided by 255 again"
        }
        _ => return Ok(None),
    };
    Ok(Some((least, largest, advice)))
}

/// Per image of a batch whether all its pixels are finite.
///
/// # Errors
/// `Limit` where there are more pixels than can be copied.
pub fn finite(images: &Tensor) -> Result<Vec<bool>> {
    bounded(images)?;
    if images.kind() == Kind::Uint8 {
        return Ok(vec![true; images.size()[0] as usize]);
    }
    // A sum of floats in double precision cannot overflow, so it is finite where all its terms are.
    let sums = images.f_sum_dim_intlist([1i64, 2, 3].as_slice(), false, Kind::Double)?;
    Ok(numbers(&sums)?.into_iter().map(f64::is_finite).collect())
}

/// The images of `[N,3,H,W]`, converted as by [`quantised`]; `None` for one with a pixel that is not finite.
///
/// They are read from the tensor's own memory in one pass, on this thread. torch's threads would keep spinning while
/// ONNX Runtime's threads run next.
///
/// # Errors
/// `Limit` where there are more pixels than can be copied, `OutOfMemory` where there is no room for them.
pub fn pixels(images: &Tensor) -> Result<Vec<Option<Pixels>>> {
    bounded(images)?;
    let kind = match images.kind() {
        Kind::Uint8 => Kind::Uint8,
        _ => Kind::Float,
    };
    let images = to_host(images)?.f_to_kind(kind)?;
    let size = images.size();
    let (height, width) = (size[2] as usize, size[3] as usize);
    (0..size[0])
        .map(|at| {
            let image = images.f_select(0, at)?;
            let mut planes = room(3 * height * width)?;
            let mut finite = true;
            match kind {
                Kind::Uint8 => each(&image, |value: u8| planes.push(value)),
                _ => each(&image, |value: f32| {
                    finite &= value.is_finite();
                    planes.push((value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8);
                }),
            }
            Ok(finite.then_some(Pixels {
                planes,
                height,
                width,
            }))
        })
        .collect()
}

/// An empty vector with room for `bytes`.
fn room(bytes: usize) -> Result<Vec<u8>> {
    let mut planes = Vec::new();
    match planes.try_reserve_exact(bytes) {
        Ok(()) => Ok(planes),
        Err(_) => Err(Error::OutOfMemory(format!(
            "no room for a picture of {bytes} bytes"
        ))),
    }
}

/// Calls `take` with the elements of `image` `[3,H,W]` on the CPU, row after row. `T` is the element type.
fn each<T: Copy>(image: &Tensor, mut take: impl FnMut(T)) {
    let (size, strides) = (image.size(), image.stride());
    let start = image.data_ptr().cast::<T>();
    for plane in 0..size[0] {
        for y in 0..size[1] {
            let row = plane * strides[0] + y * strides[1];
            for x in 0..size[2] {
                // SAFETY: the tensor is alive, on the CPU and of `T`s, and the index is inside its sizes.
                take(unsafe { start.offset((row + x * strides[2]) as isize).read() });
            }
        }
    }
}

impl Pixels {
    /// The same image with a black border of `border` pixels on every side. The result must have at most
    /// [`MAX_PIXELS`].
    ///
    /// # Errors
    /// `OutOfMemory` where there is no room for them.
    pub fn padded(&self, border: usize) -> Result<Pixels> {
        let (height, width) = (self.height + 2 * border, self.width + 2 * border);
        let mut planes = room(3 * height * width)?;
        planes.resize(3 * height * width, 0);
        for (at, row) in self.planes.chunks(self.width).enumerate() {
            let (plane, y) = (at / self.height, at % self.height + border);
            let start = (plane * height + y) * width + border;
            planes[start..start + self.width].copy_from_slice(row);
        }
        Ok(Pixels {
            planes,
            height,
            width,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn floats_are_rounded_and_what_is_not_finite_is_none() {
        let image = Tensor::f_from_slice(&[-1.0f32, 0.5, 2.0, f32::NAN, 0.1, 0.2]).unwrap();
        let image = image.f_view([2, 3, 1, 1]).unwrap();
        let pictures = pixels(&image).unwrap();
        assert_eq!(pictures[0].as_ref().unwrap().planes, [0, 128, 255]);
        assert_eq!(pictures[1], None);
        // The same rounding as on a GPU.
        let whole = quantised(&image.f_select(0, 0).unwrap()).unwrap();
        let whole = Vec::<u8>::try_from(whole.f_view(-1).unwrap()).unwrap();
        assert_eq!(whole, [0, 128, 255]);
    }

    #[test]
    fn a_picture_larger_than_memory_is_refused() {
        for (shape, kind) in [
            ([1i64, 3, 1 << 20, 1 << 20], Kind::Uint8),
            ([1 << 40, 3, 1, 1], Kind::Float),
        ] {
            let one = Tensor::f_zeros([1, 1, 1, 1], (kind, Device::Cpu)).unwrap();
            let vast = one.f_expand(shape, false).unwrap();
            for error in [
                pixels(&vast).unwrap_err(),
                quantised(&vast).unwrap_err(),
                finite(&vast).unwrap_err(),
            ] {
                assert_eq!(error.status(), 102, "{error}");
            }
        }
    }

    #[test]
    fn interleaved_pixels_become_planes() {
        let bytes: Vec<u8> = (0..24).collect();
        let image = Tensor::f_from_slice(&bytes).unwrap();
        let image = image.f_view([1, 2, 4, 3]).unwrap();
        let picture = pixels(&image.f_permute([0, 3, 1, 2]).unwrap())
            .unwrap()
            .remove(0);
        let red: Vec<u8> = (0..8).map(|i| 3 * i).collect();
        assert_eq!(picture.unwrap().planes[..8], red);
    }

    #[test]
    fn a_border_is_black_and_around_every_plane() {
        let picture = Pixels {
            planes: vec![1, 2, 3],
            height: 1,
            width: 1,
        };
        let padded = picture.padded(1).unwrap();
        assert_eq!((padded.height, padded.width), (3, 3));
        assert_eq!(padded.planes.iter().map(|&p| u32::from(p)).sum::<u32>(), 6);
        assert_eq!(padded.planes[4], 1);
        assert_eq!(padded.planes[13], 2);
    }
}

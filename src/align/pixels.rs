//! Crops of 8-bit pixels, rounded to 8 bits, as `cv2.warpAffine` and insightface's `norm_crop` compute them.

use super::{Border, Crop, mirrored};
use crate::face::invert;
use crate::tensor::Pixels;

/// Cuts `crop` out of an image with bilinear sampling: three planes of `size`×`size`. `crop.sample` is not used.
pub fn align_pixels(image: &Pixels, crop: &Crop, size: i64) -> Vec<u8> {
    let [[a, b, c], [d, e, f]] = invert(&crop.transform);
    let (width, height) = (image.width as f64, image.height as f64);
    let side = size as usize;
    let mut out = vec![0; 3 * side * side];
    for at in 0..side * side {
        let (u, v) = ((at % side) as f64, (at / side) as f64);
        let (mut x, mut y) = (a * u + b * v + c, d * u + e * v + f);
        if crop.border == Border::Reflect {
            (x, y) = (mirrored(x, width), mirrored(y, height));
        }
        // The crop is black where no neighbouring pixel lies in the image.
        if !(x > -1.0 && y > -1.0 && x < width && y < height) {
            continue;
        }
        let (left, top) = (x.floor(), y.floor());
        let (across, down) = (x - left, y - top);
        let (left, top) = (left as i64, top as i64);
        let taps = [
            (0, 0, (1.0 - across) * (1.0 - down)),
            (1, 0, across * (1.0 - down)),
            (0, 1, (1.0 - across) * down),
            (1, 1, across * down),
        ];
        for plane in 0..3 {
            let pixel = |dx: i64, dy: i64| {
                let (x, y) = (left + dx, top + dy);
                let inside = x >= 0 && y >= 0 && x < image.width as i64 && y < image.height as i64;
                match inside {
                    true => {
                        let row = plane * image.height + y as usize;
                        f64::from(image.planes[row * image.width + x as usize])
                    }
                    false => 0.0,
                }
            };
            let value: f64 = taps.iter().map(|&(dx, dy, w)| w * pixel(dx, dy)).sum();
            out[plane * side * side + at] = value.round() as u8;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_pixels_are_copied_halves_are_rounded_and_outside_is_black() {
        let image = Pixels {
            planes: (0..36).map(|i| 10 * (i % 12)).collect(),
            height: 3,
            width: 4,
        };
        let crop = |x: f64, y: f64| Crop {
            sample: 0,
            transform: [[1.0, 0.0, x], [0.0, 1.0, y]],
            border: Border::Zeros,
        };
        let moved = align_pixels(&image, &crop(1.0, 1.0), 3);
        assert_eq!(moved[..9], [0, 0, 0, 0, 0, 10, 0, 40, 50]);
        assert_eq!(moved[9..18], moved[..9]);
        let half = align_pixels(&image, &crop(-0.5, 0.0), 2);
        assert_eq!(half[..4], [5, 15, 45, 55]);
    }
}

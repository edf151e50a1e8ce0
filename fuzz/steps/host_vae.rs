//! The host's own VAE decoder.

use super::super::held::Held;
use facegrad::tensor::RawTensor;
use std::ffi::c_void;

/// What the host's own decoder does, and the memory that it lends.
pub struct Decoder {
    pub mood: u8,
    pub image: Held,
    pub gradient: Held,
}

/// Where in latents of these sizes the value of a pixel of the image stands.
fn source(sizes: &[i64], [b, c, y, x]: [i64; 4]) -> usize {
    let [channels, height, width] = [sizes[1], sizes[2], sizes[3]];
    (((b * channels + c.min(channels - 1)) * height + y / 2) * width + x / 2) as usize
}

/// Doubles the side of the first three channels; by its mood it fails, or hands over what nobody asked for.
pub unsafe extern "C" fn decode(
    latents: *const RawTensor,
    _ticket: u64,
    image: *mut RawTensor,
    user_data: *mut c_void,
) -> i32 {
    // SAFETY: `user_data` is the decoder of the world, which lives on, and the library lends latents and place.
    let (own, latents) = unsafe { (&mut *user_data.cast::<Decoder>(), &*latents) };
    // SAFETY: the library says that the sizes are there.
    let sizes = unsafe { std::slice::from_raw_parts(latents.shape, latents.ndim as usize) };
    let [batch, channels @ 1..=i64::MAX, height, width] = *sizes else {
        return 1;
    };
    let count = (batch * channels * height * width) as usize;
    // SAFETY: the library says that the latents are compact and float32.
    let values = unsafe { std::slice::from_raw_parts(latents.data.cast::<f32>(), count) };
    own.gradient = Held {
        data: vec![0.0; count],
        shape: sizes.to_vec(),
    };
    let mut data = vec![];
    for b in 0..batch {
        for c in 0..3 {
            for y in 0..2 * height {
                for x in 0..2 * width {
                    data.push(values[source(sizes, [b, c, y, x])]);
                }
            }
        }
    }
    own.image = Held {
        data,
        shape: vec![batch, 3, 2 * height, 2 * width],
    };
    match own.mood {
        250.. => return 7,
        247..250 => own.image.shape.swap(0, 1),
        244..247 => own.image.shape[2] = 0,
        240..244 => own.image.data.fill(f32::NAN),
        _ => {}
    }
    // SAFETY: the library lends the place.
    unsafe { image.write(own.image.raw()) };
    0
}

/// The gradient of [`decode`].
pub unsafe extern "C" fn vjp(
    _ticket: u64,
    gradient: *const RawTensor,
    latents_gradient: *mut RawTensor,
    user_data: *mut c_void,
) -> i32 {
    // SAFETY: as in `decode`.
    let own = unsafe { &mut *user_data.cast::<Decoder>() };
    // SAFETY: NULL, or lent by the library.
    let Some(gradient) = (unsafe { gradient.as_ref() }) else {
        return 0;
    };
    if own.mood == 239 {
        return -1;
    }
    let [batch, _, height, width] = own.gradient.shape[..] else {
        return 1;
    };
    let count = (batch * 12 * height * width) as usize;
    // SAFETY: the gradient is that of the image, compact and float32.
    let values = unsafe { std::slice::from_raw_parts(gradient.data.cast::<f32>(), count) };
    own.gradient.data.fill(0.0);
    let mut values = values.iter();
    for b in 0..batch {
        for c in 0..3 {
            for y in 0..2 * height {
                for x in 0..2 * width {
                    own.gradient.data[source(&own.gradient.shape, [b, c, y, x])] +=
                        values.next().expect("as many as were counted");
                }
            }
        }
    }
    // SAFETY: as above.
    unsafe { latents_gradient.write(own.gradient.raw()) };
    0
}

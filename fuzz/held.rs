//! Tensors that a fuzz target hands to the library.

use super::choices::Choices;
use facegrad::tensor::RawTensor;
use std::ptr::null_mut;

/// A compact float32 tensor over memory of its own.
pub struct Held {
    pub data: Vec<f32>,
    pub shape: Vec<i64>,
}

impl Held {
    /// One to three sizes below five, and a decision for every value.
    pub fn any(choices: &mut Choices) -> Held {
        let shape: Vec<i64> = (0..1 + choices.byte() % 4)
            .map(|_| i64::from(choices.byte() % 5))
            .collect();
        let count = shape.iter().product::<i64>();
        let data = (0..count).map(|_| choices.number() as f32).collect();
        Held { data, shape }
    }

    /// Values of a shape that follow from one decision: mostly between 0 and `scale`, sometimes what breaks things.
    pub fn of(choices: &mut Choices, shape: &[i64], scale: f32) -> Held {
        let count = shape.iter().product::<i64>() as usize;
        let seed = choices.byte();
        let mut state = u32::from(seed) + 1;
        let mut data: Vec<f32> = (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                scale * (state >> 8) as f32 / (1 << 24) as f32
            })
            .collect();
        match seed {
            0..224 => {}
            224..232 => data.fill(0.0),
            232..236 => data.iter_mut().for_each(|x| *x = 2.0 * *x - scale),
            236..240 => data.iter_mut().for_each(|x| *x *= 1e30),
            240..244 => data.fill(f32::NAN),
            244..248 => data.iter_mut().step_by(7).for_each(|x| *x = f32::NAN),
            248..252 => data.iter_mut().step_by(7).for_each(|x| *x = f32::INFINITY),
            _ => data.fill(f32::MAX),
        }
        Held {
            data,
            shape: shape.to_vec(),
        }
    }

    /// Its description, valid while it lives.
    pub fn raw(&mut self) -> RawTensor {
        RawTensor {
            data: self.data.as_mut_ptr().cast(),
            device_type: 1,
            device_id: 0,
            ndim: self.shape.len() as i32,
            dtype_code: 2,
            dtype_bits: 32,
            dtype_lanes: 1,
            shape: self.shape.as_mut_ptr(),
            strides: null_mut(),
            byte_offset: 0,
        }
    }
}

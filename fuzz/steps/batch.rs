//! What a host hands over: shapes, values, places and names of a batch; and what it gets back.

use super::super::choices::Choices;
use super::super::held::Held;
use facegrad::ffi::types::*;
use facegrad::tensor::RawTensor;
use std::ffi::{CStr, c_char};
use std::ptr::null;

/// The sides of images and latents, pixels.
pub const SIDES: [i64; 12] = [8, 6, 4, 2, 3, 1, 0, 5, 16, 32, 33, 7];

pub const IDS: [&CStr; 3] = [c"a", c"b", c""];
pub const TYPES: [&CStr; 3] = [c"person", c"person_head", c"cat"];

/// A text of a table, or now and then what is no UTF-8.
pub fn text(choices: &mut Choices, table: &[&'static CStr]) -> *const c_char {
    match choices.byte() {
        252.. => c"\xff".as_ptr(),
        byte => table[usize::from(byte) % table.len()].as_ptr(),
    }
}

/// What a host says of a batch, and the memory behind it.
pub struct Facts {
    /// The memory behind `raw`.
    _tensors: [Option<Held>; 6],
    texts: [Option<Vec<*const c_char>>; 3],
    raw: [Option<RawTensor>; 6],
}

/// More than any batch here has samples.
pub const MOST: usize = 40;

/// How many faces a host has places for.
pub const FACES: usize = 8;

impl Facts {
    pub fn new(choices: &mut Choices, batch: i64) -> Facts {
        let present = choices.byte();
        let references = if choices.byte().is_multiple_of(4) {
            1
        } else {
            batch
        };
        let side = *choices.of(&SIDES);
        let shapes: [&[i64]; 6] = [
            &[references, 3, side, side],
            &[batch, 5, 2],
            &[batch, 4],
            &[references, 5, 2],
            &[references, 4],
            &[batch],
        ];
        let mut tensors = [const { None }; 6];
        for (i, shape) in shapes.iter().enumerate() {
            // Without a decision, there are references and boxes. Places in references come only with these.
            let usual = i == 0 || i == 2;
            if (present >> i & 1 == 1) != usual && (tensors[0].is_some() || ![3, 4].contains(&i)) {
                let scale = if i == 0 { 1.0 } else { 16.0 };
                let shape = odd(choices, shape);
                tensors[i] = Some(Held::of(choices, &shape, scale));
            }
        }
        let mut texts = [const { None }; 3];
        for (i, table) in [&IDS, &TYPES, &IDS].into_iter().enumerate() {
            if choices.byte() % 3 == 2 {
                let one = |choices: &mut Choices| match choices.byte() {
                    240.. => null(),
                    _ => text(choices, table),
                };
                let some: [_; 4] = std::array::from_fn(|_| one(choices));
                texts[i] = Some(some.into_iter().cycle().take(MOST).collect());
            }
        }
        let raw = tensors.each_mut().map(|held| held.as_mut().map(Held::raw));
        Facts {
            _tensors: tensors,
            texts,
            raw,
        }
    }

    pub fn targets(&self) -> facegrad_targets {
        let tensor = |i: usize| {
            self.raw[i]
                .as_ref()
                .map_or(null(), |raw| raw as *const RawTensor)
        };
        let texts = |i: usize| {
            self.texts[i]
                .as_ref()
                .map_or(null(), |texts| texts.as_ptr())
        };
        facegrad_targets {
            struct_size: size_of::<facegrad_targets>(),
            references: tensor(0),
            reference_ids: texts(0),
            data_types: texts(1),
            landmarks: tensor(1),
            boxes: tensor(2),
            reference_landmarks: tensor(3),
            reference_boxes: tensor(4),
            sample_weights: tensor(5),
            sample_ids: texts(2),
        }
    }
}

/// The shape, or now and then one that nobody expects.
pub fn odd(choices: &mut Choices, shape: &[i64]) -> Vec<i64> {
    let mut shape = shape.to_vec();
    match choices.byte() {
        248..251 => shape.push(1),
        251..254 => drop(shape.pop()),
        254.. => shape.reverse(),
        _ => {}
    }
    shape
}

/// A batch of up to three images.
pub fn images(choices: &mut Choices) -> Vec<i64> {
    let batch = i64::from(choices.byte() % 4);
    let (height, width) = (*choices.of(&SIDES), *choices.of(&SIDES));
    odd(choices, &[(batch + 1) % 4, 3, height, width])
}

/// A batch of latents in one of the layouts, and its height and width.
pub fn latents(choices: &mut Choices) -> (Vec<i64>, [i64; 2]) {
    let batch = 1 + i64::from(choices.byte() % 2);
    let (height, width) = (*choices.of(&SIDES[..8]), *choices.of(&SIDES[..8]));
    let shape = match choices.byte() % 8 {
        6 => vec![batch, height * width / 4, 16],
        7 => vec![batch, 16, height / 2, width / 2],
        _ => vec![batch, 4, height, width],
    };
    (odd(choices, &shape), [height, width])
}

/// Times, mostly of the unit interval.
pub fn times(choices: &mut Choices, batch: i64) -> Held {
    let scale = *choices.of(&[1.0, 1.0, 0.5, 999.0, 1.5]);
    Held::of(choices, &[batch], scale)
}

/// Poisoned, internal, panic: never, whatever a host does.
pub fn answered(status: facegrad_status) -> bool {
    assert!(![12, 900, 901].contains(&status), "status {status}");
    status == 0
}

/// The places for a report.
pub struct Report {
    pub samples: [facegrad_sample; MOST],
    pub result: facegrad_result,
}

impl Report {
    pub fn new() -> Report {
        // SAFETY: the header allows zero bytes in both structs.
        let (mut samples, mut result): ([facegrad_sample; MOST], facegrad_result) =
            unsafe { std::mem::zeroed() };
        samples[0].struct_size = size_of::<facegrad_sample>();
        result.struct_size = size_of::<facegrad_result>();
        Report { samples, result }
    }

    /// Whether what a successful call says is so.
    pub fn check(&self, status: facegrad_status, gradient: Option<&Held>) {
        if !answered(status) {
            return;
        }
        let Report { samples, result } = self;
        assert!(result.loss.is_finite() && result.mean_distance.is_finite());
        assert!(
            (0.0..=2.0).contains(&result.mean_distance),
            "{}",
            result.mean_distance
        );
        let of_batch = &samples[..result.samples as usize];
        assert!(
            of_batch
                .iter()
                .all(|sample| (0..=9).contains(&sample.outcome))
        );
        let counted = of_batch
            .iter()
            .filter(|sample| sample.outcome == FACEGRAD_SAMPLE_COUNTED);
        assert_eq!(counted.count() as i64, result.counted);
        if result.counted == 0 {
            assert_eq!(result.loss, 0.0);
        }
        let Some(gradient) = gradient else { return };
        assert!(
            gradient.data.iter().all(|x| x.is_finite()),
            "{result:?} {of_batch:?}"
        );
        assert!(result.counted > 0 || gradient.data.iter().all(|&x| x == 0.0));
    }
}

/// A place for a gradient or a value, full of NaN, so that what is not written shows.
pub fn place(shape: &[i64]) -> Held {
    let count = shape.iter().product::<i64>() as usize;
    Held {
        data: vec![f32::NAN; count],
        shape: shape.to_vec(),
    }
}

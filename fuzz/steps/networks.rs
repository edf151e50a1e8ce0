//! The score without a gradient, and the networks by themselves.

use super::super::held::Held;
use super::*;

// As in the rest of `Play`, handles live, and pointers are to locals that outlive the call.
impl Play<'_, '_> {
    /// Faces that the host says there are.
    fn faces(choices: &mut Choices) -> [facegrad_face; FACES] {
        std::array::from_fn(|_| facegrad_face {
            struct_size: size_of::<facegrad_face>(),
            image: i64::from(choices.byte() % 4) - 1,
            bbox: [0; 4].map(|_| choices.number() as f32),
            score: choices.number() as f32,
            has_landmarks: i32::from(choices.byte() % 2),
            landmarks: [0; 10].map(|_| choices.number() as f32),
        })
    }

    /// The score without a gradient.
    pub fn evaluate(&mut self) {
        let World { api, evaluator, .. } = *self.world;
        let choices = &mut *self.choices;
        let shape = images(choices);
        let mut pictures = Held::of(choices, &shape, 1.0);
        let pictures = pictures.raw();
        let (id, stream) = (text(choices, &IDS), null_mut());
        let mut report = Report::new();
        let (samples, result) = (report.samples.as_mut_ptr(), &raw mut report.result);
        // SAFETY: see above.
        let status = unsafe {
            match choices.byte() % 6 {
                0 => (api.evaluator_set_reference)(evaluator, id, &pictures, null(), stream),
                1 => (api.evaluator_remove_reference)(evaluator, id),
                2 => {
                    let facts = Facts::new(choices, shape[0]);
                    (api.evaluator_compare)(
                        evaluator,
                        &pictures,
                        &facts.targets(),
                        samples,
                        MOST,
                        result,
                        stream,
                    )
                }
                3 => {
                    let ids = IDS.map(CStr::as_ptr);
                    let people = usize::from(choices.byte()) % (IDS.len() + 1);
                    (api.evaluator_find)(
                        evaluator,
                        &pictures,
                        ids.as_ptr(),
                        people,
                        samples,
                        MOST,
                        result,
                        stream,
                    )
                }
                4 => {
                    let mut faces = Self::faces(choices);
                    let mut embeddings = place(&[FACES as i64, 128]);
                    let mut count = 0;
                    let status = (api.evaluator_faces)(
                        evaluator,
                        &pictures,
                        faces.as_mut_ptr(),
                        FACES,
                        &embeddings.raw(),
                        &mut count,
                        stream,
                    );
                    let rows = embeddings.data.chunks_exact(128).take(count);
                    let lengths = rows.map(|row| row.iter().map(|x| x * x).sum::<f32>());
                    assert!(
                        status != 0
                            || lengths
                                .into_iter()
                                .all(|x| x.is_nan() || (x - 1.0).abs() < 1e-3),
                        "an embedding that has another length than 1"
                    );
                    status
                }
                _ => {
                    let faces = Self::faces(choices);
                    let count = usize::from(choices.byte() % 9);
                    let mut crops = place(&[count as i64, 3, 112, 112]);
                    (api.evaluator_align)(
                        evaluator,
                        &pictures,
                        faces.as_ptr(),
                        count,
                        &crops.raw(),
                        stream,
                    )
                }
            }
        };
        answered(status);
    }

    /// The networks by themselves.
    pub fn networks(&mut self) {
        let World {
            api,
            context,
            detector,
            backbone,
            vaes,
            ..
        } = *self.world;
        let choices = &mut *self.choices;
        let stream = null_mut();
        let shape = images(choices);
        let mut pictures = Held::of(choices, &shape, 1.0);
        let pictures = pictures.raw();
        let mut faces = Self::faces(choices);
        let count = usize::from(choices.byte() % 9);
        // SAFETY: see above.
        let status = unsafe {
            match choices.byte() % 5 {
                0 => {
                    let mut found = 0;
                    (api.detector_detect)(
                        detector,
                        &pictures,
                        faces.as_mut_ptr(),
                        FACES,
                        &mut found,
                        stream,
                    )
                }
                1 => {
                    let mut embeddings = place(&[count as i64, 128]);
                    (api.backbone_embed)(
                        backbone,
                        &pictures,
                        faces.as_ptr(),
                        count,
                        &embeddings.raw(),
                        stream,
                    )
                }
                2 => {
                    let mut crops = place(&[count as i64, 3, 112, 112]);
                    (api.backbone_align)(
                        backbone,
                        &pictures,
                        faces.as_ptr(),
                        count,
                        &crops.raw(),
                        stream,
                    )
                }
                3 => {
                    let (shape, [height, width]) = latents(choices);
                    let mut latents = Held::of(choices, &shape, 1.0);
                    let mut decoded = place(&[shape[0], 3, 2 * height, 2 * width]);
                    (api.vae_decode)(*choices.of(&vaes), &latents.raw(), &decoded.raw(), stream)
                }
                _ => {
                    let (shape, _) = latents(choices);
                    let mut x_t = Held::of(choices, &shape, 1.0);
                    let mut prediction = Held::of(choices, &shape, 1.0);
                    let (mut now, mut then) = (times(choices, shape[0]), times(choices, shape[0]));
                    let mut next = place(&shape);
                    (api.sampler_step)(
                        context,
                        &x_t.raw(),
                        &prediction.raw(),
                        &now.raw(),
                        &then.raw(),
                        null(),
                        &next.raw(),
                        stream,
                    )
                }
            }
        };
        answered(status);
    }
}

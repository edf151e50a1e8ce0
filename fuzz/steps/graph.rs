//! Graphs of a host.

use super::super::held::Held;
use super::*;

// As in the rest of `Play`, handles live, and pointers are to locals that outlive the call.
impl Play<'_, '_> {
    /// Adds a node, or asks for one.
    pub fn node(&mut self) {
        let World {
            api,
            vaes,
            backbone,
            ..
        } = *self.world;
        let choices = &mut *self.choices;
        // The last nodes are those that something can be made of.
        let last = &self.nodes[self.nodes.len().saturating_sub(6)..];
        let (a, b) = (*choices.of(last), *choices.of(last));
        let vae = *choices.of(&vaes);
        let (graph, stream, mut node) = (self.graph, null_mut(), -1);
        let mut known = [0i64; 8];
        let mut ndim = 0;
        // SAFETY: see above.
        let shaped =
            unsafe { (api.graph_shape)(graph, a, known.as_mut_ptr(), known.len(), &mut ndim) };
        let shape = if answered(shaped) {
            &known[..ndim]
        } else {
            &[][..]
        };
        let prediction = [
            c"{}",
            c"{\"kind\":\"epsilon\"}",
            c"{\"kind\":\"v\",\"time\":\"sigma\"}",
            c"{\"kind\":\"sample\"}",
        ];
        let packing = [
            c"{}",
            c"{\"packing\":\"flux\"}",
            c"{\"packing\":\"flux2\"}",
            c"{\"latent_format\":\"flux\"}",
        ];
        let batch = shape.first().copied().unwrap_or(1).clamp(0, 4);
        let (mut now, mut then) = (times(choices, batch), times(choices, batch));
        let (now, then) = (now.raw(), then.raw());
        // SAFETY: see above.
        let status = unsafe {
            match choices.byte() % 12 {
                0..=2 => {
                    let shape = match choices.byte() % 3 {
                        0 => images(choices),
                        1 => latents(choices).0,
                        _ => vec![1, 3, 112, 112],
                    };
                    let mut held = Held::of(choices, &shape, 1.0);
                    (api.graph_input)(
                        graph,
                        &held.raw(),
                        i32::from(choices.byte() % 2),
                        &mut node,
                        stream,
                    )
                }
                3 => (api.graph_predict_x0)(
                    graph,
                    a,
                    b,
                    &now,
                    choices.of(&prediction).as_ptr(),
                    &mut node,
                    stream,
                ),
                4 => (api.graph_sampler_step)(
                    graph,
                    a,
                    b,
                    &now,
                    &then,
                    choices.of(&prediction).as_ptr(),
                    &mut node,
                    stream,
                ),
                5 => {
                    let (height, width) = (*choices.of(&SIDES), choices.number());
                    (api.graph_unpack)(
                        graph,
                        a,
                        vae,
                        choices.of(&packing).as_ptr(),
                        height,
                        width,
                        &mut node,
                        stream,
                    )
                }
                6 => (api.graph_decode)(graph, a, vae, null(), &mut node, stream),
                7 => {
                    let facts = Facts::new(choices, batch);
                    let mut report = Report::new();
                    let (samples, result) = (report.samples.as_mut_ptr(), &raw mut report.result);
                    let status = (api.graph_face_loss)(
                        graph,
                        a,
                        self.loss,
                        &facts.targets(),
                        samples,
                        MOST,
                        result,
                        &mut node,
                        stream,
                    );
                    report.check(status, None);
                    status
                }
                8 => {
                    let level = *choices.of(&[null(), c"averages".as_ptr(), c"layer1".as_ptr()]);
                    (api.graph_features)(graph, a, backbone, level, &mut node, stream)
                }
                9 => {
                    let mut value = place(&odd(choices, shape));
                    (api.graph_read)(graph, a, &value.raw(), stream)
                }
                10 => {
                    let mut seed = Held::of(choices, shape, 1.0);
                    let seed = seed.raw();
                    let given = if choices.byte().is_multiple_of(2) {
                        null()
                    } else {
                        &raw const seed
                    };
                    (api.graph_backward)(graph, a, given, stream)
                }
                _ => {
                    let mut value = place(&odd(choices, shape));
                    (api.graph_gradient)(graph, a, &value.raw(), stream)
                }
            }
        };
        assert!(
            answered(status) || node == -1,
            "status {status} with node {node}"
        );
        if node >= 0 {
            self.nodes.push(node);
        }
    }
}

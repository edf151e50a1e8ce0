//! Fuzz target: a loss with its networks, and what a trainer does with it: references, images, steps, saved state, graphs.
//! Every value is one that a host could hand over, by mistake or not. No call may panic, and what a successful call
//! says must be so: loss and gradient are finite, and as many samples count as it says.

mod batch;
mod graph;
mod host_vae;
mod keys;
mod models;
mod networks;
mod world;

use self::batch::*;
use self::keys::KEYS;
use self::world::World;
use super::choices::Choices;
use super::held::Held;
use facegrad::ffi::types::*;
use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::ptr::{null, null_mut};

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// One input: a loss, and up to eight things that are done with it.
struct Play<'a, 'b> {
    world: &'a World,
    choices: &'a mut Choices<'b>,
    loss: *mut facegrad_loss,
    graph: *mut facegrad_graph,
    nodes: Vec<i64>,
}

// Every call hands over handles that live, and pointers to locals that outlive it.
impl Play<'_, '_> {
    fn next(&mut self) -> bool {
        match self.choices.byte() % 16 {
            0 => return false,
            1 | 2 => self.reference(),
            3..=5 => self.images(),
            6..=9 => self.step(),
            10 => self.state(),
            11..=13 => self.node(),
            14 => self.evaluate(),
            _ => self.networks(),
        }
        true
    }

    fn reference(&mut self) {
        let id = text(self.choices, &IDS);
        let api = self.world.api;
        if self.choices.byte() > 200 {
            // SAFETY: see above.
            answered(unsafe { (api.loss_remove_reference)(self.loss, id) });
            return;
        }
        let shape = images(self.choices);
        let mut pictures = Held::of(self.choices, &shape, 1.0);
        let mut landmarks = Held::of(self.choices, &[shape[0], 5, 2], 16.0);
        let (pictures, landmarks) = (pictures.raw(), landmarks.raw());
        let given = if self.choices.byte() % 4 == 3 {
            null()
        } else {
            &raw const landmarks
        };
        // SAFETY: see above.
        answered(unsafe { (api.loss_set_reference)(self.loss, id, &pictures, given, null_mut()) });
    }

    fn images(&mut self) {
        let shape = images(self.choices);
        let facts = Facts::new(self.choices, shape[0]);
        let mut pictures = Held::of(self.choices, &shape, 1.0);
        let mut gradient = place(&odd(self.choices, &shape));
        let (pictures, raw) = (pictures.raw(), gradient.raw());
        let mut report = Report::new();
        let wanted = self.choices.byte() < 230;
        // SAFETY: see above.
        let status = unsafe {
            (self.world.api.loss_images)(
                self.loss,
                &pictures,
                &facts.targets(),
                if wanted { &raw } else { null() },
                report.samples.as_mut_ptr(),
                MOST,
                &mut report.result,
                null_mut(),
            )
        };
        report.check(status, wanted.then_some(&gradient));
    }

    fn step(&mut self) {
        let choices = &mut *self.choices;
        let (shape, [height, width]) = latents(choices);
        let batch = shape[0];
        let facts = Facts::new(choices, batch);
        let mut x_t = Held::of(choices, &shape, 1.0);
        let mut prediction = Held::of(choices, &shape, 1.0);
        let mut times = times(choices, batch);
        let mut coefficients = Held::of(choices, &[batch, 2], 1.0);
        let mut gradient = place(&odd(choices, &shape));
        let (x_t, prediction, times) = (x_t.raw(), prediction.raw(), times.raw());
        let (coefficients, raw) = (coefficients.raw(), gradient.raw());
        let given = choices.byte();
        let step = facegrad_step {
            struct_size: size_of::<facegrad_step>(),
            x_t: if given & 7 == 7 { null() } else { &x_t },
            prediction: &prediction,
            times: if given & 56 == 56 { null() } else { &times },
            coefficients: if given & 192 != 192 {
                null()
            } else {
                &coefficients
            },
            latent_height: height,
            latent_width: width,
            number: u64::from(choices.byte() % 8),
            gradient_norm: match choices.byte() {
                250.. => *choices.of(&[-1.0, f64::NAN, f64::INFINITY]),
                byte => [0.0, 1.0, 1e-30, 1e300][usize::from(byte % 4)],
            },
        };
        let wanted = choices.byte() < 230;
        let mut report = Report::new();
        // SAFETY: see above.
        let status = unsafe {
            (self.world.api.loss_step)(
                self.loss,
                &step,
                &facts.targets(),
                if wanted { &raw } else { null() },
                report.samples.as_mut_ptr(),
                MOST,
                &mut report.result,
                null_mut(),
            )
        };
        report.check(status, wanted.then_some(&gradient));
    }

    /// Saves, perhaps damages, and restores what the loss remembers.
    fn state(&mut self) {
        let (api, path) = (self.world.api, self.world.state.as_ptr());
        // SAFETY: see above.
        assert!(answered(unsafe { (api.loss_save)(self.loss, path) }));
        let file = self.world.state.to_str().expect("a path");
        let mut content = std::fs::read(file).expect("what was saved");
        let whole = self.choices.byte().is_multiple_of(2);
        if !whole {
            for _ in 0..1 + self.choices.byte() % 4 {
                let at = (usize::from(self.choices.byte()) << 8 | usize::from(self.choices.byte()))
                    % content.len();
                content[at] = self.choices.byte();
            }
            std::fs::write(file, content).expect("a temporary file");
        }
        // SAFETY: see above.
        let restored = answered(unsafe { (api.loss_restore)(self.loss, path) });
        assert!(restored || !whole, "what was saved could not be restored");
        std::fs::remove_file(file).expect("a temporary file");
    }
}

/// A configuration, networks, and up to eight things that are done with them.
pub fn steps(data: &[u8]) {
    WORLD.with_borrow_mut(|world| play(world.get_or_insert_with(World::new), &mut Choices(data)));
}

fn play(world: &World, choices: &mut Choices) {
    let api = world.api;
    // SAFETY: no call of the library runs, so none uses the decoder.
    unsafe { (*world.decoder).mood = choices.byte() };
    let keys: Vec<&str> = KEYS
        .iter()
        .filter_map(|values| match choices.byte() {
            160.. => None,
            byte => Some(values[usize::from(byte) % values.len()]),
        })
        .collect();
    let config = CString::new(format!("{{{}}}", keys.join(","))).expect("no NUL");
    let detector = if choices.byte().is_multiple_of(2) {
        null_mut()
    } else {
        world.detector
    };
    let vae = match choices.byte() {
        250.. => null_mut(),
        byte => world.vaes[usize::from(byte % 3)],
    };
    let (mut loss, mut graph) = (null_mut(), null_mut());
    // SAFETY: the handles live, and the places are locals.
    let status = unsafe {
        (api.loss_new)(
            world.context,
            detector,
            world.backbone,
            vae,
            config.as_ptr(),
            &mut loss,
        )
    };
    if !answered(status) {
        assert!(loss.is_null());
        return;
    }
    // SAFETY: as above.
    assert!(answered(unsafe {
        (api.graph_new)(world.context, &mut graph)
    }));
    let mut play = Play {
        world,
        choices,
        loss,
        graph,
        nodes: vec![-1, 0],
    };
    for _ in 0..8 {
        if !play.next() {
            break;
        }
    }
    (api.graph_free)(graph);
    (api.loss_free)(loss);
    for id in IDS {
        // SAFETY: the evaluator lives, and the text is there.
        answered(unsafe { (api.evaluator_remove_reference)(world.evaluator, id.as_ptr()) });
    }
    let mut count = 0;
    for (kind, left) in [(c"loss", 0), (c"graph", 0), (c"vae", 3)] {
        // SAFETY: the text and the place are there.
        let status = unsafe { (api.debug_live)(kind.as_ptr(), &mut count) };
        assert_eq!((status, count), (0, left), "{kind:?} was leaked");
    }
}

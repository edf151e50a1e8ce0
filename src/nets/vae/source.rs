//! A VAE's named tensors. Each is handed out once, so that missing tensors and tensors that are left over are errors.

use crate::error::{Result, bail};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// How many names an error lists.
const LISTED: usize = 8;
/// The most image pixels that stand for a latent pixel, along each side. DC-AE, the decoder with the smallest latents, has
/// 128.
const MAX_SCALE: i64 = 256;
/// The most numbers that a layer makes for every pixel of the image. AutoencoderKL makes 256.
const MAX_WIDTH: i64 = 1024;

/// The decoder's tensors under diffusers' names.
pub(super) struct Source {
    tensors: BTreeMap<String, Tensor>,
    kind: Kind,
    device: Device,
    groups: i64,
    norms: i64,
    shared: bool,
    scale: i64,
    /// The most numbers for every latent pixel that a layer makes so far.
    widest: i64,
}

impl Source {
    /// `shared`: the tensors belong to the host and must not be copied where that can be avoided.
    pub(super) fn new(
        tensors: BTreeMap<String, Tensor>,
        kind: Kind,
        device: Device,
        groups: i64,
        shared: bool,
    ) -> Self {
        Source {
            tensors,
            kind,
            device,
            groups,
            norms: 0,
            shared,
            scale: 1,
            widest: 0,
        }
    }

    /// From here on the layers' maps are twice as high and wide.
    pub(super) fn enlarge(&mut self) -> Result<()> {
        self.scale *= 2;
        if self.scale > MAX_SCALE {
            bail!(
                Limit,
                "the decoder makes more than {MAX_SCALE} image pixels of a latent pixel, along each side; no known VAE does"
            );
        }
        Ok(())
    }

    /// Image pixels per latent pixel so far.
    pub(super) fn scale(&self) -> i64 {
        self.scale
    }

    /// A layer here makes so many channels.
    pub(super) fn makes(&mut self, channels: i64) {
        let numbers = channels.saturating_mul(self.scale * self.scale);
        self.widest = self.widest.max(numbers);
    }

    /// The device of the tensors that are handed out.
    pub(super) fn device(&self) -> Device {
        self.device
    }

    /// Groups of every GroupNorm.
    pub(super) fn groups(&self) -> i64 {
        self.groups
    }

    /// The number of the next GroupNorm whose statistics are recorded.
    pub(super) fn next_norm(&mut self) -> i64 {
        self.norms += 1;
        self.norms - 1
    }

    /// Whether a tensor of that name is still there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The sizes of a tensor that is still there.
    pub(super) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.tensors.get(name).map(Tensor::size)
    }

    /// Hands out a tensor in the network's dtype, on its device, without a gradient. A tensor
    /// that has both already keeps its memory.
    pub(super) fn take(&mut self, name: &str) -> Result<Tensor> {
        match self.take_optional(name)? {
            Some(tensor) => Ok(tensor),
            None => bail!(
                Weights,
                "missing tensor {name}; left in the file: {}",
                self.listed()
            ),
        }
    }

    /// As [`Source::take`], or `None`.
    pub(super) fn take_optional(&mut self, name: &str) -> Result<Option<Tensor>> {
        let kind = self.kind;
        self.take_as(name, kind)
    }

    /// As [`Source::take_optional`], in the given dtype.
    pub(super) fn take_as(&mut self, name: &str, kind: Kind) -> Result<Option<Tensor>> {
        let Some(tensor) = self.tensors.remove(name) else {
            return Ok(None);
        };
        let mut tensor = tensor
            .f_detach()?
            .f_to_device(self.device)?
            .f_to_kind(kind)?;
        // Autograd cannot keep a tensor that was made under inference_mode, but it can keep a copy.
        if tensor.f_is_inference()? {
            let mut copy = Tensor::f_empty(tensor.size(), (kind, self.device))?;
            copy.f_copy_(&tensor)?;
            tensor = copy;
        }
        Ok(Some(tensor))
    }

    /// As [`Source::take`], with its sizes checked.
    pub(super) fn take_shape(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let tensor = self.take(name)?;
        if tensor.size() != shape {
            bail!(
                Weights,
                "{name}: expected shape {shape:?}, got {:?}",
                tensor.size()
            );
        }
        Ok(tensor)
    }

    /// A view of a taken tensor as the network keeps it: copied, so that the rest of the tensor can be freed, unless
    /// the host keeps the whole tensor anyway.
    pub(super) fn compact(&self, view: Tensor) -> Result<Tensor> {
        if self.shared {
            return Ok(view);
        }
        Ok(view.f_contiguous()?)
    }

    /// Drops tensors that this network does not use.
    pub(super) fn discard(&mut self, useless: impl Fn(&str) -> bool) {
        self.tensors.retain(|name, _| !useless(name));
    }

    /// Checks that every tensor was used, and that no layer makes much more than the image.
    pub(super) fn finish(&self, what: &str) -> Result<()> {
        if !self.tensors.is_empty() {
            bail!(
                Weights,
                "{what}: the file has {} tensor(s) that this decoder does not: {}",
                self.tensors.len(),
                self.listed()
            );
        }
        if self.widest > MAX_WIDTH * self.scale * self.scale {
            bail!(
                Limit,
                "{what}: a layer makes more than {MAX_WIDTH} numbers for every pixel of the image; no known VAE does"
            );
        }
        Ok(())
    }

    fn listed(&self) -> String {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        let more = names.len().saturating_sub(LISTED);
        names.truncate(LISTED);
        match (names.is_empty(), more) {
            (true, _) => "nothing".into(),
            (false, 0) => names.join(", "),
            (false, _) => format!("{} and {more} more", names.join(", ")),
        }
    }
}

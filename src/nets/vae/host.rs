//! A decoder that the host implements: the host's code computes the image and the gradient.

use super::block::{Block, Chain, ReceptiveField};
use super::statistics::Norms;
use super::{Decoder, VaeFamily};
use crate::config::HostVaeConfig;
use crate::error::{Result, bail};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tch::{Device, Kind, Tensor};

/// The functions of a host that decodes. They are called on the context's thread.
pub trait HostFunctions: Send + Sync {
    /// Decodes latents `[B,C,h,w]`, float32 and compact, to images `[B,3,H,W]`, of any float dtype, on the same device.
    /// If `ticket` is not 0, the host keeps what [`HostFunctions::vjp`] needs under that number.
    fn decode(&self, latents: &Tensor, ticket: u64) -> Result<Tensor>;

    /// The gradient with respect to the latents of a ticket, from the gradient with respect to their image, float32.
    /// The ticket cannot be used again.
    fn vjp(&self, ticket: u64, gradient: &Tensor) -> Result<Tensor>;

    /// Tells the host that the gradient of a ticket will not be asked for.
    fn forget(&self, ticket: u64);
}

/// A host's functions, as a network.
#[derive(Clone)]
pub(super) struct Host {
    functions: Arc<dyn HostFunctions>,
    tickets: Arc<AtomicU64>,
}

/// A ticket for one gradient. Dropping it makes the host forget it.
pub(super) struct Ticket {
    host: Host,
    number: u64,
    size: Vec<i64>,
}

impl Host {
    fn image(&self, latents: &Tensor, ticket: u64) -> Result<Tensor> {
        let latents = latents.f_detach()?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let image = self.functions.decode(&latents, ticket)?;
        if image.size().first() != latents.size().first() {
            bail!(
                Shape,
                "the host's decoder: expected an image for each of {} latents, got {:?}",
                latents.size()[0],
                image.size()
            );
        }
        Ok(image)
    }

    /// The image, and the ticket for its gradient.
    pub(super) fn record(&self, latents: &Tensor) -> Result<(Tensor, Ticket)> {
        let ticket = Ticket {
            host: self.clone(),
            number: self.tickets.fetch_add(1, Ordering::Relaxed),
            size: latents.size(),
        };
        Ok((self.image(latents, ticket.number)?, ticket))
    }
}

impl Ticket {
    /// The gradient with respect to the latents.
    pub(super) fn vjp(self, gradient: &Tensor) -> Result<Tensor> {
        let gradient = gradient.f_to_kind(Kind::Float)?.f_contiguous()?;
        let found = self.host.functions.vjp(self.number, &gradient)?;
        if found.size() != self.size {
            bail!(
                Shape,
                "the host's decoder: expected a gradient of shape {:?}, got {:?}",
                self.size,
                found.size()
            );
        }
        Ok(found)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.host.functions.forget(self.number);
    }
}

impl Block for Host {
    fn forward(&self, x: &Tensor, _: &Norms) -> Result<Tensor> {
        self.image(x, 0)
    }

    fn vjp(&self, x: &Tensor, grad: &Tensor, _: &Norms) -> Result<Tensor> {
        self.record(x)?.1.vjp(grad)
    }

    fn receptive_field(&self) -> ReceptiveField {
        ReceptiveField::Whole
    }
}

impl Decoder {
    /// A decoder that the host implements.
    ///
    /// # Errors
    /// `Config` for a negative number of channels.
    pub fn from_functions(
        functions: Arc<dyn HostFunctions>,
        config: &HostVaeConfig,
        device: Device,
    ) -> Result<Self> {
        if config.latent_channels < 0 {
            bail!(
                Config,
                "vae config: latent_channels: expected a number >= 0, got {}",
                config.latent_channels
            );
        }
        let host = Host {
            functions,
            tickets: Arc::new(AtomicU64::new(1)),
        };
        Ok(Decoder {
            chain: Chain(vec![Box::new(host.clone())]),
            host: Some(host),
            family: VaeFamily::Host,
            channels: config.latent_channels,
            scale: 0,
            range: config.image_range,
            kind: Kind::Float,
            device,
            recompute: Default::default(),
            slicing: config.slicing,
            has_norms: false,
            stats: None,
            assumed: String::new(),
            format: Some(config.latent_format.clone()),
        })
    }
}

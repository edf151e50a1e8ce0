//! The host's CUDA streams. Calls on one context may come on several streams, and what one call leaves (weights, cached
//! references, statistics) is read by later ones. [`Order`] therefore lets every call's work wait for the work of the
//! call before it, without the host waiting.

use super::cuda;
use crate::error::{Error, Result, bail};
use crate::log::{Level, emit};
use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;
use tch::{Device, Tensor};

// torch/part.cc defines these.
unsafe extern "C" {
    safe fn facegrad_torch_backward_on_this_thread();
    #[cfg(test)]
    safe fn facegrad_torch_backward_is_on_this_thread() -> i32;
    safe fn facegrad_torch_wait_for_device(device: i32) -> i32;
    fn facegrad_torch_event_record(event: *mut *mut c_void, device: i32) -> i32;
    fn facegrad_torch_event_block(event: *mut c_void, device: i32) -> i32;
    fn facegrad_torch_event_wait(event: *mut c_void) -> i32;
    fn facegrad_torch_event_free(event: *mut c_void);
    fn facegrad_torch_record_stream(tensor: *const torch_sys::C_tensor) -> i32;
}

/// The error that the part kept, where a call of it failed.
pub(super) fn checked(status: i32) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the text is a C string of malloc, or NULL; it is ours to free.
    let text = unsafe {
        let text: *mut c_char = torch_sys::get_and_reset_last_err();
        if text.is_null() {
            bail!(Internal, "a call of libtorch failed without an error");
        }
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast());
        copy
    };
    Err(Error::from(tch::TchError::Torch(text)))
}

/// Backward passes of this thread run on this thread alone. The engine of libtorch has one thread for each GPU, and
/// that thread waits for us where a backward function of the host calls facegrad.
pub fn backward_on_this_thread() {
    facegrad_torch_backward_on_this_thread();
}

#[cfg(test)]
pub(crate) fn backward_is_on_this_thread() -> bool {
    facegrad_torch_backward_is_on_this_thread() != 0
}

/// Waits for everything that runs on the device; nothing on a CPU.
pub fn wait_for_device(device: Device) -> Result<()> {
    match device {
        Device::Cuda(index) => checked(facegrad_torch_wait_for_device(index as i32)),
        _ => Ok(()),
    }
}

/// Says that the current stream reads a tensor that outlives the call. If the tensor is freed, its memory is not used
/// again before the work that is on the stream then has run: the tensor may have been allocated on another stream.
pub fn in_use(tensor: &Tensor) -> Result<()> {
    #[cfg(test)]
    tests::IN_USE.with_borrow_mut(|seen| seen.push(tensor.data_ptr().addr()));
    match tensor.device() {
        // SAFETY: the tensor is alive and on a GPU.
        Device::Cuda(_) => checked(unsafe { facegrad_torch_record_stream(tensor.as_ptr()) }),
        _ => Ok(()),
    }
}

/// A host's `cudaStream_t` by address; 0 is CUDA's default stream and the only one on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stream(usize);

/// CUDA's own names for a default stream (`cudaStreamLegacy`, `cudaStreamPerThread`).
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

impl Stream {
    /// Wraps the pointer that a host gave.
    pub fn new(pointer: *mut c_void) -> Self {
        match pointer.addr() {
            // The same stream; libtorch would take the number for one of its own streams.
            LEGACY => Stream(0),
            address => Stream(address),
        }
    }
}

/// What [`Order`] asks of CUDA. The tests put a recording stand-in here.
pub(crate) trait Calls: Send + Sync {
    /// Makes the stream current on this thread; what `leave` needs.
    fn enter(&self, stream: usize, device: i32) -> Result<usize>;
    /// Makes current again what was current before.
    fn leave(&self, guard: usize);
    /// Whether a CUDA graph is captured on the stream.
    fn captures(&self, stream: usize) -> bool;
    /// Marks what is on the current stream. `event` is 0 at first.
    fn record(&self, event: &mut usize, device: i32) -> Result<()>;
    /// Lets the current stream wait for what the event marks.
    fn block(&self, event: usize, device: i32) -> Result<()>;
    /// Waits on the host for what the event marks.
    fn wait(&self, event: usize) -> Result<()>;
    /// Waits on the host for everything.
    fn wait_for_device(&self, device: i32) -> Result<()>;
    /// Frees an event.
    fn free(&self, event: usize);
}

struct Cuda;

impl Calls for Cuda {
    fn enter(&self, stream: usize, device: i32) -> Result<usize> {
        cuda::enter_stream(std::ptr::with_exposed_provenance_mut(stream), device)
    }
    fn leave(&self, guard: usize) {
        cuda::leave_stream(guard);
    }
    fn captures(&self, stream: usize) -> bool {
        cuda::stream_captures(std::ptr::with_exposed_provenance_mut(stream))
    }
    fn record(&self, event: &mut usize, device: i32) -> Result<()> {
        let mut pointer: *mut c_void = match *event {
            0 => null_mut(),
            address => std::ptr::with_exposed_provenance_mut(address),
        };
        // SAFETY: NULL or an event of an earlier call.
        let status = unsafe { facegrad_torch_event_record(&mut pointer, device) };
        *event = pointer.expose_provenance();
        checked(status)
    }
    fn block(&self, event: usize, device: i32) -> Result<()> {
        // SAFETY: `record` made the event, and it is not freed yet.
        checked(unsafe {
            facegrad_torch_event_block(std::ptr::with_exposed_provenance_mut(event), device)
        })
    }
    fn wait(&self, event: usize) -> Result<()> {
        // SAFETY: as in `block`.
        checked(unsafe { facegrad_torch_event_wait(std::ptr::with_exposed_provenance_mut(event)) })
    }
    fn wait_for_device(&self, device: i32) -> Result<()> {
        checked(facegrad_torch_wait_for_device(device))
    }
    fn free(&self, event: usize) {
        // SAFETY: as in `block`, and nobody uses it afterwards.
        unsafe { facegrad_torch_event_free(std::ptr::with_exposed_provenance_mut(event)) };
    }
}

/// Puts the calls of one context in order on the device. Lives on the context's thread.
pub struct Order {
    calls: &'static dyn Calls,
    device: Device,
    /// The stream of the last call, and an event behind its work (0: there was no call).
    last: Stream,
    event: usize,
    /// Whether there were calls on several streams.
    several: bool,
    /// Whether the work of the last call could not be marked.
    unmarked: bool,
}

impl Order {
    /// For a context on `device`.
    pub fn new(device: Device) -> Order {
        Order::with(device, &Cuda)
    }

    pub(crate) fn with(device: Device, calls: &'static dyn Calls) -> Order {
        Order {
            calls,
            device,
            last: Stream::default(),
            event: 0,
            several: false,
            unmarked: false,
        }
    }

    /// Begins a call: its stream is current on this thread until the turn is dropped, and what is put on it waits for
    /// the work of the call before.
    ///
    /// # Errors
    /// `Device` for a stream on a CPU, for CUDA's per-thread stream, and while a CUDA graph is captured.
    pub fn enter(&mut self, stream: Stream) -> Result<Turn<'_>> {
        let Device::Cuda(index) = self.device else {
            if stream != Stream::default() {
                bail!(
                    Device,
                    "stream: expected NULL for a CPU context, got a CUDA stream"
                );
            }
            return Ok(Turn(None));
        };
        if stream.0 == PER_THREAD {
            bail!(
                Device,
                "stream: cudaStreamPerThread is another stream on the context's thread; make a stream and pass that"
            );
        }
        if self.calls.captures(stream.0) {
            bail!(
                Device,
                "stream: a CUDA graph is being captured on it, and a call of facegrad waits for its result, which a graph \
                 cannot hold; call facegrad outside the capture"
            );
        }
        let (index, calls) = (index as i32, self.calls);
        let guard = calls.enter(stream.0, index)?;
        let mut turn = Turn(Some((self, guard, index)));
        if let Some((order, ..)) = &mut turn.0 {
            if order.unmarked {
                calls.wait_for_device(index)?;
                order.unmarked = false;
            }
            if order.event != 0 && order.last != stream {
                order.several = true;
                calls.block(order.event, index)?;
            }
            order.last = stream;
        }
        Ok(turn)
    }

    /// Waits until what was freed now is in use by no work on the device. With one stream there is nothing to wait
    /// for: what takes the memory next comes later on the same stream.
    pub fn settle(&self) {
        if self.several
            && self.event != 0
            && let Err(error) = self.calls.wait(self.event)
        {
            emit(Level::Error, &format!("waiting for a stream: {error}"));
        }
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        if self.event != 0 {
            self.calls.free(self.event);
        }
    }
}

/// One call's time on its stream. Dropping it marks the call's work and restores the thread's stream and device; it
/// stays on the thread that made it.
pub struct Turn<'a>(Option<(&'a mut Order, usize, i32)>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some((order, guard, index)) = self.0.take() {
            if let Err(error) = order.calls.record(&mut order.event, index) {
                order.unmarked = true;
                emit(Level::Error, &format!("marking a stream: {error}"));
            }
            order.calls.leave(guard);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::sync::Mutex;

    thread_local! {
        /// Addresses of what [`in_use`] was told on this thread.
        pub(crate) static IN_USE: RefCell<Vec<usize>> = const { RefCell::new(vec![]) };
    }

    /// Writes down what CUDA would have been asked.
    #[derive(Default)]
    pub(crate) struct Recording {
        pub(crate) log: Mutex<Vec<String>>,
        pub(crate) capturing: bool,
        pub(crate) failing: Mutex<Option<&'static str>>,
    }

    impl Recording {
        pub(crate) fn new() -> &'static Recording {
            Box::leak(Box::default())
        }
        fn note(&self, text: String) -> Result<()> {
            let failing = *self.failing.lock().unwrap();
            if failing.is_some_and(|word| text.starts_with(word)) {
                bail!(Torch, "{text} fails on purpose");
            }
            self.log.lock().unwrap().push(text);
            Ok(())
        }
        /// What was noted since the last look.
        pub(crate) fn take(&self) -> Vec<String> {
            std::mem::take(&mut *self.log.lock().unwrap())
        }
    }

    impl Calls for Recording {
        fn enter(&self, stream: usize, device: i32) -> Result<usize> {
            self.note(format!("enter {stream:#x} on {device}"))?;
            Ok(stream)
        }
        fn leave(&self, guard: usize) {
            let _ = self.note(format!("leave {guard:#x}"));
        }
        fn captures(&self, _: usize) -> bool {
            self.capturing
        }
        fn record(&self, event: &mut usize, _: i32) -> Result<()> {
            self.note("record".into())?;
            *event = 7;
            Ok(())
        }
        fn block(&self, event: usize, _: i32) -> Result<()> {
            self.note(format!("block {event}"))
        }
        fn wait(&self, event: usize) -> Result<()> {
            self.note(format!("wait {event}"))
        }
        fn wait_for_device(&self, _: i32) -> Result<()> {
            self.note("wait for device".into())
        }
        fn free(&self, event: usize) {
            let _ = self.note(format!("free {event}"));
        }
    }

    fn stream(address: usize) -> Stream {
        Stream::new(std::ptr::without_provenance_mut(address))
    }

    #[test]
    fn a_call_on_another_stream_waits_for_the_one_before() {
        let calls = Recording::new();
        let mut order = Order::with(Device::Cuda(1), calls);
        for address in [0, 0xa0, 0xa0, 0] {
            drop(order.enter(stream(address)).unwrap());
        }
        assert_eq!(
            calls.take(),
            [
                "enter 0x0 on 1",
                "record",
                "leave 0x0", // the weights' upload
                "enter 0xa0 on 1",
                "block 7",
                "record",
                "leave 0xa0",
                "enter 0xa0 on 1",
                "record",
                "leave 0xa0",
                "enter 0x0 on 1",
                "block 7",
                "record",
                "leave 0x0",
            ]
        );
        drop(order);
        assert_eq!(calls.take(), ["free 7"]);
    }

    #[test]
    fn the_work_of_a_panic_is_waited_for_and_the_stream_left() {
        let calls = Recording::new();
        let mut order = Order::with(Device::Cuda(0), calls);
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _turn = order.enter(stream(0xa0)).unwrap();
            panic!("on purpose");
        }));
        assert!(panic.is_err());
        assert_eq!(calls.take(), ["enter 0xa0 on 0", "record", "leave 0xa0"]);
        drop(order.enter(stream(0xb0)).unwrap());
        assert_eq!(calls.take()[..2], ["enter 0xb0 on 0", "block 7"]);
    }

    #[test]
    fn work_that_could_not_be_marked_is_waited_for() {
        let calls = Recording::new();
        let mut order = Order::with(Device::Cuda(0), calls);
        *calls.failing.lock().unwrap() = Some("record");
        drop(order.enter(stream(0xa0)).unwrap());
        *calls.failing.lock().unwrap() = None;
        calls.take();
        drop(order.enter(stream(0xb0)).unwrap());
        assert_eq!(calls.take()[..2], ["enter 0xb0 on 0", "wait for device"]);
    }

    #[test]
    fn freeing_waits_only_where_there_were_several_streams() {
        let calls = Recording::new();
        let mut order = Order::with(Device::Cuda(0), calls);
        drop(order.enter(stream(0xa0)).unwrap());
        order.settle();
        assert_eq!(calls.take().last().unwrap(), "leave 0xa0");
        drop(order.enter(stream(0xb0)).unwrap());
        order.settle();
        assert_eq!(calls.take().last().unwrap(), "wait 7");
    }

    #[test]
    fn streams_that_cannot_be_used_are_refused() {
        let calls = Recording::new();
        let mut order = Order::with(Device::Cuda(0), calls);
        let error = order.enter(stream(PER_THREAD)).err().unwrap();
        assert!(error.message().contains("cudaStreamPerThread"), "{error}");
        drop(order.enter(stream(LEGACY)).unwrap());
        assert_eq!(calls.take()[0], "enter 0x0 on 0", "the default stream");
        let capturing: &'static Recording = Box::leak(Box::new(Recording {
            capturing: true,
            ..Recording::default()
        }));
        let mut order = Order::with(Device::Cuda(0), capturing);
        let error = order.enter(stream(0xa0)).err().unwrap();
        assert_eq!(error.status(), 7);
        assert!(error.message().contains("outside the capture"), "{error}");
        assert!(capturing.take().is_empty());
        let mut order = Order::new(Device::Cpu);
        assert_eq!(order.enter(stream(0xa0)).err().unwrap().status(), 7);
        assert!(order.enter(stream(0)).is_ok());
    }
}

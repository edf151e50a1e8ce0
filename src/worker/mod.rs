//! The thread of a context. It owns every tensor and every session of the context. The state of the host's
//! threads (grad mode, inference mode, autocast, saved-tensor hooks) therefore never reaches the library's
//! graphs, and the library never changes that state.

mod busy;
mod callback;

pub use busy::{Busy, Own};
pub use callback::{callback, check_callbacks, in_callback};

use crate::error::{Error, Result, bail};
use crate::shared::{Shared, lock};
use crate::tensor::{Order, Stream, backward_on_this_thread};
use callback::forget_callbacks;
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvError, Sender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tch::Device;

type Job = Box<dyn FnOnce() + Send>;

/// The number of the next worker. 0 stands for any other thread.
static NEXT: AtomicUsize = AtomicUsize::new(1);

thread_local! {
    /// The number of this thread's worker. It has no destructor, so exit handlers can use it.
    static WORKER: Cell<usize> = const { Cell::new(0) };
}

/// Whether this thread is a context's.
pub fn on_worker() -> bool {
    WORKER.get() != 0
}

/// The thread of one context. Calls from any number of host threads run one after the other.
pub struct Worker {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    number: usize,
    pid: u32,
    device: Device,
    order: Shared<Order>,
    poisoned: AtomicBool,
}

impl Worker {
    /// Starts the thread.
    pub fn spawn(device: Device) -> Result<Arc<Worker>> {
        Self::start(device, Order::new(device))
    }

    fn start(device: Device, order: Order) -> Result<Arc<Worker>> {
        let (jobs, queue) = channel::<Job>();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::Builder::new()
            .name("facegrad".into())
            .spawn(move || {
                WORKER.set(number);
                backward_on_this_thread();
                for job in queue {
                    let _own = Own::new();
                    job();
                }
            })
            .map_err(|e| Error::Internal(format!("the worker thread cannot be started: {e}")))?;
        Ok(Arc::new(Worker {
            number,
            jobs: Some(jobs),
            thread: Some(thread),
            pid: std::process::id(),
            device,
            order: Arc::new(Mutex::new(order)),
            poisoned: AtomicBool::new(false),
        }))
    }

    /// The device of the context.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Runs `job` on the thread, with the host's CUDA stream current and the host's number of CPU
    /// threads, and waits for it. A panic poisons the context, because its state may be inconsistent.
    pub fn run<R, F>(&self, stream: Stream, job: F) -> Result<R>
    where
        R: Send + 'static,
        F: FnOnce() -> Result<R> + Send + 'static,
    {
        if std::process::id() != self.pid {
            bail!(
                Forked,
                "the context was made before this process was forked and its thread does not exist here; \
                 make a new context in the child"
            );
        }
        if WORKER.get() == self.number || in_callback() {
            bail!(
                Reentrant,
                "a callback of facegrad must not call back into facegrad"
            );
        }
        if self.poisoned.load(Ordering::Acquire) {
            bail!(
                Poisoned,
                "an earlier call on this context ended in a panic; free the context and make a new one"
            );
        }
        let order = self.order.clone();
        let threads = tch::get_num_threads();
        let (reply, answer) = sync_channel(1);
        let run: Job = Box::new(move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                if tch::get_num_threads() != threads {
                    tch::set_num_threads(threads);
                }
                let mut order = lock(&order);
                let _turn = order.enter(stream)?;
                forget_callbacks();
                let result = job()?;
                check_callbacks()?;
                Ok(result)
            }));
            // The host waits for this answer, so the receiver exists.
            let _ = reply.send(outcome);
        });
        let sent = self
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send(run).is_ok());
        match sent.then(|| wait(&answer)) {
            Some(Ok(Ok(result))) => result,
            Some(Ok(Err(panic))) => {
                self.poisoned.store(true, Ordering::Release);
                Err(Error::Panic(panic_text(panic.as_ref())))
            }
            _ => bail!(Internal, "the context's thread has ended"),
        }
    }

    /// Drops `value` on the thread, after all earlier calls. If these came on several CUDA streams, it is dropped after
    /// their work on the device too.
    fn dispose<T: Send + 'static>(&self, value: T) {
        if std::process::id() != self.pid {
            // The thread exists only in the parent. Dropping tensors of a forked CUDA context would crash.
            std::mem::forget(value);
        } else if WORKER.get() == self.number {
            drop(value);
        } else if let Some(jobs) = &self.jobs {
            let (busy, order) = (Busy::new(), self.order.clone());
            let run: Job = Box::new(move || {
                let _busy = busy;
                lock(&order).settle();
                let _ = catch_unwind(AssertUnwindSafe(|| drop(value)));
            });
            let _ = jobs.send(run);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if std::process::id() != self.pid {
            // A forked child must not use CUDA either.
            std::mem::forget((self.jobs.take(), thread, self.order.clone()));
            return;
        }
        drop(self.jobs.take());
        if WORKER.get() != self.number {
            let _ = thread.join();
        }
    }
}

/// Waits for the answer. At first it spins, because a short call ends before a sleeping thread would be woken.
fn wait<T>(answer: &Receiver<T>) -> std::result::Result<T, RecvError> {
    const AWAKE: Duration = Duration::from_micros(50);
    let start = Instant::now();
    while start.elapsed() < AWAKE {
        match answer.try_recv() {
            Ok(value) => return Ok(value),
            Err(TryRecvError::Disconnected) => return Err(RecvError),
            Err(TryRecvError::Empty) => std::hint::spin_loop(),
        }
    }
    answer.recv()
}

/// An object that lives on a worker. Its methods run there, and it is dropped there.
pub struct Owned<T: Send + 'static> {
    worker: Arc<Worker>,
    value: Option<Shared<T>>,
}

impl<T: Send + 'static> Owned<T> {
    /// Builds the value on the worker.
    pub fn build<F>(worker: &Arc<Worker>, make: F) -> Result<Owned<T>>
    where
        F: FnOnce(Device) -> Result<T> + Send + 'static,
    {
        let device = worker.device();
        let value = worker.run(Stream::default(), move || {
            Ok(Arc::new(Mutex::new(make(device)?)))
        })?;
        Ok(Owned {
            worker: worker.clone(),
            value: Some(value),
        })
    }

    /// Runs `job` with the value on the worker.
    pub fn with<R, F>(&self, stream: Stream, job: F) -> Result<R>
    where
        R: Send + 'static,
        F: FnOnce(&mut T) -> Result<R> + Send + 'static,
    {
        let value = self.share();
        self.worker.run(stream, move || job(&mut lock(&value)))
    }

    /// Another reference to the value, for an object of the same context.
    pub fn share(&self) -> Shared<T> {
        self.value.clone().expect("taken only by drop")
    }

    /// The worker that the value lives on.
    pub fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }
}

impl<T: Send + 'static> Drop for Owned<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.worker.dispose(value);
        }
    }
}

/// The message of a panic.
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    format!("a defect in facegrad: {text}; please report it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Recording, backward_is_on_this_thread};

    #[test]
    fn a_panic_poisons_and_the_value_is_dropped_on_the_thread() {
        struct Probe(std::sync::mpsc::Sender<usize>);
        impl Drop for Probe {
            fn drop(&mut self) {
                let _ = self.0.send(WORKER.get());
            }
        }
        let worker = Worker::spawn(Device::Cpu).unwrap();
        let (sender, dropped) = channel();
        let owned = Owned::build(&worker, move |_| Ok(Probe(sender))).unwrap();
        let panic = owned
            .with(Stream::default(), |_| -> Result<()> {
                panic!("on purpose")
            })
            .unwrap_err();
        assert_eq!(panic.status(), 901);
        assert!(panic.message().contains("on purpose"));
        let poisoned = owned.with(Stream::default(), |_| Ok(())).unwrap_err();
        assert_eq!(poisoned.status(), 12);
        drop(owned);
        assert_eq!(dropped.recv().unwrap(), worker.number);
    }

    #[test]
    fn an_error_of_libtorch_is_an_error_where_a_scalar_is_among_the_arguments() {
        let worker = Worker::spawn(Device::Cpu).unwrap();
        let run = |make: fn(&tch::Tensor) -> std::result::Result<tch::Tensor, tch::TchError>| {
            let failed = worker.run(Stream::default(), move || {
                let huge = tch::Tensor::f_zeros([1], (tch::Kind::Float, Device::Cpu))?
                    .f_expand([1i64 << 42], false)?;
                Ok(make(&huge)?.size())
            });
            failed.unwrap_err()
        };
        let plain = run(|x| x.f_relu());
        let scalar = run(|x| x.f_mul_scalar(2.0));
        assert_eq!((plain.status(), scalar.status()), (200, 200), "{scalar}");
        assert_eq!(plain.message(), scalar.message());
        assert!(worker.run(Stream::default(), || Ok(())).is_ok());
    }

    #[test]
    fn the_thread_records_gradients_whatever_the_host_does() {
        let _host = tch::no_grad_guard();
        let worker = Worker::spawn(Device::Cpu).unwrap();
        let recorded = worker.run(Stream::default(), || {
            let x = tch::Tensor::f_ones([2], (tch::Kind::Float, Device::Cpu))?;
            let x = x.f_set_requires_grad(true)?;
            Ok(x.f_mul_scalar(2.0)?.requires_grad())
        });
        assert!(recorded.unwrap());
    }

    #[test]
    fn the_calls_of_a_gpu_context_come_in_order_and_are_over_before_anything_is_freed() {
        let calls = Recording::new();
        let device = Device::Cuda(0);
        let worker = Worker::start(device, Order::with(device, calls)).unwrap();
        let owned = Owned::build(&worker, |_| Ok(())).unwrap();
        let stream = Stream::new(std::ptr::without_provenance_mut(0xa0));
        owned.with(stream, |()| Ok(())).unwrap();
        let refused = owned.with(stream, |()| -> Result<()> { bail!(Argument, "no") });
        assert_eq!(refused.unwrap_err().status(), 2);
        let panic = owned.with(stream, |()| -> Result<()> { panic!("on purpose") });
        assert_eq!(panic.unwrap_err().status(), 901);
        drop(owned);
        drop(worker);
        let call = ["enter 0xa0 on 0", "record", "leave 0xa0"];
        let mut want = vec!["enter 0x0 on 0", "record", "leave 0x0"];
        want.extend(["enter 0xa0 on 0", "block 7", "record", "leave 0xa0"]);
        want.extend(call.iter().chain(&call));
        want.extend(["wait 7", "free 7"]);
        assert_eq!(calls.take(), want);
    }

    #[test]
    fn a_forked_child_asks_cuda_for_nothing() {
        let calls = Recording::new();
        let device = Device::Cuda(0);
        let mut worker = Worker::start(device, Order::with(device, calls)).unwrap();
        worker.run(Stream::default(), || Ok(())).unwrap();
        calls.take();
        // As if this process were a child of the one that made the context.
        Arc::get_mut(&mut worker).unwrap().pid += 1;
        assert_eq!(
            worker
                .run(Stream::default(), || Ok(()))
                .unwrap_err()
                .status(),
            11
        );
        drop(worker);
        assert!(calls.take().is_empty());
    }

    #[test]
    fn backward_needs_no_other_thread() {
        let worker = Worker::spawn(Device::Cpu).unwrap();
        let on_worker = worker.run(Stream::default(), || Ok(backward_is_on_this_thread()));
        assert_eq!(
            (on_worker.unwrap(), backward_is_on_this_thread()),
            (true, false)
        );
    }

    #[test]
    fn a_callback_cannot_call_back() {
        let worker = Worker::spawn(Device::Cpu).unwrap();
        callback(|| {
            let error = worker.run(Stream::default(), || Ok(())).unwrap_err();
            assert_eq!(error.status(), 10);
            false
        });
        assert!(worker.run(Stream::default(), || Ok(())).is_ok());
    }

    #[test]
    fn a_callback_that_threw_fails_the_call_that_it_was_part_of() {
        let worker = Worker::spawn(Device::Cpu).unwrap();
        let threw = worker.run(Stream::default(), || {
            callback(|| true);
            Ok(())
        });
        assert_eq!(threw.unwrap_err().status(), 13);
        assert!(worker.run(Stream::default(), || Ok(())).is_ok());
    }
}

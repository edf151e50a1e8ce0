// The part of facegrad that is compiled for one version of torch: libfacegrad_torch.so.
//
// torch/cut.rs replaces the line FUNCTIONS by functions of torch-sys. The source is the same for every torch. The
// compiled part is not, because libtorch's C++ ABI changes with every minor version.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/AutogradState.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/cuda.h>
#include <torch/script.h>
#include <torch/types.h>
#include <torch/version.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// Rust's side of torch-sys reads the text of an exception from here, on the thread that made the call.
static thread_local char *torch_last_err = nullptr;

static void keep_error(const char *text) {
    free(torch_last_err);
    torch_last_err = strdup(text);
}

// No exception may leave a function of this file, because it would unwind into Rust.
#define PROTECT(...)                                          \
    try {                                                     \
        __VA_ARGS__                                           \
    } catch (const std::exception &error) {                   \
        keep_error(error.what());                             \
    } catch (...) {                                           \
        keep_error("an exception that is no std::exception"); \
    }

// A part in a wheel is compiled on a newer system than the oldest that it runs on. The names below are those that newer
// headers of libstdc++ use and the libraries of manylinux_2_28 (glibc 2.28, libstdc++ 8) lack. They are defined here and
// hidden, so that the part needs none of them. glibc 2.32 answers whether the process has one thread; it has several.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
namespace std {
__attribute__((noreturn)) void __throw_bad_array_new_length() { throw bad_array_new_length(); }
#if __cplusplus >= 202002L && _GLIBCXX_USE_CXX11_ABI
template string basic_stringbuf<char>::str() const &;
#endif
} // namespace std

using namespace std;
typedef torch::Tensor *tensor;
typedef torch::Scalar *scalar;
typedef torch::jit::script::Module *module;
typedef torch::jit::IValue *ivalue;

FUNCTIONS

extern "C" {

// tch frees the scalars of a call before it asks whether the call failed, and asks after freeing too, where an error
// panics (tch 0.24, wrappers/scalar.rs). So the first question after a scalar was freed is about the freeing, which
// cannot fail, and the error stays for the second one.
static thread_local bool freed_scalar = false;

void ats_free(scalar s) {
    delete s;
    freed_scalar = true;
}

char *get_and_reset_last_err() {
    char *text = nullptr;
    if (!freed_scalar) {
        swap(text, torch_last_err);
    }
    freed_scalar = false;
    return text;
}

/// The version of torch whose headers this part was compiled with: "2.11.0". A loader can read the same text in the file
/// without loading it.
const char *facegrad_torch_compiled(void) {
    static const char text[] = "libfacegrad_torch for torch " TORCH_VERSION;
    return text + sizeof "libfacegrad_torch for torch " - 1;
}

#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 7
std::uint64_t aoti_torch_abi_version(void);
#endif

/// The version of the torch of this process as 0xMMmmpp0000000000; 0 where torch does not tell it (before 2.7).
std::uint64_t facegrad_torch_running(void) {
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 7
    return aoti_torch_abi_version();
#else
    return 0;
#endif
}

/// An address inside the libtorch_cpu that this process uses.
const void *facegrad_torch_address(void) { return reinterpret_cast<const void *>(&at::get_num_threads); }

/// Runs the backward passes of this thread on this thread alone. Otherwise autograd runs those of a GPU on one thread
/// for each GPU, and that thread waits for us where a backward function of the host calls facegrad.
void facegrad_torch_backward_on_this_thread(void) { PROTECT(c10::AutogradState::get_tls_state().set_multithreading_enabled(false);) }

std::int32_t facegrad_torch_backward_is_on_this_thread(void) { return !c10::AutogradState::get_tls_state().get_multithreading_enabled(); }

// The functions below are for CUDA. c10 reaches it by tables that libtorch_cuda fills in when it is loaded, so its headers
// and the library itself are not needed here. They return 0, or 1 and keep an error. `device` is the ordinal of the GPU,
// and the stream is the one that is current on this thread.

static c10::Device gpu(std::int32_t device) { return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device)); }

static c10::Stream current_stream(std::int32_t device) { return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getStream(gpu(device)); }

/// Records in `*event` the work that is on the stream now. The event is made where it is NULL.
std::int32_t facegrad_torch_event_record(void **event, std::int32_t device) {
    PROTECT(if (*event == nullptr) { *event = new c10::Event(c10::DeviceType::CUDA); } static_cast<c10::Event *>(*event)->record(
        current_stream(device));
            return 0;)
    return 1;
}

/// Lets the stream wait for the work that the event records. The host does not wait.
std::int32_t facegrad_torch_event_block(void *event, std::int32_t device) {
    PROTECT(static_cast<c10::Event *>(event)->block(current_stream(device)); return 0;)
    return 1;
}

/// Waits for the work that the event records.
std::int32_t facegrad_torch_event_wait(void *event) {
    PROTECT(static_cast<c10::Event *>(event)->synchronize(); return 0;)
    return 1;
}

void facegrad_torch_event_free(void *event) { delete static_cast<c10::Event *>(event); }

/// Waits for all work on the GPU.
std::int32_t facegrad_torch_wait_for_device(std::int32_t device) {
    PROTECT(torch::cuda::synchronize(device); return 0;)
    return 1;
}

/// The memory of a tensor that is freed from now on is not used again before the work that is on the stream then has run.
std::int32_t facegrad_torch_record_stream(tensor t) {
    PROTECT(t->record_stream(current_stream(static_cast<std::int32_t>(t->get_device()))); return 0;)
    return 1;
}

/// A CPU tensor's copy on the GPU, through pinned memory: the host does not wait for it. NULL on failure.
tensor facegrad_torch_upload(tensor t, std::int32_t device) {
    PROTECT(at::Tensor pinned = at::empty(t->sizes(), t->options().pinned_memory(true)); pinned.copy_(*t);
            return new at::Tensor(pinned.to(gpu(device), t->scalar_type(), /*non_blocking=*/true));)
    return nullptr;
}

/// Calls the host's log callback. Returns 1 where it threw. An exception must not unwind into Rust, and Rust cannot catch it.
std::int32_t facegrad_torch_call_log(void (*log)(std::int32_t, const char *, void *), std::int32_t level, const char *message,
                                     void *user_data) {
    try {
        log(level, message, user_data);
        return 0;
    } catch (...) {
        return 1;
    }
}

/// Calls the host's decoder (facegrad_decode_function). Returns its status, or -1 where it threw.
std::int32_t facegrad_torch_call_decode(std::int32_t (*decode)(const void *, std::uint64_t, void *, void *), const void *latents,
                                        std::uint64_t ticket, void *image, void *user_data) {
    try {
        return decode(latents, ticket, image, user_data);
    } catch (...) {
        return -1;
    }
}

/// Calls the derivative of the host's decoder (facegrad_vjp_function). Returns its status, or -1 where it threw.
std::int32_t facegrad_torch_call_vjp(std::int32_t (*vjp)(std::uint64_t, const void *, void *, void *), std::uint64_t ticket,
                                     const void *gradient, void *latents_gradient, void *user_data) {
    try {
        return vjp(ticket, gradient, latents_gradient, user_data);
    } catch (...) {
        return -1;
    }
}

} // extern "C"

// The part of facegrad that is compiled for one version of torch: libfacegrad_torch.so.
//
// The line FUNCTIONS stands for functions of torch-sys, which torch/cut.rs puts there. The text is the same for
// every torch; what the compiler makes of it is not, because libtorch's C++ ABI changes with every minor version.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
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

// No exception leaves a function of this file: it would unwind into Rust.
#define PROTECT(...)                                                                                                   \
    try {                                                                                                              \
        __VA_ARGS__                                                                                                    \
    } catch (const std::exception &error) {                                                                            \
        keep_error(error.what());                                                                                      \
    } catch (...) {                                                                                                    \
        keep_error("an exception that is no std::exception");                                                          \
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

/// The torch whose headers this part was compiled with: "2.11.0". A loader finds the same words in the file without
/// loading it.
const char *facegrad_torch_compiled(void) {
    static const char text[] = "libfacegrad_torch for torch " TORCH_VERSION;
    return text + sizeof "libfacegrad_torch for torch " - 1;
}

#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 7
std::uint64_t aoti_torch_abi_version(void);
#endif

/// The torch of this process as 0xMMmmpp0000000000, or 0 where it does not tell (before 2.7).
std::uint64_t facegrad_torch_running(void) {
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 7
    return aoti_torch_abi_version();
#else
    return 0;
#endif
}

/// An address inside the libtorch_cpu that this process uses.
const void *facegrad_torch_address(void) { return reinterpret_cast<const void *>(&at::get_num_threads); }

/// Calls the host's log callback: 1 where it threw. An exception must not unwind into Rust, and Rust cannot catch one.
std::int32_t facegrad_torch_call_log(void (*log)(std::int32_t, const char *, void *), std::int32_t level, const char *message,
                                     void *user_data) {
    try {
        log(level, message, user_data);
        return 0;
    } catch (...) {
        return 1;
    }
}

/// Calls the host's decoder (facegrad_decode_function): its own status, or -1 where it threw.
std::int32_t facegrad_torch_call_decode(std::int32_t (*decode)(const void *, std::uint64_t, void *, void *), const void *latents,
                                        std::uint64_t ticket, void *image, void *user_data) {
    try {
        return decode(latents, ticket, image, user_data);
    } catch (...) {
        return -1;
    }
}

/// Calls the host's derivative of its decoder (facegrad_vjp_function): its own status, or -1 where it threw.
std::int32_t facegrad_torch_call_vjp(std::int32_t (*vjp)(std::uint64_t, const void *, void *, void *), std::uint64_t ticket,
                                     const void *gradient, void *latents_gradient, void *user_data) {
    try {
        return vjp(ticket, gradient, latents_gradient, user_data);
    } catch (...) {
        return -1;
    }
}

} // extern "C"

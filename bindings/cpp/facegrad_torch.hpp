/* facegrad for hosts that train with libtorch in C++: from at::Tensors to a loss that has `backward()`.
 *
 *     auto face = facegrad::face_loss(loss, {prediction, x_t, t}, targets, &report);   // float32, a scalar
 *     (mse + face).backward();
 *
 * The forward pass computes value and gradient together, so the backward pass only multiplies. There is no second
 * derivative. This header needs exactly the torch that the library was built for. On CUDA the work is put on the calling
 * thread's current stream.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0 */

#ifndef FACEGRAD_TORCH_HPP
#define FACEGRAD_TORCH_HPP

#ifdef FACEGRAD_NO_EXCEPTIONS
#error "libtorch needs exceptions; leave FACEGRAD_NO_EXCEPTIONS out"
#endif

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "facegrad.hpp"

namespace facegrad {

/// A view of a tensor, which must stay valid as long as the view. Throws c10::Error for layouts that are not strided.
inline TensorView view(const at::Tensor &tensor) {
    TORCH_CHECK(tensor.layout() == at::kStrided && !tensor.is_neg() && !tensor.is_conj(),
                "facegrad: expected a strided tensor without negative or conjugate bit; call contiguous().resolve_neg()");
    Dtype dtype{};
    switch (tensor.scalar_type()) {
    case at::kFloat: dtype = float32; break;
    case at::kHalf: dtype = float16; break;
    case at::kBFloat16: dtype = bfloat16; break;
    case at::kDouble: dtype = float64; break;
    case at::kLong: dtype = int64; break;
    case at::kInt: dtype = int32; break;
    default: TORCH_CHECK(false, "facegrad: expected a float or integer tensor, got ", tensor.scalar_type());
    }
    const bool cuda = tensor.is_cuda();
    TORCH_CHECK(cuda || tensor.is_cpu(), "facegrad: expected a tensor on the CPU or CUDA, got ", tensor.device());
    return TensorView(tensor.data_ptr(), dtype, tensor.sizes().vec(), tensor.strides().vec(),
                      Device{cuda ? 2 : 1, cuda ? tensor.get_device() : 0});
}

/// A view of a tensor; nullopt for a tensor that is not defined.
inline std::optional<TensorView> optional_view(const at::Tensor &tensor) {
    return tensor.defined() ? std::optional<TensorView>(view(tensor)) : std::nullopt;
}

/// torch's current cudaStream_t of this thread; nullptr on the CPU. It is taken from libtorch's C shim, so neither CUDA's headers
/// nor libtorch_cuda are needed to compile and link.
inline void *current_stream(const at::Tensor &tensor) {
    if (!tensor.is_cuda()) {
        return nullptr;
    }
    using Get = std::int32_t (*)(std::int32_t, void **);
    static const Get get = [] {
        void *library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
        return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
    }();
    void *stream = nullptr;
    TORCH_CHECK(get != nullptr && get(tensor.get_device(), &stream) == 0, "facegrad: libtorch_cuda does not tell its current stream");
    return stream;
}

/// What a trainer knows at one step. The fields are those of facegrad_step; a tensor that is not defined is not known.
struct StepTensors {
    at::Tensor prediction, x_t, times, coefficients;
    std::int64_t latent_height = 0, latent_width = 0;
    std::uint64_t number = 0;
    double gradient_norm = 0;
};

namespace detail {

/// A function `run(input, gradient)` that returns the report of an input, and writes its gradient where `gradient` is not nullptr.
using Run = std::function<Report(const at::Tensor &, const TensorView *)>;

class FaceLossFunction : public torch::autograd::Function<FaceLossFunction> {
  public:
    static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &input, const Run *run, bool wanted,
                              Report *report) {
        // float32 until it is multiplied by the outer gradient, which may be a loss scale.
        const at::Tensor gradient = wanted ? at::empty(input.sizes(), input.options().dtype(at::kFloat)) : at::Tensor();
        context->saved_data["dtype"] = input.scalar_type();
        const auto out = optional_view(gradient);
        Report computed = (*run)(input, out ? &*out : nullptr);
        const double value = computed.result.loss;
        context->save_for_backward({gradient});
        if (report != nullptr) {
            *report = std::move(computed);
        }
        return at::scalar_tensor(value, input.options().dtype(at::kFloat));
    }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context, torch::autograd::variable_list outer) {
        TORCH_CHECK(!at::GradMode::is_enabled(), "facegrad: the face loss has no second derivative (create_graph)");
        const at::Tensor gradient = context->get_saved_variables()[0];
        return {(gradient * outer[0]).to(context->saved_data["dtype"].toScalarType()), at::Tensor(), at::Tensor(), at::Tensor()};
    }
};

inline at::Tensor apply(const at::Tensor &input, const Run &run, Report *report) {
    const bool wanted = input.requires_grad() && at::GradMode::is_enabled();
    return FaceLossFunction::apply(input, &run, wanted, report);
}

} // namespace detail

/// The loss of images `[N,3,H,W]`, RGB in [0, 1]: a float32 scalar with a gradient. `report` may be nullptr. Throws facegrad::Error.
inline at::Tensor face_loss(Loss &loss, const at::Tensor &images, const Targets &targets, Report *report = nullptr) {
    const detail::Run run = [&](const at::Tensor &input, const TensorView *gradient) {
        return loss.images(view(input), targets, gradient, current_stream(input));
    };
    return detail::apply(images, run, report);
}

/// The loss of one training step: a float32 scalar whose gradient flows to `step.prediction` alone. `report` may be nullptr. Throws
/// facegrad::Error.
inline at::Tensor face_loss(Loss &loss, const StepTensors &step, const Targets &targets, Report *report = nullptr) {
    const detail::Run run = [&](const at::Tensor &input, const TensorView *gradient) {
        const Step raw{view(input),
                       optional_view(step.x_t),
                       optional_view(step.times),
                       optional_view(step.coefficients),
                       step.latent_height,
                       step.latent_width,
                       step.number,
                       step.gradient_norm};
        return loss.step(raw, targets, gradient, current_stream(input));
    };
    return detail::apply(step.prediction, run, report);
}

} // namespace facegrad

#endif /* FACEGRAD_TORCH_HPP */

// facegrad_torch.hpp: the gradient that arrives through backward() is the library's, in every place a trainer puts it.
//
//     torch_host ASSETS

#include <cstdio>

#include "facegrad_torch.hpp"

namespace {

int passed, failed;

void check(bool ok, const char *what) {
    ok ? ++passed : ++failed;
    if (!ok) {
        std::fprintf(stderr, "FAILED: %s\n", what);
    }
}

template <class F> bool throws(F call, const char *words) {
    try {
        call();
    } catch (const std::exception &error) {
        return std::string(error.what()).find(words) != std::string::npos;
    }
    return false;
}

} // namespace

int main(int, char **argv) {
    const std::string assets = argv[1];
    at::manual_seed(1);
    const auto context = facegrad::Context::make();
    const auto recogniser = facegrad::Backbone::make(context, R"({"path": ")" + assets + R"(/recogniser.safetensors"})");
    const auto vae = facegrad::Vae::make(context, R"({"path": ")" + assets + R"(/vae.safetensors"})");
    auto loss = facegrad::Loss::make(context, nullptr, &recogniser, &vae, R"({"face_align_mode": "kps", "latent_format": "none"})");
    const auto references = at::rand({2, 3, 64, 64});
    const auto landmarks = at::tensor({22.f, 26.f, 42.f, 26.f, 32.f, 36.f, 24.f, 46.f, 40.f, 46.f}).view({1, 5, 2}).repeat({2, 1, 1});
    facegrad::Targets targets;
    targets.references = facegrad::view(references);
    targets.landmarks = targets.reference_landmarks = facegrad::view(landmarks);

    // Images: the gradient by the C++ wrapper, scaled by what comes from outside, through an earlier operation.
    const auto images = at::rand({2, 3, 64, 64}).set_requires_grad(true);
    const auto want = at::empty_like(images);
    const auto want_view = facegrad::view(want);
    const auto plain = loss.images(facegrad::view(images), targets, &want_view);
    facegrad::Report report;
    const auto value = facegrad::face_loss(loss, images * 1, targets, &report);
    check(value.dim() == 0 && value.scalar_type() == at::kFloat && value.item<float>() == static_cast<float>(plain.result.loss),
          "the value");
    check(report.samples.size() == 2 && report.result.counted == 2, "the report");
    (3 * value).backward();
    check((images.grad() - 3 * want).norm().item<double>() <= 1e-5 * (3 * want).norm().item<double>(), "the gradient of images");

    // A step whose prediction is a product with an adapter, in bfloat16 and in another memory format.
    const auto x_t = at::rand({2, 3, 32, 32}), base = at::rand({2, 3, 32, 32}), times = at::tensor({0.3f, 0.6f});
    const auto run = [&](at::ScalarType dtype, at::MemoryFormat format) {
        const auto adapter = at::full({1}, 0.5).set_requires_grad(true);
        const auto prediction = (base * adapter).to(dtype).contiguous(format);
        facegrad::face_loss(loss, {prediction, x_t, times, {}}, targets).backward();
        return adapter.grad().item<double>();
    };
    const double exact = run(at::kFloat, at::MemoryFormat::Contiguous);
    const auto prediction = base * 0.5, gradient = at::empty_like(prediction);
    const auto gradient_view = facegrad::view(gradient);
    loss.step({facegrad::view(prediction), facegrad::view(x_t), facegrad::view(times), {}}, targets, &gradient_view);
    const double chain = (gradient * base).sum().item<double>();
    // Terms of both signs add up to it, so their own size is the measure, and not that of the sum.
    const double size = (gradient * base).abs().sum().item<double>();
    check(std::abs(exact) > 1e-3 * size && std::abs(exact - chain) <= 1e-6 * size, "the chain rule through an adapter");
    check(std::abs(run(at::kFloat, at::MemoryFormat::ChannelsLast) - exact) <= 1e-5 * size, "channels last");
    check(std::abs(run(at::kBFloat16, at::MemoryFormat::Contiguous) - exact) <= 0.01 * size, "bfloat16");

    // Without need there is no gradient, and the thread's grad mode is nobody's business.
    {
        at::NoGradGuard no_grad;
        check(!facegrad::face_loss(loss, images, targets).requires_grad(), "no_grad");
        check(!at::GradMode::is_enabled(), "the host's grad mode stays");
    }
    check(!facegrad::face_loss(loss, images.detach(), targets).requires_grad(), "a detached input");
    const auto twice = at::rand({2, 3, 64, 64}).set_requires_grad(true);
    check(throws([&] { facegrad::face_loss(loss, twice, targets).backward({}, std::nullopt, true); }, "second derivative"), "create_graph");
    check(throws([&] { facegrad::face_loss(loss, at::rand({2, 3, 64}), targets); }, "[N,3,H,W]"),
          "an error is an exception through autograd");
    check(throws([&] { facegrad::view(at::rand({2}).to_sparse()); }, "strided"), "sparse tensors");
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

// facegrad.hpp: every wrapper, errors in both modes, views, messages, threads.
//
//     wrappers ASSETS            linked
//     wrappers ASSETS LIBRARY    with -DFACEGRAD_DYNAMIC
//
// With -DFACEGRAD_NO_EXCEPTIONS the same code runs on Results.

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "facegrad.hpp"
#include "facegrad_rollout.hpp"

namespace {

int passed, failed;

void check(bool ok, const std::string &what) {
    ok ? ++passed : ++failed;
    if (!ok) {
        std::fprintf(stderr, "FAILED: %s\n", what.c_str());
    }
}

struct Failure {
    facegrad_status status;
    std::string text;
};

#ifdef FACEGRAD_NO_EXCEPTIONS
template <class T> T take(facegrad::Result<T> result) {
    if (!result) {
        std::fprintf(stderr, "%s\n0 passed, 1 failed\n", result.error().what());
        std::exit(1);
    }
    return std::move(result).value();
}
void take(facegrad::Result<void> result) { check(static_cast<bool>(result), "a call"); }
#define TAKE(call) take(call)
template <class F> Failure failure(F call) {
    auto result = call();
    return result ? Failure{FACEGRAD_OK, ""} : Failure{result.error().status(), result.error().what()};
}
#else
#define TAKE(call) call
template <class F> Failure failure(F call) {
    try {
        call();
        return {FACEGRAD_OK, ""};
    } catch (const facegrad::Error &error) {
        return {error.status(), error.what()};
    }
}
#endif

template <class F> void expect(facegrad_status status, const char *words, F call) {
    const Failure got = failure(call);
    check(got.status == status && got.text.find(words) != std::string::npos,
          "expected status " + std::to_string(status) + " and \"" + words + "\", got " + std::to_string(got.status) + ": " + got.text);
}

constexpr std::int64_t side = 64;

struct Memory {
    std::vector<float> data;
    facegrad::TensorView view;
    explicit Memory(std::vector<std::int64_t> shape, float value = 0) : data(size(shape), value), view(data, std::move(shape)) {}
    Memory(const Memory &) = delete;
    static std::size_t size(const std::vector<std::int64_t> &shape) {
        std::size_t count = 1;
        for (const auto n : shape) {
            count *= static_cast<std::size_t>(n);
        }
        return count;
    }
    Memory &pattern(unsigned seed) {
        for (std::size_t at = 0; at < data.size(); ++at) {
            data[at] = static_cast<float>((at * 7919 + seed * 104729) % 1000) / 1000;
        }
        return *this;
    }
};

const std::vector<float> face{22, 26, 42, 26, 32, 36, 24, 46, 40, 46};

struct Batch {
    Memory images{{1, 3, side, side}}, references{{1, 3, side, side}}, landmarks{{1, 5, 2}}, gradient{{1, 3, side, side}};
    facegrad::Targets targets;
    explicit Batch(unsigned seed) {
        images.pattern(seed);
        references.pattern(seed + 1);
        landmarks.data = face;
        landmarks.view = facegrad::TensorView(landmarks.data, {1, 5, 2});
        targets.references = references.view;
        targets.landmarks = landmarks.view;
        targets.reference_landmarks = landmarks.view;
    }
};

struct Host {
    facegrad::Context context;
    facegrad::Backbone backbone;
    facegrad::Vae vae;
    facegrad::Loss loss;
    explicit Host(const std::string &assets)
        : context(TAKE(facegrad::Context::make())),
          backbone(TAKE(facegrad::Backbone::make(context, R"({"path": ")" + assets + R"(/recogniser.safetensors"})"))),
          vae(TAKE(facegrad::Vae::make(context, R"({"path": ")" + assets + R"(/vae.safetensors"})"))),
          loss(TAKE(facegrad::Loss::make(context, nullptr, &backbone, &vae,
                                         R"({"face_align_mode": "kps", "face_loss_weight": 1, "latent_format": "none"})"))) {}
};

void objects(const std::string &assets) {
    Host host(assets);
    Batch batch(1);
    const facegrad::Report report = TAKE(host.loss.images(batch.images.view, batch.targets, &batch.gradient.view));
    check(report.result.counted == 1 && report.samples.size() == 1 &&
              std::abs(report.result.loss - (1 - report.samples[0].similarity)) < 1e-5,
          "the loss is one minus the similarity");
    double norm = 0;
    for (const float g : batch.gradient.data) {
        norm += static_cast<double>(g) * g;
    }
    check(norm > 0, "the gradient arrives");

    facegrad::Detector detector = TAKE(
        facegrad::Detector::make(host.context, R"({"path": ")" + assets + R"(/detector.onnx", "engine": "torch", "det_sizes": [64]})"));
    check(TAKE(detector.detect(batch.images.view)).empty() && detector.info().find("detector.onnx") != std::string::npos, "the detector");

    facegrad_face one{};
    one.struct_size = sizeof one;
    one.has_landmarks = 1;
    std::memcpy(one.landmarks, face.data(), sizeof one.landmarks);
    Memory embedding({1, 128}), crop({1, 3, 112, 112});
    TAKE(host.backbone.embed(batch.images.view, {&one, 1}, embedding.view));
    TAKE(host.backbone.align(batch.images.view, {&one, 1}, crop.view));
    double length = 0;
    for (const float v : embedding.data) {
        length += static_cast<double>(v) * v;
    }
    check(std::abs(length - 1) < 1e-4 && host.backbone.info().find("\"dim\":128") != std::string::npos, "the recogniser");

    TAKE(host.loss.set_reference("anna", batch.references.view, &batch.landmarks.view));
    facegrad::Targets anna;
    anna.reference_ids = {"anna"};
    anna.data_types = {"person"};
    anna.landmarks = batch.landmarks.view;
    const facegrad::Report again = TAKE(host.loss.images(batch.images.view, anna));
    check(std::abs(again.result.loss - report.result.loss) < 1e-6, "a registered reference is the same reference");
    anna.data_types = {"object"};
    check(TAKE(host.loss.images(batch.images.view, anna)).samples[0].outcome == FACEGRAD_SAMPLE_DATA_TYPE, "data types gate");
    TAKE(host.loss.save("wrappers.state"));
    TAKE(host.loss.remove_reference("anna"));
    TAKE(host.loss.restore("wrappers.state"));
    TAKE(host.loss.remove_reference("anna"));
    std::remove("wrappers.state");
    expect(FACEGRAD_ERR_IO, "no such file", [&] { return host.loss.restore("wrappers.state"); });
    expect(FACEGRAD_ERR_ARGUMENT, "anna", [&] { return host.loss.remove_reference("anna"); });
    check(host.loss.info().find("\"face_align_mode\":\"kps\"") != std::string::npos, "the loss says what it is");

    // A threshold that finds faces in noise.
    facegrad::Evaluator evaluator = TAKE(facegrad::Evaluator::make(
        host.context, R"({"engine": "torch", "recogniser": ")" + assets + R"(/recogniser.safetensors", "detector": {"path": ")" + assets +
                          R"(/detector.onnx", "engine": "torch", "det_sizes": [64], "threshold": 1e-9}})"));
    check(!TAKE(evaluator.faces(batch.images.view)).empty() && evaluator.info().find("\"dim\":128") != std::string::npos, "the evaluator");
    TAKE(evaluator.align(batch.images.view, {&one, 1}, crop.view));
    TAKE(evaluator.set_reference("eva", batch.images.view, &batch.landmarks.view));
    facegrad::Targets same;
    same.reference_ids = {"eva"};
    same.landmarks = batch.landmarks.view;
    check(TAKE(evaluator.compare(batch.images.view, same)).samples[0].similarity > 0.999f, "a picture is its own reference");
    check(TAKE(evaluator.find(batch.images.view, {"eva"})).samples.size() == 1, "a sample for every person in every image");
    TAKE(evaluator.remove_reference("eva"));
    expect(FACEGRAD_ERR_ARGUMENT, "eva", [&] { return evaluator.remove_reference("eva"); });

    // The step is the graph.
    Memory latents({1, 3, side / 2, side / 2}), x_t({1, 3, side / 2, side / 2}), times({1}, 0.25f), gradient({1, 3, side / 2, side / 2}),
        other({1, 3, side / 2, side / 2}), image({1, 3, side, side}), value({});
    latents.pattern(4);
    x_t.pattern(5);
    facegrad::Step step{latents.view, x_t.view, times.view, {}};
    const facegrad::Report fused = TAKE(host.loss.step(step, batch.targets, &gradient.view));
    facegrad::Graph graph = TAKE(facegrad::Graph::make(host.context));
    const auto noisy = TAKE(graph.input(x_t.view, false)), prediction = TAKE(graph.input(latents.view, true));
    const auto x0 = TAKE(graph.predict_x0(noisy, prediction, &times.view));
    const auto unpacked = TAKE(graph.unpack(x0, host.vae, R"({"latent_format": "none"})"));
    const auto decoded = TAKE(graph.decode(unpacked, host.vae));
    facegrad::Report seen;
    const auto loss = TAKE(graph.face_loss(decoded, host.loss, batch.targets, &seen));
    TAKE(graph.read(loss, value.view));
    TAKE(graph.read(decoded, image.view));
    TAKE(graph.backward(loss));
    TAKE(graph.gradient(prediction, other.view));
    check(TAKE(graph.shape(decoded)) == std::vector<std::int64_t>{1, 3, side, side}, "shapes of nodes");
    check(seen.samples.size() == 1 && std::abs(value.data[0] - fused.result.loss) < 1e-6 && other.data == gradient.data,
          "the graph is the step");
    Memory direct({1, 3, side, side});
    TAKE(host.vae.decode(latents.view, direct.view));
    check(host.vae.info().find("Tiny") != std::string::npos && direct.data != image.data, "the VAE");

    const std::vector<std::pair<std::string, facegrad::TensorView>> nonsense{{"nonsense", value.view}};
    expect(FACEGRAD_ERR_WEIGHTS, "nonsense", [&] { return facegrad::Vae::make(host.context, nonsense); });
    check(facegrad::version().find("torch/") != std::string::npos && facegrad::build_info().find("\"abi\":1") != std::string::npos,
          "versions");
}

void rollouts(const std::string &assets) {
    Host host(assets);
    Batch batch(1);
    const std::vector<std::int64_t> shape{1, 3, side / 2, side / 2};
    Memory x(shape), prediction(shape), gradient(shape), other(shape), next(shape), half({1}, 0.5f), quarter({1}, 0.25f);
    x.pattern(4);
    prediction.pattern(5);
    TAKE(facegrad::sampler_step(host.context, x.view, prediction.view, half.view, quarter.view, next.view));
    check(std::abs(next.data[7] - (x.data[7] - 0.25f * prediction.data[7])) < 1e-6f, "Euler's step");
    facegrad::Graph graph = TAKE(facegrad::Graph::make(host.context));
    const auto noisy = TAKE(graph.input(x.view, false)), velocity = TAKE(graph.input(prediction.view, true));
    TAKE(graph.read(TAKE(graph.sampler_step(noisy, velocity, half.view, quarter.view)), other.view));
    check(other.data == next.data, "the node is the step");

    facegrad::RolloutOptions options;
    options.every_n_steps = 1;
    options.low = options.high = 0.3;
    options.steps = 4;
    options.ramp = 0;
    options.min_score = 0;
    using facegrad::Rollout;
    check(Rollout::config() == R"({"target_similarity": 0.8, "gradient_limit": 0.25})" &&
              Rollout::config(R"({"gradient_limit": 1})") == R"({"target_similarity": 0.8, "gradient_limit": 1})" &&
              Rollout::config("[]") == "[]",
          "the guard's defaults");
    expect(FACEGRAD_ERR_ARGUMENT, "no gradient_limit", [&] { return Rollout::make(host.context, host.loss, options); });
    facegrad::Loss loss = TAKE(facegrad::Loss::make(
        host.context, nullptr, &host.backbone, &host.vae,
        Rollout::config(R"({"face_align_mode": "kps", "face_loss_weight": 1, "latent_format": "none", "target_similarity": 1})")));
    auto bounded = TAKE(Rollout::make(host.context, loss, options));
    options.unbounded = true;
    auto rollout = TAKE(Rollout::make(host.context, host.loss, options));
    // A constant velocity: the latents at the end are those of one long step.
    const std::vector<float> start = x.data;
    std::vector<double> seen;
    const auto predict = [&](const std::vector<double> &times, bool last) {
        seen.push_back(times[0]);
        check(last == (times[0] < 0.31), "only the last prediction has a gradient");
    };
    facegrad::Step step{prediction.view, {}, {}, {}};
    const facegrad::RolloutReport report = TAKE(rollout(predict, x.view, step, batch.targets, gradient.view));
    check(report.without_gradient == 3 && report.with_gradient == 1 && seen == std::vector<double>({1, 0.75, 0.5, 0.3}),
          "the cost of a rollout");
    check(std::abs(x.data[7] - (start[7] - 0.7f * prediction.data[7])) < 1e-5f, "the latents at the level");
    Memory level({1}, 0.3f);
    const facegrad::Report direct = TAKE(host.loss.step({prediction.view, x.view, level.view, {}}, batch.targets, &other.view));
    check(report.face.result.counted == 1 && std::abs(direct.result.loss - report.face.result.loss) < 1e-5, "the loss of a rollout");

    const auto length = [](const Memory &m) {
        double sum = 0;
        for (const float v : m.data) {
            sum += static_cast<double>(v) * v;
        }
        return std::sqrt(sum);
    };
    const double free = length(gradient);
    x.data = start;
    expect(FACEGRAD_ERR_ARGUMENT, "gradient_norm", [&] { return bounded(predict, x.view, step, batch.targets, gradient.view); });
    x.data = start;
    step.gradient_norm = free;
    TAKE(bounded(predict, x.view, step, batch.targets, gradient.view));
    check(std::abs(length(gradient) - 0.25 * free) < 1e-4 * free, "a quarter of the main loss's gradient");

    // The detector sees no face in noise: after three such rollouts of one sample too few are found.
    facegrad::Detector detector = TAKE(
        facegrad::Detector::make(host.context, R"({"path": ")" + assets + R"(/detector.onnx", "engine": "torch", "det_sizes": [64]})"));
    facegrad::Loss looking =
        TAKE(facegrad::Loss::make(host.context, &detector, &host.backbone, &host.vae,
                                  Rollout::config(R"({"face_align_mode": "kps", "latent_format": "none", "target_similarity": 1})")));
    options.backoff = 0.5f;
    auto strict = TAKE(Rollout::make(host.context, looking, options));
    options.backoff = 0;
    auto once = TAKE(Rollout::make(host.context, looking, options));
    facegrad::Targets unseen = batch.targets;
    unseen.landmarks.reset();
    for (step.number = 0; step.number < 3; ++step.number) {
        for (auto *rollout_ : {&strict, &once}) {
            x.data = start;
            const facegrad::RolloutReport nobody = TAKE((*rollout_)(predict, x.view, step, unseen, gradient.view));
            check(std::abs(nobody.found - std::pow(0.975, step.number + 1)) < 1e-6 && nobody.paused == (step.number == 2), "faces vanish");
            check(nobody.ramp == (nobody.paused ? 0 : 1) && length(gradient) == 0, "nothing is pushed");
        }
    }
    check(once.due(2) && !once.due(3), "without a backoff the first pause ends the rollouts");
    check(!report.paused && report.found == 1, "no pause while they are there");
    // Where the face is is told from here on.
    facegrad::RolloutReport back;
    do {
        x.data = start;
        check(strict.due(step.number), "rollouts go on after a pause");
        back = TAKE(strict(predict, x.view, step, batch.targets, gradient.view));
        ++step.number;
    } while (back.paused && step.number < 99);
    check(back.found > 0.95 && back.ramp == 0.5 && length(gradient) > 0, "half of λ is left after a pause");
    step.number = 0;
    options.backoff = 2;
    expect(FACEGRAD_ERR_ARGUMENT, "backoff", [&] { return Rollout::make(host.context, looking, options); });
    options.backoff = 0;

    // NaN out of the host's model: the sample fails, and no NaN comes back.
    x.data = start;
    const auto broken = [&](const std::vector<double> &, bool) { prediction.data[3] = std::nanf(""); };
    const facegrad::RolloutReport lost = TAKE(bounded(broken, x.view, step, batch.targets, gradient.view));
    check(lost.face.result.counted == 0 && length(gradient) == 0, "a prediction with NaN counts for nothing");
    prediction.pattern(5);
    step.gradient_norm = 0;
    options.every_n_steps = 2;
    options.start = 3;
    auto rare = TAKE(facegrad::Rollout::make(host.context, host.loss, options));
    check(!rare.due(2) && !rare.due(3) && rare.due(4), "every n-th step from the start");
    options.low = 0;
    expect(FACEGRAD_ERR_ARGUMENT, "0 < low", [&] { return facegrad::Rollout::make(host.context, host.loss, options); });
    batch.targets.sample_weights = half.view;
    expect(FACEGRAD_ERR_ARGUMENT, "sample_weights", [&] { return rollout(predict, x.view, step, batch.targets, gradient.view); });
}

void errors(const std::string &assets) {
    expect(FACEGRAD_ERR_CONFIG, "tpu", [] { return facegrad::Context::make(R"({"device": "tpu"})"); });
    Host host(assets);
    expect(FACEGRAD_ERR_IO, "nowhere.onnx", [&] { return facegrad::Detector::make(host.context, R"({"path": "nowhere.onnx"})"); });
    Batch batch(1);
    Memory wrong({1, 4, side, side});
    expect(FACEGRAD_ERR_SHAPE, "[N,3,H,W]", [&] { return host.loss.images(wrong.view, batch.targets); });
    // What was moved from is empty, and an empty handle is NULL to the library.
    facegrad::Loss moved = std::move(host.loss);
    check(host.loss.get() == nullptr && moved.get() != nullptr, "moving moves");
    expect(FACEGRAD_ERR_NULL, "loss", [&] { return host.loss.images(batch.images.view, batch.targets); });
    facegrad_loss *raw = moved.release();
    check(moved.get() == nullptr, "release gives the handle away");
    host.loss = facegrad::Loss(raw);
    TAKE(host.loss.images(batch.images.view, batch.targets));
}

// DLPack's structs, as any copy of dlpack.h declares them.
struct DLDevice {
    int device_type;
    std::int32_t device_id;
};
struct DLDataType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};
struct DLTensor {
    void *data;
    DLDevice device;
    std::int32_t ndim;
    DLDataType dtype;
    std::int64_t *shape, *strides;
    std::uint64_t byte_offset;
};

void views(const std::string &assets) {
    Host host(assets);
    Batch batch(1);
    const double want = TAKE(host.loss.images(batch.images.view, batch.targets)).result.loss;
    // The same picture as NHWC memory, some bytes into an allocation, handed over as DLPack.
    std::vector<float> memory(3 * side * side + 4);
    for (std::int64_t y = 0; y < side; ++y) {
        for (std::int64_t x = 0; x < side; ++x) {
            for (std::int64_t c = 0; c < 3; ++c) {
                memory[static_cast<std::size_t>(4 + (y * side + x) * 3 + c)] =
                    batch.images.data[static_cast<std::size_t>((c * side + y) * side + x)];
            }
        }
    }
    std::int64_t shape[4] = {1, 3, side, side}, strides[4] = {3 * side * side, 1, 3 * side, 3};
    DLTensor tensor{memory.data(), {1, 0}, 4, {2, 32, 1}, shape, strides, 16};
    static_assert(sizeof(DLTensor) == sizeof(facegrad_tensor), "DLPack's layout");
    check(std::abs(TAKE(host.loss.images(facegrad::TensorView::dlpack(tensor), batch.targets)).result.loss - want) < 1e-6,
          "DLPack, NHWC, with an offset");
    tensor.dtype.lanes = 4;
    expect(FACEGRAD_ERR_DTYPE, "lanes", [&] { return host.loss.images(facegrad::TensorView::dlpack(tensor), batch.targets); });
}

void messages(const std::string &assets) {
    Host host(assets);
    Batch batch(1);
    std::fill(batch.landmarks.data.begin(), batch.landmarks.data.end(), 5.0f);
    std::atomic<int> seen{0};
    std::atomic<facegrad_status> inside{-1};
    TAKE(facegrad::set_log([&](int level, std::string_view text) {
        seen += level == FACEGRAD_LOG_WARN && text.find("sample 0") != std::string_view::npos;
        inside = facegrad::api().debug_live(nullptr, nullptr);
    }));
    TAKE(host.loss.images(batch.images.view, batch.targets));
    check(seen == 1 && inside == FACEGRAD_ERR_REENTRANT, "a message arrives, and calling back is refused");
#ifndef FACEGRAD_NO_EXCEPTIONS
    TAKE(facegrad::set_log([](int, std::string_view) { throw std::string("thrown by the host"); }));
    expect(FACEGRAD_ERR_CALLBACK, "exception", [&] { return host.loss.images(batch.images.view, batch.targets); });
    facegrad_context *poisoned = nullptr;
    facegrad::api().context_new(nullptr, &poisoned);
    check(facegrad::api().debug_panic(poisoned) == FACEGRAD_ERR_PANIC, "a panic's message may throw too");
    facegrad::api().context_free(poisoned);
#endif
    TAKE(facegrad::set_log({}));
    TAKE(host.loss.images(batch.images.view, batch.targets));
    check(seen == 1, "messages end");
}

void threads(const std::string &assets) {
    constexpr unsigned count = 6, rounds = 3;
    std::deque<Host> hosts;
    for (int i = 0; i < 3; ++i) {
        hosts.emplace_back(assets);
    }
    std::deque<Batch> batches;
    std::vector<double> want;
    std::vector<std::vector<float>> gradients;
    for (unsigned i = 0; i < count; ++i) {
        Batch &batch = batches.emplace_back(i);
        want.push_back(TAKE(hosts[0].loss.images(batch.images.view, batch.targets, &batch.gradient.view)).result.loss);
        gradients.push_back(batch.gradient.data);
    }
    std::atomic<unsigned> wrong{0};
    std::vector<std::thread> running;
    for (unsigned i = 0; i < count; ++i) {
        running.emplace_back([&, i] {
            Batch batch(i);
            for (unsigned round = 0; round < rounds; ++round) {
                // All on one context, then on one of several; an error on one thread is no other thread's.
                for (Host *host : {&hosts[0], &hosts[i % hosts.size()]}) {
                    wrong += failure([&] { return facegrad::Context::make("x" + std::to_string(i)); }).status != FACEGRAD_ERR_CONFIG;
                    const double loss = TAKE(host->loss.images(batch.images.view, batch.targets, &batch.gradient.view)).result.loss;
                    wrong += loss != want[i] || batch.gradient.data != gradients[i];
                }
                Host own(assets);
                wrong += TAKE(own.loss.images(batch.images.view, batch.targets)).result.loss != want[i];
            }
        });
    }
    for (auto &thread : running) {
        thread.join();
    }
    check(wrong == 0, "every thread gets its own result: " + std::to_string(wrong) + " wrong");
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 2) {
        return 2;
    }
    const std::string assets = argv[1];
#ifdef FACEGRAD_DYNAMIC
    expect(FACEGRAD_ERR_UNSUPPORTED, "Plugin", [] { return facegrad::Context::make(); });
    expect(FACEGRAD_ERR_IO, "nowhere.so", [] { return facegrad::Plugin::load("nowhere.so"); });
    expect(FACEGRAD_ERR_UNSUPPORTED, "not facegrad", [] { return facegrad::Plugin::load("libm.so.6"); });
    TAKE(facegrad::Plugin::load(argv[2]));
#endif
    objects(assets);
    rollouts(assets);
    errors(assets);
    views(assets);
    messages(assets);
    threads(assets);
    check(TAKE(facegrad::live()) == 0, "nothing stays alive");
    (void)argc;
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

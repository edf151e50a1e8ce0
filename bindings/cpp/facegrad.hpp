/* facegrad for C++17: header-only classes over the C ABI. facegrad.h describes shapes, units and errors of every call.
 *
 * A program links the library (-lfacegrad) or loads it at run time: then define FACEGRAD_DYNAMIC and call Plugin::load first.
 *
 * Objects are move-only and free their handle. They may be destroyed in any order and used from any
 * thread. A call that fails throws facegrad::Error. With FACEGRAD_NO_EXCEPTIONS, calls return a Result instead:
 *
 *     auto context = facegrad::Context::make(R"({"device": "cuda"})");            // throws
 *     auto context = facegrad::Context::make(R"({"device": "cuda"})");            // Result<Context>
 *     if (!context) { puts(context.error().what()); }  else { use(context.value()); }
 *
 * For functions that are newer than this file, use facegrad::api() and facegrad::check().
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0 */

#ifndef FACEGRAD_HPP
#define FACEGRAD_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "facegrad_library.hpp"

namespace facegrad {

/* ---- tensors ------------------------------------------------------------------------------------- */

/// A pointer and a length.
template <class T> class Span {
  public:
    Span() = default;
    Span(T *data, std::size_t size) : data_(data), size_(size) {}
    template <class C, class = decltype(std::declval<C &>().data())>
    Span(C &container) : data_(container.data()), size_(container.size()) {}
    T *data() const { return data_; }
    std::size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    T *begin() const { return data_; }
    T *end() const { return data_ + size_; }
    T &operator[](std::size_t at) const { return data_[at]; }

  private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

/// A DLPack type code and its bits.
struct Dtype {
    std::uint8_t code, bits;
};
inline constexpr Dtype float32{2, 32}, float16{2, 16}, bfloat16{4, 16}, float64{2, 64}, int64{0, 64}, int32{0, 32};

/// A DLPack device: 1 is the CPU, 2 is CUDA.
struct Device {
    std::int32_t type = 1, id = 0;
};

/// A strided view of memory that the view does not own. The memory must stay valid until the call returns, and on CUDA until the
/// work that the call put on the stream has run.
class TensorView {
  public:
    /// Floats on the CPU, in C order.
    TensorView(float *data, std::vector<std::int64_t> shape) : TensorView(data, float32, std::move(shape)) {}
    TensorView(Span<float> data, std::vector<std::int64_t> shape) : TensorView(data.data(), float32, std::move(shape)) {}
    /// Any memory. `strides` are in elements; empty for C order.
    TensorView(void *data, Dtype dtype, std::vector<std::int64_t> shape, std::vector<std::int64_t> strides = {}, Device device = {})
        : data_(data), dtype_(dtype), device_(device), shape_(std::move(shape)), strides_(std::move(strides)) {}
    /// A DLTensor of any dlpack.h, such as DLManagedTensor::dl_tensor.
    template <class DLTensor> static TensorView dlpack(const DLTensor &tensor) {
        const std::size_t rank = static_cast<std::size_t>(tensor.ndim);
        TensorView view(tensor.data, Dtype{static_cast<std::uint8_t>(tensor.dtype.code), tensor.dtype.bits},
                        {tensor.shape, tensor.shape + rank});
        if (tensor.strides != nullptr) {
            view.strides_.assign(tensor.strides, tensor.strides + rank);
        }
        view.device_ = {static_cast<std::int32_t>(tensor.device.device_type), tensor.device.device_id};
        view.offset_ = tensor.byte_offset;
        view.lanes_ = tensor.dtype.lanes;
        return view;
    }
    const std::vector<std::int64_t> &shape() const { return shape_; }
    /// The first size: samples of a batch.
    std::size_t batch() const { return shape_.empty() ? 0 : static_cast<std::size_t>(shape_[0]); }
    /// The struct of the C ABI. It points into this object.
    facegrad_tensor raw() const {
        facegrad_tensor tensor{};
        tensor.data = data_;
        tensor.device_type = device_.type;
        tensor.device_id = device_.id;
        tensor.ndim = static_cast<std::int32_t>(shape_.size());
        tensor.dtype_code = dtype_.code;
        tensor.dtype_bits = dtype_.bits;
        tensor.dtype_lanes = lanes_;
        tensor.shape = const_cast<std::int64_t *>(shape_.data());
        tensor.strides = strides_.empty() ? nullptr : const_cast<std::int64_t *>(strides_.data());
        tensor.byte_offset = offset_;
        return tensor;
    }

  private:
    void *data_;
    Dtype dtype_;
    Device device_;
    std::vector<std::int64_t> shape_, strides_;
    std::uint64_t offset_ = 0;
    std::uint16_t lanes_ = 1;
};

/// What the host says about a batch. The fields are those of facegrad_targets; a field that is not set is not known.
struct Targets {
    std::optional<TensorView> references, landmarks, boxes, reference_landmarks, reference_boxes, sample_weights;
    /// N entries or none. nullopt: the sample uses its reference image.
    std::vector<std::optional<std::string>> reference_ids;
    /// N entries or none.
    std::vector<std::string> data_types;
    /// N entries or none. nullopt: the sample is identified by its reference image.
    std::vector<std::optional<std::string>> sample_ids;
};

/// What a trainer knows at one step. The fields are those of facegrad_step.
struct Step {
    TensorView prediction;
    std::optional<TensorView> x_t, times, coefficients;
    std::int64_t latent_height = 0, latent_width = 0;
    std::uint64_t number = 0;
    double gradient_norm = 0;
};

/// The value of a loss, and what happened to every sample.
struct Report {
    facegrad_result result{};
    std::vector<facegrad_sample> samples;
};

namespace detail {

/// Optional views as structs of the C ABI; NULL where not set. The addresses stay valid as long as the object.
class Pointers {
  public:
    const facegrad_tensor *operator()(const std::optional<TensorView> &view) { return view ? keep(*view) : nullptr; }
    const facegrad_tensor *operator()(const TensorView *view) { return view ? keep(*view) : nullptr; }

  private:
    const facegrad_tensor *keep(const TensorView &view) { return &kept_.emplace_back(view.raw()); }
    std::deque<facegrad_tensor> kept_;
};

/// Targets as a struct of the C ABI.
class RawTargets {
  public:
    explicit RawTargets(const Targets &targets) {
        raw_.struct_size = sizeof raw_;
        raw_.references = pointers_(targets.references);
        raw_.landmarks = pointers_(targets.landmarks);
        raw_.boxes = pointers_(targets.boxes);
        raw_.reference_landmarks = pointers_(targets.reference_landmarks);
        raw_.reference_boxes = pointers_(targets.reference_boxes);
        raw_.sample_weights = pointers_(targets.sample_weights);
        const auto text = [](const std::optional<std::string> &id) { return id ? id->c_str() : nullptr; };
        for (const auto &id : targets.reference_ids) {
            ids_.push_back(text(id));
        }
        for (const auto &id : targets.sample_ids) {
            samples_.push_back(text(id));
        }
        for (const auto &type : targets.data_types) {
            types_.push_back(type.c_str());
        }
        raw_.reference_ids = ids_.empty() ? nullptr : ids_.data();
        raw_.data_types = types_.empty() ? nullptr : types_.data();
        raw_.sample_ids = samples_.empty() ? nullptr : samples_.data();
    }
    RawTargets(const RawTargets &) = delete;
    const facegrad_targets *get() const { return &raw_; }

  private:
    facegrad_targets raw_{};
    Pointers pointers_;
    std::vector<const char *> ids_, types_, samples_;
};

/// A report with room for `samples`.
inline Report report(std::size_t samples) {
    Report report;
    report.result.struct_size = sizeof report.result;
    report.samples.resize(samples);
    if (samples > 0) {
        report.samples[0].struct_size = sizeof report.samples[0];
    }
    return report;
}

} // namespace detail

/* ---- objects ------------------------------------------------------------------------------------- */

/// A device, and the thread on which all work of its objects runs.
class Context : public detail::Handle<facegrad_context, &facegrad_api::context_free> {
  public:
    using Handle::Handle;
    /// `config` as in facegrad_context_new.
    static Outcome<Context> make(const std::string &config = "{}") {
        if (auto error = detail::unusable(detail::table())) {
            return detail::fail<Context>(error->status(), error->what());
        }
        facegrad_context *out = nullptr;
        const auto status = api().context_new(config.c_str(), &out);
        return detail::done(status, [&] { return Context(out); });
    }
};

/// An SCRFD face detector.
class Detector : public detail::Handle<facegrad_detector, &facegrad_api::detector_free> {
  public:
    using Handle::Handle;
    /// `config` as in facegrad_detector_new.
    static Outcome<Detector> make(const Context &context, const std::string &config) {
        facegrad_detector *out = nullptr;
        const auto status = api().detector_new(context.get(), config.c_str(), &out);
        return detail::done(status, [&] { return Detector(out); });
    }
    /// The faces of images `[N,3,H,W]`, RGB, uint8 or floats in [0, 1], ordered by image and falling score; at most `most` of them.
    Outcome<std::vector<facegrad_face>> detect(const TensorView &images, void *stream = nullptr, std::size_t most = 256) {
        std::vector<facegrad_face> faces(most == 0 ? 1 : most);
        faces[0].struct_size = sizeof faces[0];
        std::size_t count = 0;
        const facegrad_tensor raw = images.raw();
        const auto status = api().detector_detect(get(), &raw, faces.data(), faces.size(), &count, stream);
        faces.resize(count < faces.size() ? count : faces.size());
        return detail::done(status, [&] { return std::move(faces); });
    }
    /// One line of text: see facegrad_detector_info.
    std::string info() const {
        return detail::text([&](char *b, std::size_t c, std::size_t *n) { return api().detector_info(get(), b, c, n); });
    }
};

/// A frozen face recogniser.
class Backbone : public detail::Handle<facegrad_backbone, &facegrad_api::backbone_free> {
  public:
    using Handle::Handle;
    /// `config` as in facegrad_backbone_new.
    static Outcome<Backbone> make(const Context &context, const std::string &config) {
        facegrad_backbone *out = nullptr;
        const auto status = api().backbone_new(context.get(), config.c_str(), &out);
        return detail::done(status, [&] { return Backbone(out); });
    }
    /// Writes `[count,D]` embeddings of length 1 of faces in images `[N,3,H,W]`, RGB in [0, 1]. Without faces, the images are crops.
    Outcome<void> embed(const TensorView &images, Span<const facegrad_face> faces, const TensorView &embeddings, void *stream = nullptr) {
        const facegrad_tensor in = images.raw(), out = embeddings.raw();
        return check(api().backbone_embed(get(), &in, faces.data(), faces.size(), &out, stream));
    }
    /// `[count,3,S,S]` crops as the recogniser sees them.
    Outcome<void> align(const TensorView &images, Span<const facegrad_face> faces, const TensorView &crops, void *stream = nullptr) {
        const facegrad_tensor in = images.raw(), out = crops.raw();
        return check(api().backbone_align(get(), &in, faces.data(), faces.size(), &out, stream));
    }
    /// What was loaded, as JSON.
    std::string info() const {
        return detail::text([&](char *b, std::size_t c, std::size_t *n) { return api().backbone_info(get(), b, c, n); });
    }
};

/// A frozen VAE decoder. See facegrad_vae_new.
class Vae : public detail::Handle<facegrad_vae, &facegrad_api::vae_free> {
  public:
    using Handle::Handle;
    /// `config` as in facegrad_vae_new.
    static Outcome<Vae> make(const Context &context, const std::string &config) {
        facegrad_vae *out = nullptr;
        const auto status = api().vae_new(context.get(), config.c_str(), &out);
        return detail::done(status, [&] { return Vae(out); });
    }
    /// Builds a decoder from named tensors of the host, which must outlive the decoder and every loss and graph made with it.
    static Outcome<Vae> make(const Context &context, Span<const std::pair<std::string, TensorView>> tensors,
                             const std::string &config = "{}") {
        std::vector<const char *> names;
        std::vector<facegrad_tensor> raw;
        for (const auto &[name, tensor] : tensors) {
            names.push_back(name.c_str());
            raw.push_back(tensor.raw());
        }
        facegrad_vae *out = nullptr;
        const auto status = api().vae_new_from_tensors(context.get(), names.data(), raw.data(), raw.size(), config.c_str(), &out);
        return detail::done(status, [&] { return Vae(out); });
    }
    /// Makes a decoder from functions of the host: see facegrad_vae_new_from_functions. `user_data` must stay valid until the decoder
    /// and every loss and graph made with it are freed.
    static Outcome<Vae> make(const Context &context, facegrad_decode_function decode, facegrad_vjp_function vjp, void *user_data,
                             const std::string &config = "{}") {
        facegrad_vae *out = nullptr;
        const auto status = api().vae_new_from_functions(context.get(), decode, vjp, user_data, config.c_str(), &out);
        return detail::done(status, [&] { return Vae(out); });
    }
    /// Decodes the VAE's own latents `[B,C,h,w]` to images `[B,3,s·h,s·w]`, RGB, nominally in [0, 1], without a gradient.
    Outcome<void> decode(const TensorView &latents, const TensorView &images, void *stream = nullptr) {
        const facegrad_tensor in = latents.raw(), out = images.raw();
        return check(api().vae_decode(get(), &in, &out, stream));
    }
    /// What was loaded, as JSON.
    std::string info() const {
        return detail::text([&](char *b, std::size_t c, std::size_t *n) { return api().vae_info(get(), b, c, n); });
    }
};

/// The identity loss.
class Loss : public detail::Handle<facegrad_loss, &facegrad_api::loss_free> {
  public:
    using Handle::Handle;
    /// `config` as in facegrad_loss_new. A network that is nullptr is loaded from the file that `config` names.
    static Outcome<Loss> make(const Context &context, const Detector *detector, const Backbone *backbone, const Vae *vae,
                              const std::string &config = "{}") {
        facegrad_loss *out = nullptr;
        const auto status = api().loss_new(context.get(), detector ? detector->get() : nullptr, backbone ? backbone->get() : nullptr,
                                           vae ? vae->get() : nullptr, config.c_str(), &out);
        return detail::done(status, [&] { return Loss(out); });
    }
    /// Registers `[K,3,H,W]` images of a person, whose landmarks `[K,5,2]` may be known.
    Outcome<void> set_reference(const std::string &id, const TensorView &images, const TensorView *landmarks = nullptr,
                                void *stream = nullptr) {
        detail::Pointers pointers;
        return check(api().loss_set_reference(get(), id.c_str(), pointers(&images), pointers(landmarks), stream));
    }
    Outcome<void> remove_reference(const std::string &id) { return check(api().loss_remove_reference(get(), id.c_str())); }
    /// Writes what the loss remembers to a file. A training that restores it continues with the same numbers.
    Outcome<void> save(const std::string &path) { return check(api().loss_save(get(), path.c_str())); }
    /// Replaces everything that the loss remembers by what save() wrote.
    Outcome<void> restore(const std::string &path) { return check(api().loss_restore(get(), path.c_str())); }
    /// The loss of images `[N,3,H,W]`, RGB in [0, 1]. `gradient` receives its gradient with respect to them; nullptr: not computed.
    Outcome<Report> images(const TensorView &images, const Targets &targets, const TensorView *gradient = nullptr, void *stream = nullptr) {
        detail::Pointers pointers;
        detail::RawTargets raw(targets);
        Report report = detail::report(images.batch());
        const auto status = api().loss_images(get(), pointers(&images), raw.get(), pointers(gradient), report.samples.data(),
                                              report.samples.size(), &report.result, stream);
        return detail::done(status, [&] { return std::move(report); });
    }
    /// The loss of one training step. `gradient` receives its gradient with respect to the prediction; nullptr: not computed.
    Outcome<Report> step(const Step &step, const Targets &targets, const TensorView *gradient = nullptr, void *stream = nullptr) {
        detail::Pointers pointers;
        detail::RawTargets raw(targets);
        facegrad_step c{};
        c.struct_size = sizeof c;
        c.prediction = pointers(&step.prediction);
        c.x_t = pointers(step.x_t);
        c.times = pointers(step.times);
        c.coefficients = pointers(step.coefficients);
        c.latent_height = step.latent_height;
        c.latent_width = step.latent_width;
        c.number = step.number;
        c.gradient_norm = step.gradient_norm;
        Report report = detail::report(step.prediction.batch());
        const auto status =
            api().loss_step(get(), &c, raw.get(), pointers(gradient), report.samples.data(), report.samples.size(), &report.result, stream);
        return detail::done(status, [&] { return std::move(report); });
    }
    /// Describes the loss as JSON: see facegrad_loss_info.
    std::string info() const {
        return detail::text([&](char *b, std::size_t c, std::size_t *n) { return api().loss_info(get(), b, c, n); });
    }
};

/// Faces, embeddings and similarities as insightface computes them, without a gradient.
class Evaluator : public detail::Handle<facegrad_evaluator, &facegrad_api::evaluator_free> {
  public:
    using Handle::Handle;
    /// `config` as in facegrad_evaluator_new.
    static Outcome<Evaluator> make(const Context &context, const std::string &config) {
        facegrad_evaluator *out = nullptr;
        const auto status = api().evaluator_new(context.get(), config.c_str(), &out);
        return detail::done(status, [&] { return Evaluator(out); });
    }
    /// The faces of images `[N,3,H,W]`, RGB, uint8 or floats in [0, 1], ordered by image and falling score; at most `most` of them.
    /// `embeddings` `[most,D]` receives one row per face; nullptr: none.
    Outcome<std::vector<facegrad_face>> faces(const TensorView &images, const TensorView *embeddings = nullptr, void *stream = nullptr,
                                              std::size_t most = 256) {
        detail::Pointers pointers;
        std::vector<facegrad_face> faces(most == 0 ? 1 : most);
        faces[0].struct_size = sizeof faces[0];
        std::size_t count = 0;
        const auto status =
            api().evaluator_faces(get(), pointers(&images), faces.data(), faces.size(), pointers(embeddings), &count, stream);
        faces.resize(count < faces.size() ? count : faces.size());
        return detail::done(status, [&] { return std::move(faces); });
    }
    /// `[count,3,S,S]` crops as the recogniser sees them.
    Outcome<void> align(const TensorView &images, Span<const facegrad_face> faces, const TensorView &crops, void *stream = nullptr) {
        const facegrad_tensor in = images.raw(), out = crops.raw();
        return check(api().evaluator_align(get(), &in, faces.data(), faces.size(), &out, stream));
    }
    /// Registers `[K,3,H,W]` images of a person, whose landmarks `[K,5,2]` may be known.
    Outcome<void> set_reference(const std::string &id, const TensorView &images, const TensorView *landmarks = nullptr,
                                void *stream = nullptr) {
        detail::Pointers pointers;
        return check(api().evaluator_set_reference(get(), id.c_str(), pointers(&images), pointers(landmarks), stream));
    }
    Outcome<void> remove_reference(const std::string &id) { return check(api().evaluator_remove_reference(get(), id.c_str())); }
    /// Compares one face of every image with its reference. See facegrad_evaluator_compare.
    Outcome<Report> compare(const TensorView &images, const Targets &targets, void *stream = nullptr) {
        detail::Pointers pointers;
        detail::RawTargets raw(targets);
        Report report = detail::report(images.batch());
        const auto status = api().evaluator_compare(get(), pointers(&images), raw.get(), report.samples.data(), report.samples.size(),
                                                    &report.result, stream);
        return detail::done(status, [&] { return std::move(report); });
    }
    /// Finds registered people in every image. The report has `N · people` samples, image after image. See facegrad_evaluator_find.
    Outcome<Report> find(const TensorView &images, const std::vector<std::string> &people, void *stream = nullptr) {
        detail::Pointers pointers;
        std::vector<const char *> ids;
        for (const auto &id : people) {
            ids.push_back(id.c_str());
        }
        Report report = detail::report(images.batch() * ids.size());
        const auto status = api().evaluator_find(get(), pointers(&images), ids.data(), ids.size(), report.samples.data(),
                                                 report.samples.size(), &report.result, stream);
        return detail::done(status, [&] { return std::move(report); });
    }
    /// What was loaded, as JSON.
    std::string info() const {
        return detail::text([&](char *b, std::size_t c, std::size_t *n) { return api().evaluator_info(get(), b, c, n); });
    }
};

/// A graph of operations with gradients, whose nodes are numbers. Every member is the function facegrad_graph_* of its name, whose
/// text describes shapes and `config`.
class Graph : public detail::Handle<facegrad_graph, &facegrad_api::graph_free> {
  public:
    using Handle::Handle;
    using Node = std::int64_t;
    /// Stands for a missing node, such as `x_t` where the model predicts x0.
    static constexpr Node none = -1;
    static Outcome<Graph> make(const Context &context) {
        facegrad_graph *out = nullptr;
        const auto status = api().graph_new(context.get(), &out);
        return detail::done(status, [&] { return Graph(out); });
    }
    Outcome<Node> input(const TensorView &tensor, bool needs_gradient, void *stream = nullptr) {
        const facegrad_tensor raw = tensor.raw();
        return node([&](Node *out) { return api().graph_input(get(), &raw, needs_gradient, out, stream); });
    }
    Outcome<Node> predict_x0(Node x_t, Node prediction, const TensorView *times, const std::string &config = "{}", void *stream = nullptr) {
        detail::Pointers pointers;
        const facegrad_tensor *raw = pointers(times);
        return node([&](Node *out) { return api().graph_predict_x0(get(), x_t, prediction, raw, config.c_str(), out, stream); });
    }
    /// The sample at another noise level. No gradient flows through it.
    Outcome<Node> sampler_step(Node x_t, Node prediction, const TensorView &times, const TensorView &next_times,
                               const std::string &config = "{}", void *stream = nullptr) {
        const facegrad_tensor from = times.raw(), to = next_times.raw();
        return node([&](Node *out) { return api().graph_sampler_step(get(), x_t, prediction, &from, &to, config.c_str(), out, stream); });
    }
    Outcome<Node> unpack(Node latents, const Vae &vae, const std::string &config = "{}", std::int64_t height = 0, std::int64_t width = 0,
                         void *stream = nullptr) {
        return node([&](Node *out) { return api().graph_unpack(get(), latents, vae.get(), config.c_str(), height, width, out, stream); });
    }
    Outcome<Node> decode(Node latents, const Vae &vae, const std::string &config = "{}", void *stream = nullptr) {
        return node([&](Node *out) { return api().graph_decode(get(), latents, vae.get(), config.c_str(), out, stream); });
    }
    /// A recogniser's features of aligned crops at one level, not normalised.
    Outcome<Node> features(Node crops, const Backbone &backbone, const std::string &level = "embedding", void *stream = nullptr) {
        return node([&](Node *out) { return api().graph_features(get(), crops, backbone.get(), level.c_str(), out, stream); });
    }
    /// The loss of a node of images, a scalar. `report` may be nullptr.
    Outcome<Node> face_loss(Node images, const Loss &loss, const Targets &targets, Report *report = nullptr, void *stream = nullptr) {
        detail::RawTargets raw(targets);
        if (report != nullptr) {
            std::size_t rank = 0;
            std::int64_t samples = 0;
            api().graph_shape(get(), images, &samples, 1, &rank);
            *report = detail::report(static_cast<std::size_t>(samples));
        }
        return node([&](Node *out) {
            return api().graph_face_loss(get(), images, loss.get(), raw.get(), report ? report->samples.data() : nullptr,
                                         report ? report->samples.size() : 0, report ? &report->result : nullptr, out, stream);
        });
    }
    Outcome<std::vector<std::int64_t>> shape(Node node) const {
        std::array<std::int64_t, 16> sizes{};
        std::size_t rank = 0;
        const auto status = api().graph_shape(get(), node, sizes.data(), sizes.size(), &rank);
        return detail::done(status, [&] { return std::vector<std::int64_t>(sizes.begin(), sizes.begin() + rank); });
    }
    Outcome<void> read(Node node, const TensorView &out, void *stream = nullptr) const {
        const facegrad_tensor raw = out.raw();
        return check(api().graph_read(get(), node, &raw, stream));
    }
    /// Computes the gradients of a node with respect to all nodes before it. `seed` nullptr: ones.
    Outcome<void> backward(Node node, const TensorView *seed = nullptr, void *stream = nullptr) {
        detail::Pointers pointers;
        return check(api().graph_backward(get(), node, pointers(seed), stream));
    }
    Outcome<void> gradient(Node node, const TensorView &out, void *stream = nullptr) const {
        const facegrad_tensor raw = out.raw();
        return check(api().graph_gradient(get(), node, &raw, stream));
    }

  private:
    template <class F> Outcome<Node> node(F &&call) {
        Node out = none;
        const auto status = call(&out);
        return detail::done(status, [&] { return out; });
    }
};

/* ---- the process --------------------------------------------------------------------------------- */

/// The versions of the library and of the torch in this process: `facegrad/x.y.z torch/x.y.z`.
inline std::string version() { return api().version(); }

/// Takes the deterministic step of a sampler from the noise levels `times` to `next_times`, both `[N]`. `next` may be the memory of
/// `x_t`. See facegrad_sampler_step.
inline Outcome<void> sampler_step(const Context &context, const TensorView &x_t, const TensorView &prediction, const TensorView &times,
                                  const TensorView &next_times, const TensorView &next, const std::string &config = "{}",
                                  void *stream = nullptr) {
    const facegrad_tensor x = x_t.raw(), v = prediction.raw(), from = times.raw(), to = next_times.raw(), out = next.raw();
    return check(api().sampler_step(context.get(), &x, &v, &from, &to, config.c_str(), &out, stream));
}

/// Describes the library and the process as JSON: see facegrad_build_info.
inline std::string build_info() { return detail::text(api().build_info); }

/// How many handles are not freed: of the kind `context`, `detector`, …, or with nullptr of all kinds.
inline Outcome<std::int64_t> live(const char *kind = nullptr) {
    std::int64_t count = 0;
    const auto status = api().debug_live(kind, &count);
    return detail::done(status, [&] { return count; });
}

/// Sets the receiver of the library's messages. `log` may run on any thread and must not call facegrad. If it throws, the
/// call that sent the message fails with FACEGRAD_ERR_CALLBACK. An empty function ends the messages.
inline Outcome<void> set_log(std::function<void(int level, std::string_view text)> log, int max_level = FACEGRAD_LOG_WARN) {
    using Log = std::function<void(int, std::string_view)>;
    if (!log) {
        return check(api().set_log_callback(nullptr, nullptr, max_level));
    }
    // An older receiver may still run, so none is ever freed.
    static std::mutex lock;
    static auto *all = new std::deque<Log>;
    const std::lock_guard<std::mutex> guard(lock);
    Log *kept = &all->emplace_back(std::move(log));
    return check(api().set_log_callback([](std::int32_t level, const char *text, void *data) { (*static_cast<Log *>(data))(level, text); },
                                        kept, max_level));
}

} // namespace facegrad

#endif /* FACEGRAD_HPP */

// A node host in C++, as ComfyUI would be: loads facegrad as a plugin, gives its graph functions to a JSON graph as node
// classes, and runs the graph.
//
//     node_host LIBRARY GRAPH.json FOLDER...
//
// Files that the graph names are looked for in the folders.

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>

#include "../ppm.hpp"
#include "facegrad.hpp"
#include "host.hpp"

namespace {

struct Tensor {
    std::vector<std::int64_t> shape;
    std::vector<float> data;
    explicit Tensor(std::vector<std::int64_t> sizes)
        : shape(std::move(sizes)),
          data(static_cast<std::size_t>(std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>()))) {}
    facegrad::TensorView view() { return {data, shape}; }
};

/// A node of facegrad's tape.
struct TapeNode {
    facegrad::Graph::Node id;
};

/// std::any wants copies, and handles are move-only.
template <class T> using Shared = std::shared_ptr<T>;
template <class T> Outputs one(T value) { return {{"", std::any(std::move(value))}}; }
template <class T> Outputs shared(T value) { return one(std::make_shared<T>(std::move(value))); }

std::string config(const Inputs &inputs) { return inputs.value<Json>("config", Json::object()).dump(); }

/// A model that knows the answer up to `error`: noisy latents of a picture, the velocity noise − x0, and the time. The
/// demo's latents are the picture at half its size, from -1 to 1.
Outputs sample_model(const Inputs &inputs) {
    const Tensor &picture = inputs.linked<Tensor>("picture");
    const float time = inputs.value<float>("time"), error = inputs.value<float>("error", 0.0f);
    std::mt19937 random(inputs.value<unsigned>("seed", 0u));
    std::normal_distribution<float> normal;
    const auto height = picture.shape[2] / 2, width = picture.shape[3] / 2;
    Tensor x_t({1, 3, height, width}), prediction = x_t, times({1});
    times.data[0] = time;
    std::size_t at = 0;
    for (std::int64_t c = 0; c < 3; ++c) {
        for (std::int64_t y = 0; y < height; ++y) {
            for (std::int64_t x = 0; x < width; ++x, ++at) {
                const auto pixel = static_cast<std::size_t>((c * 2 * height + 2 * y) * 2 * width + 2 * x);
                const float x0 = 2 * picture.data[pixel] - 1, noise = normal(random);
                x_t.data[at] = (1 - time) * x0 + time * noise;
                prediction.data[at] = noise - x0 + error * normal(random);
            }
        }
    }
    return {{"x_t", std::any(x_t)}, {"prediction", std::any(prediction)}, {"times", std::any(times)}};
}

class FaceNodes {
  public:
    explicit FaceNodes(std::vector<std::filesystem::path> folders)
        : folders_(std::move(folders)), context_(facegrad::Context::make()), graph_(facegrad::Graph::make(context_)) {}

    void add_to(Host &host) {
        host.add("load_picture", [this](const Inputs &in) {
            const Picture picture = read_ppm(find(in.value<std::string>("path")));
            Tensor tensor({1, 3, picture.height, picture.width});
            tensor.data = picture.rgb;
            return one(std::move(tensor));
        });
        host.add("sample_model", sample_model);
        host.add("load_vae", [this](const Inputs &in) { return shared(facegrad::Vae::make(context_, object(in))); });
        host.add("load_recogniser", [this](const Inputs &in) { return shared(facegrad::Backbone::make(context_, object(in))); });
        host.add("load_detector", [this](const Inputs &in) { return shared(facegrad::Detector::make(context_, object(in))); });
        host.add("face_loss", [this](const Inputs &in) {
            const auto recogniser = in.linked<Shared<facegrad::Backbone>>("recogniser");
            const auto detector = in.has("detector") ? in.linked<Shared<facegrad::Detector>>("detector") : nullptr;
            return shared(facegrad::Loss::make(context_, detector.get(), recogniser.get(), nullptr, config(in)));
        });
        host.add("graph_input", [this](const Inputs &in) {
            return node(graph_.input(in.linked<Tensor>("tensor").view(), in.value("needs_gradient", false)));
        });
        host.add("graph_predict_x0", [this](const Inputs &in) {
            const auto x_t = in.has("x_t") ? in.linked<TapeNode>("x_t").id : facegrad::Graph::none;
            const auto prediction = in.linked<TapeNode>("prediction").id;
            if (!in.has("times")) {
                return node(graph_.predict_x0(x_t, prediction, nullptr, config(in)));
            }
            const auto times = in.linked<Tensor>("times").view();
            return node(graph_.predict_x0(x_t, prediction, &times, config(in)));
        });
        host.add("graph_unpack", [this](const Inputs &in) {
            return node(graph_.unpack(in.linked<TapeNode>("latents").id, *in.linked<Shared<facegrad::Vae>>("vae"), config(in),
                                      in.value<std::int64_t>("height", 0), in.value<std::int64_t>("width", 0)));
        });
        host.add("graph_decode", [this](const Inputs &in) {
            return node(graph_.decode(in.linked<TapeNode>("latents").id, *in.linked<Shared<facegrad::Vae>>("vae"), config(in)));
        });
        host.add("graph_face_loss", [this](const Inputs &in) {
            facegrad::Targets targets;
            targets.references = in.linked<Tensor>("references").view();
            facegrad::Report report;
            const auto id =
                graph_.face_loss(in.linked<TapeNode>("images").id, *in.linked<Shared<facegrad::Loss>>("loss"), targets, &report);
            std::printf("loss %.4f, similarity %+.3f, %ld of %ld counted\n", report.result.loss, report.samples.at(0).similarity,
                        static_cast<long>(report.result.counted), static_cast<long>(report.result.samples));
            return node(id);
        });
        host.add("graph_backward", [this](const Inputs &in) {
            const auto to = in.linked<TapeNode>("to").id;
            graph_.backward(in.linked<TapeNode>("from").id);
            Tensor gradient(graph_.shape(to));
            graph_.gradient(to, gradient.view());
            const double square = std::inner_product(gradient.data.begin(), gradient.data.end(), gradient.data.begin(), 0.0);
            std::printf("gradient norm %.6f\n", std::sqrt(square));
            return one(std::move(gradient));
        });
    }

    std::string describe(const Outputs &outputs) const {
        std::string text;
        for (const auto &[_, value] : outputs) {
            if (const auto *made = std::any_cast<TapeNode>(&value)) {
                text += " tape node " + std::to_string(made->id) + " [";
                for (const auto size : graph_.shape(made->id)) {
                    text += " " + std::to_string(size);
                }
                text += " ]";
            }
        }
        return text;
    }

  private:
    static Outputs node(facegrad::Graph::Node id) { return one(TapeNode{id}); }
    /// The configuration of an object whose file lies in one of the folders.
    std::string object(const Inputs &in) const {
        Json json = in.rest();
        json["path"] = find(in.value<std::string>("path"));
        return json.dump();
    }
    std::string find(const std::string &name) const {
        for (const auto &folder : folders_) {
            if (std::filesystem::exists(folder / name)) {
                return folder / name;
            }
        }
        throw std::runtime_error(name + " is in none of the folders");
    }

    std::vector<std::filesystem::path> folders_;
    facegrad::Context context_;
    facegrad::Graph graph_;
};

} // namespace

int main(int argc, char **argv) try {
    if (argc < 4) {
        std::fprintf(stderr, "usage: %s LIBRARY GRAPH.json FOLDER...\n", argv[0]);
        return 2;
    }
    facegrad::Plugin::load(argv[1]);
    std::ifstream file(argv[2]);
    const Json graph = Json::parse(file);
    Host host;
    FaceNodes nodes({argv + 3, argv + argc});
    nodes.add_to(host);
    host.run(graph, [&](const std::string &name, const Outputs &outputs) {
        std::printf("%-12s%s\n", name.c_str(), nodes.describe(outputs).c_str());
    });
    return 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}

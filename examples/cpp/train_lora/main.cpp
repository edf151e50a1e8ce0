// Trains low-rank adapters of a small flow-matching transformer on one drawn person, with the face identity loss.
//
//     train_lora ASSETS PICTURES [STEPS [BASE_STEPS]]
//
// ASSETS is examples/demo_assets, PICTURES a folder that `pictures.py FOLDER 8 4 128` made: person 0 is the one to learn,
// the others teach the base model what a face is. The trainer's own code knows facegrad by one call: facegrad::face_loss.

#include <filesystem>
#include <iostream>
#include <map>

#include "../ppm.hpp"
#include "facegrad_torch.hpp"
#include "flow.hpp"

namespace {

constexpr std::int64_t batch = 4;

/// Pictures `[N,3,H,W]` in [0, 1] of each person.
std::map<int, torch::Tensor> read_pictures(const std::filesystem::path &folder) {
    std::map<int, std::vector<torch::Tensor>> found;
    for (const auto &entry : std::filesystem::directory_iterator(folder)) {
        if (entry.path().extension() == ".ppm") {
            Picture picture = read_ppm(entry.path());
            found[std::stoi(entry.path().stem())].push_back(torch::tensor(picture.rgb).view({3, picture.height, picture.width}));
        }
    }
    std::map<int, torch::Tensor> stacked;
    for (auto &[person, pictures] : found) {
        stacked[person] = torch::stack(pictures);
    }
    return stacked;
}

/// The demo's VAE is a picture at half its size, from -1 to 1.
torch::Tensor encode(const torch::Tensor &images) { return 2 * torch::avg_pool2d(images, 2) - 1; }

/// One draw of the flow-matching objective.
struct Draw {
    torch::Tensor images, x_t, t, velocity;
    explicit Draw(const torch::Tensor &pictures, double least = 0.1, double most = 0.9)
        : images(pictures.index_select(0, torch::randint(pictures.size(0), {batch}, torch::kLong))),
          t(torch::rand({batch}) * (most - least) + least) {
        const auto x0 = encode(images), noise = torch::randn_like(x0), share = t.view({-1, 1, 1, 1});
        x_t = (1 - share) * x0 + share * noise;
        velocity = noise - x0;
    }
};

double mean_similarity(const facegrad::Report &report) {
    double sum = 0;
    for (const auto &sample : report.samples) {
        sum += sample.outcome == FACEGRAD_SAMPLE_COUNTED ? sample.similarity : 0;
    }
    return report.result.counted > 0 ? sum / static_cast<double>(report.result.counted) : NAN;
}

void train_base(Flow &model, const torch::Tensor &others, int steps) {
    torch::optim::Adam optimiser(model->parameters_of(false), 3e-3);
    for (int step = 1; step <= steps; ++step) {
        const Draw draw(others);
        const auto loss = torch::mse_loss(model(draw.x_t, draw.t), draw.velocity);
        optimiser.zero_grad();
        loss.backward();
        optimiser.step();
        if (step % 50 == 0 || step == steps) {
            std::printf("base %4d  mse %.4f\n", step, loss.item<double>());
        }
    }
    for (auto &parameter : model->parameters_of(false)) {
        parameter.set_requires_grad(false);
    }
}

} // namespace

int main(int argc, char **argv) try {
    if (argc < 3) {
        std::cerr << "usage: " << argv[0] << " ASSETS PICTURES [STEPS [BASE_STEPS]]\n";
        return 2;
    }
    const std::string assets = argv[1];
    const int steps = argc > 3 ? std::stoi(argv[3]) : 60, base_steps = argc > 4 ? std::stoi(argv[4]) : 300;
    torch::manual_seed(1);
    auto people = read_pictures(argv[2]);
    std::vector<torch::Tensor> rest;
    for (const auto &[person, pictures] : people) {
        if (person != 0) {
            rest.push_back(pictures);
        }
    }
    TORCH_CHECK(people.count(0) == 1 && !rest.empty(), argv[2], ": expected pictures of person 0 and of others");
    const auto pictures = people[0];

    const auto context = facegrad::Context::make();
    const auto detector = facegrad::Detector::make(context, R"({"path": ")" + assets + R"(/detector.onnx", "det_sizes": [128]})");
    const auto recogniser = facegrad::Backbone::make(context, R"({"path": ")" + assets + R"(/recogniser.safetensors"})");
    const auto vae = facegrad::Vae::make(context, R"({"path": ")" + assets + R"(/vae.safetensors"})");
    auto face = facegrad::Loss::make(context, &detector, &recogniser, &vae, R"({
        "face_loss_weight": 0.2, "face_align_mode": "kps", "landmarks": "reference", "t_max": 0.8,
        "prediction": {"kind": "flow"}, "latent_format": "none", "clamp": "straight_through"})");

    Flow model(pictures.size(2) / 2);
    train_base(model, torch::cat(rest), base_steps);

    // The same noise before and after tells what the adapters learned.
    const Draw judge(pictures, 0.5, 0.7);
    const auto judged = [&] {
        torch::NoGradGuard no_grad;
        facegrad::Targets targets;
        targets.references = facegrad::view(judge.images);
        facegrad::Report report;
        facegrad::face_loss(face, {model(judge.x_t, judge.t), judge.x_t, judge.t, {}}, targets, &report);
        return mean_similarity(report);
    };
    const double before = judged();
    const auto adapters = model->parameters_of(true);
    torch::optim::AdamW optimiser(adapters, torch::optim::AdamWOptions(4e-3));
    for (int step = 1; step <= steps; ++step) {
        const Draw draw(pictures);
        facegrad::Targets targets;
        targets.references = facegrad::view(draw.images);
        facegrad::Report report;
        const auto prediction = model(draw.x_t, draw.t);
        const auto mse = torch::mse_loss(prediction, draw.velocity);
        facegrad::StepTensors at{prediction, draw.x_t, draw.t, {}};
        at.number = static_cast<std::uint64_t>(step);
        const auto identity = facegrad::face_loss(face, at, targets, &report);
        optimiser.zero_grad();
        (mse + identity).backward();
        torch::nn::utils::clip_grad_norm_(adapters, 1.0);
        optimiser.step();
        if (step == 1 || step % 10 == 0 || step == steps) {
            std::printf("step %4d  mse %.4f  face %.4f  similarity %+.3f  counted %ld/%ld\n", step, mse.item<double>(),
                        identity.item<double>(), mean_similarity(report), static_cast<long>(report.result.counted),
                        static_cast<long>(report.result.samples));
        }
    }
    std::printf("similarity to the person at fixed noise: %+.3f before, %+.3f after\n", before, judged());
    return 0;
} catch (const std::exception &error) {
    std::cerr << error.what() << "\n";
    return 1;
}

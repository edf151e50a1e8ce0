// A small flow-matching transformer whose linear layers carry low-rank adapters.

#pragma once

#include <torch/torch.h>

/// A linear layer and its adapter: W·x + b + B·A·x. B starts at zero, so that an untrained adapter changes nothing.
struct LoraLinearImpl : torch::nn::Module {
    LoraLinearImpl(std::int64_t in, std::int64_t out, std::int64_t rank)
        : base(register_module("base", torch::nn::Linear(in, out))),
          a(register_parameter("lora_a", torch::randn({rank, in}) / std::sqrt(double(in)))),
          b(register_parameter("lora_b", torch::zeros({out, rank}))) {}
    torch::Tensor forward(const torch::Tensor &x) { return base(x) + x.matmul(a.t()).matmul(b.t()); }
    torch::nn::Linear base;
    torch::Tensor a, b;
};
TORCH_MODULE(LoraLinear);

struct BlockImpl : torch::nn::Module {
    BlockImpl(std::int64_t width, std::int64_t heads, std::int64_t rank)
        : heads(heads), before(register_module("before", torch::nn::LayerNorm(torch::nn::LayerNormOptions({width})))),
          between(register_module("between", torch::nn::LayerNorm(torch::nn::LayerNormOptions({width})))),
          qkv(register_module("qkv", LoraLinear(width, 3 * width, rank))), proj(register_module("proj", LoraLinear(width, width, rank))),
          up(register_module("up", LoraLinear(width, 2 * width, rank))), down(register_module("down", LoraLinear(2 * width, width, rank))) {
    }
    torch::Tensor forward(torch::Tensor x) {
        const auto batch = x.size(0), tokens = x.size(1), width = x.size(2);
        const auto parts = qkv(before(x)).view({batch, tokens, 3, heads, width / heads}).permute({2, 0, 3, 1, 4});
        const auto attended = torch::scaled_dot_product_attention(parts[0], parts[1], parts[2]);
        x = x + proj(attended.transpose(1, 2).reshape({batch, tokens, width}));
        return x + down(torch::gelu(up(between(x))));
    }
    std::int64_t heads;
    torch::nn::LayerNorm before, between;
    LoraLinear qkv, proj, up, down;
};
TORCH_MODULE(Block);

/// `[B,3,side,side]` noisy latents and `[B]` times in (0, 1] to the velocity noise − x0. Inside, the transformer estimates
/// x0 from patches of 4×4.
struct FlowImpl : torch::nn::Module {
    static constexpr std::int64_t patch = 4, width = 96, heads = 4, layers = 2, rank = 8;
    explicit FlowImpl(std::int64_t side)
        : grid(side / patch), into(register_module("into", LoraLinear(3 * patch * patch, width, rank))),
          out(register_module("out", LoraLinear(width, 3 * patch * patch, rank))),
          time(register_module("time", torch::nn::Linear(16, width))),
          places(register_parameter("places", torch::randn({1, grid * grid, width}) * 0.02)),
          blocks(register_module("blocks", torch::nn::ModuleList())) {
        for (std::int64_t i = 0; i < layers; ++i) {
            blocks->push_back(Block(width, heads, rank));
        }
    }
    torch::Tensor forward(const torch::Tensor &x_t, const torch::Tensor &t) {
        const auto batch = x_t.size(0);
        auto tokens = x_t.view({batch, 3, grid, patch, grid, patch}).permute({0, 2, 4, 1, 3, 5}).reshape({batch, grid * grid, -1});
        const auto waves = t.unsqueeze(1) * torch::arange(1, 9, t.options()) * M_PI;
        auto h = into(tokens) + places + time(torch::cat({waves.sin(), waves.cos()}, 1)).unsqueeze(1);
        for (const auto &block : *blocks) {
            h = block->as<Block>()->forward(h);
        }
        const auto x0 = out(h).view({batch, grid, grid, 3, patch, patch}).permute({0, 3, 1, 4, 2, 5}).reshape_as(x_t);
        return (x_t - x0) / t.view({-1, 1, 1, 1});
    }
    /// The parameters of the adapters, or all others.
    std::vector<torch::Tensor> parameters_of(bool adapters) {
        std::vector<torch::Tensor> found;
        for (const auto &entry : named_parameters()) {
            if ((entry.key().find("lora_") != std::string::npos) == adapters) {
                found.push_back(entry.value());
            }
        }
        return found;
    }
    std::int64_t grid;
    LoraLinear into, out;
    torch::nn::Linear time;
    torch::Tensor places;
    torch::nn::ModuleList blocks;
};
TORCH_MODULE(Flow);

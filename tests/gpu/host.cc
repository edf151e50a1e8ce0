// A host that never linked libtorch_cuda: it embeds one picture on the CPU and on DEVICE and compares.
//
//   host PART CORE RECOGNISER DEVICE [early]
//
// With `early` the program asks libtorch for CUDA before the library has loaded libtorch's CUDA half. libtorch then has none
// for the rest of the process, and the library must say so.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <dlfcn.h>

#include "facegrad.h"

namespace torch::cuda {
bool is_available();
}

namespace {

constexpr std::int64_t side = 112;

const facegrad_api *api = nullptr;

[[noreturn]] void fail(const char *what) {
    char text[2048] = "";
    if (api) {
        api->last_error(text, sizeof text, nullptr);
    }
    std::printf("%s: %s\n", what, text);
    std::exit(1);
}

void *open(const char *path) {
    void *library = dlopen(path, RTLD_NOW);
    if (!library) {
        std::printf("%s\n", dlerror());
        std::exit(1);
    }
    return library;
}

// CUDA's own runtime, which libtorch_cuda has brought along.
template <class F> F cuda(const char *name) {
    void *library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    void *found = library ? dlsym(library, name) : nullptr;
    if (!found) {
        fail(name);
    }
    return reinterpret_cast<F>(found);
}

struct Buffer {
    bool on_gpu;
    std::vector<float> host;
    void *data;

    Buffer(std::vector<float> values, bool gpu) : on_gpu(gpu), host(std::move(values)), data(host.data()) {
        if (on_gpu) {
            if (cuda<int (*)(void **, std::size_t)>("cudaMalloc")(&data, bytes()) != 0) {
                fail("cudaMalloc");
            }
            copy(data, host.data());
        }
    }
    std::size_t bytes() const { return host.size() * sizeof(float); }
    void copy(void *to, const void *from) const {
        // 4: the runtime finds the direction out. Waits for the default stream.
        if (cuda<int (*)(void *, const void *, std::size_t, int)>("cudaMemcpy")(to, from, bytes(), 4) != 0) {
            fail("cudaMemcpy");
        }
    }
    const std::vector<float> &read() {
        if (on_gpu) {
            copy(host.data(), data);
        }
        return host;
    }
};

facegrad_tensor view(Buffer &buffer, std::int64_t *shape, std::int32_t ndim) {
    facegrad_tensor tensor{};
    tensor.data = buffer.data;
    tensor.device_type = buffer.on_gpu ? 2 : 1;
    tensor.ndim = ndim;
    tensor.dtype_code = 2;
    tensor.dtype_bits = 32;
    tensor.dtype_lanes = 1;
    tensor.shape = shape;
    return tensor;
}

std::vector<float> embedding(const std::string &device, const char *recogniser) {
    facegrad_context *context = nullptr;
    const std::string config = R"({"device": ")" + device + R"("})";
    if (api->context_new(config.c_str(), &context) != FACEGRAD_OK) {
        fail("context");
    }
    facegrad_backbone *backbone = nullptr;
    const std::string model = std::string(R"({"path": ")") + recogniser + R"("})";
    if (api->backbone_new(context, model.c_str(), &backbone) != FACEGRAD_OK) {
        fail("backbone");
    }
    std::vector<float> pixels(3 * side * side);
    for (std::size_t at = 0; at < pixels.size(); ++at) {
        pixels[at] = 0.5f + 0.5f * std::sin(0.01f * static_cast<float>(at % 977));
    }
    const bool gpu = device != "cpu";
    Buffer image(pixels, gpu), out(std::vector<float>(128), gpu);
    std::int64_t shape[] = {1, 3, side, side}, row[] = {1, 128};
    const facegrad_tensor images = view(image, shape, 4), embeddings = view(out, row, 2);
    facegrad_face face{};
    face.struct_size = sizeof face;
    face.bbox[2] = face.bbox[3] = side - 1;
    if (api->backbone_embed(backbone, &images, &face, 1, &embeddings, nullptr) != FACEGRAD_OK) {
        fail("embed");
    }
    std::vector<float> result = out.read();
    api->backbone_free(backbone);
    api->context_free(context);
    return result;
}

} // namespace

int main(int count, char **words) {
    if (count < 5) {
        return 2;
    }
    const std::string device = words[4];
    if (count > 5 && torch::cuda::is_available()) {
        std::printf("libtorch_cuda is linked after all\n");
        return 1;
    }
    open(words[1]);
    using Get = const facegrad_api *(*)(std::uint32_t);
    api = reinterpret_cast<Get>(dlsym(open(words[2]), "facegrad_get_api"))(FACEGRAD_ABI_VERSION);
    if (!api) {
        fail("facegrad_get_api");
    }
    const auto ours = embedding(device, words[3]), plain = embedding("cpu", words[3]);
    float cosine = 0;
    for (std::size_t at = 0; at < ours.size(); ++at) {
        cosine += ours[at] * plain[at];
    }
    std::printf("cosine %.6f\n", static_cast<double>(cosine));
    return cosine > 0.999f ? 0 : 1;
}

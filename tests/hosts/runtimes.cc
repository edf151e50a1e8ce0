// What a host is told about ONNX Runtime and CUDA.
//
//     runtimes ASSETS [ONNXRUNTIME]

#include <cstdio>

#include "facegrad.hpp"

template <class F> static void say(const char *what, F call) {
    try {
        std::printf("%s: status 0: %s\n", what, call().c_str());
    } catch (const facegrad::Error &error) {
        std::printf("%s: status %d: %s\n", what, error.status(), error.what());
    }
}

int main(int argc, char **argv) {
    const auto context = facegrad::Context::make();
    const std::string detector = std::string(R"({"engine": "ort", "det_sizes": [64], "path": ")") + argv[1] + "/detector.onnx\"";
    if (argc > 2) {
        say("old", [&] { return facegrad::Detector::make(context, detector + R"(, "onnxruntime": ")" + argv[2] + "\"}").info(); });
    }
    say("found", [&] { return facegrad::Detector::make(context, detector + "}").info(); });
    say("cuda", [&] {
        const auto cuda = facegrad::Context::make(R"({"device": "cuda"})");
        return facegrad::build_info();
    });
}

// Loads the plugin in a process that may not suit it, and says how that went.
//
//     loader LIBRARY [--before OTHER.so] [--libtorch FOLDER]

#define FACEGRAD_DYNAMIC
#include <cstdio>
#include <cstring>

#include "facegrad.hpp"

int main(int argc, char **argv) {
    std::string libtorch;
    for (int i = 2; i + 1 < argc; i += 2) {
        if (std::strcmp(argv[i], "--libtorch") == 0) {
            libtorch = argv[i + 1];
        } else if (dlopen(argv[i + 1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
            std::printf("%s\n", dlerror());
            return 1;
        }
    }
    try {
        facegrad::Plugin::load(argv[1], libtorch);
        const auto context = facegrad::Context::make();
        std::printf("status 0: %s\n", facegrad::version().c_str());
    } catch (const facegrad::Error &error) {
        std::printf("status %d: %s\n", error.status(), error.what());
    }
    return 0;
}

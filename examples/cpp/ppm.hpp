// Binary PPM files, the one picture format that needs no library.

#pragma once

#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Picture {
    int width = 0, height = 0;
    std::vector<float> rgb; // [3,H,W] in [0, 1]
};

inline Picture read_ppm(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    int most = 0;
    Picture picture;
    if (!(file >> magic >> picture.width >> picture.height >> most) || magic != "P6" || most != 255 || picture.width < 1 ||
        picture.height < 1) {
        throw std::runtime_error(path + ": not a binary PPM file of 8 bits");
    }
    file.get();
    const std::size_t pixels = static_cast<std::size_t>(picture.width) * static_cast<std::size_t>(picture.height);
    std::vector<char> bytes(3 * pixels);
    if (!file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
        throw std::runtime_error(path + ": too short");
    }
    picture.rgb.resize(bytes.size());
    for (std::size_t at = 0; at < pixels; ++at) {
        for (std::size_t c = 0; c < 3; ++c) {
            picture.rgb[c * pixels + at] = static_cast<float>(static_cast<unsigned char>(bytes[3 * at + c])) / 255;
        }
    }
    return picture;
}

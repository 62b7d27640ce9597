// Inspects images with a folder that `flawsmith export MODEL --to onnx` has written; there is no Python in it.
//
//   g++ -std=c++17 -O2 inspect.cpp -I/usr/include/onnxruntime -lonnxruntime -o inspect
//   ./inspect FOLDER photo.png other.png     a line each: verdict, score, image, strangest place; --check: test vectors
// Debian 13: apt install g++ libonnxruntime-dev libstb-dev nlohmann-json3-dev. Elsewhere ONNX Runtime's release has the
// header and the library. JPEG decoders differ by a grey level, and stb_image ignores the orientation of photographs.
#include <onnxruntime_cxx_api.h>
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>

using nlohmann::json;
struct Image { int height, width; std::vector<uint8_t> rgb; };
struct Axis { int original, resized, start, length, padding; };  // resize to `resized`, cut `length` out, put it at `padding`
struct Filter { double support; std::function<double(double)> weight; };

Filter filter_of(const std::string& name) {
    const double pi = std::acos(-1.0);
    auto sinc = [pi](double x) { return x == 0 ? 1.0 : std::sin(x * pi) / (x * pi); };
    if (name == "lanczos") return {3, [sinc](double x) { return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0; }};
    if (name == "bicubic") return {2, [](double x) {
        x = std::fabs(x);
        return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
    }};
    return {1, [](double x) { return std::max(0.0, 1 - std::fabs(x)); }};
}

// One axis, antialiased as Pillow does it in 8 bits: integer weights, the result rounded.
Image resample(const Image& in, bool columns, const Axis& axis, const Filter& filter) {
    Image out{columns ? in.height : axis.length, columns ? axis.length : in.width, {}};
    out.rgb.resize(size_t(3) * out.height * out.width);
    const double scale = double(axis.original) / axis.resized, wide = std::max(scale, 1.0), support = filter.support * wide;
    for (int i = 0; i < axis.length; ++i) {
        const double centre = (axis.start + i + 0.5) * scale;
        const int first = std::max(0, int(centre - support + 0.5)), end = std::min(axis.original, int(centre + support + 0.5));
        std::vector<double> weights;
        double sum = 0;
        for (int x = first; x < end; ++x) sum += weights.emplace_back(filter.weight((x - centre + 0.5) * (1.0 / wide)));
        std::vector<int> whole;
        for (double w : weights) whole.push_back(int((w / sum) * (1 << 22) + (w < 0 ? -0.5 : 0.5)));
        for (int other = 0; other < (columns ? in.height : in.width); ++other)
            for (int c = 0; c < 3; ++c) {
                int64_t total = 1 << 21;
                for (int x = first; x < end; ++x) {
                    const size_t at = columns ? size_t(other) * in.width + x : size_t(x) * in.width + other;
                    total += int64_t(whole[x - first]) * in.rgb[3 * at + c];
                }
                const size_t at = columns ? size_t(other) * out.width + i : size_t(i) * out.width + other;
                out.rgb[3 * at + c] = uint8_t(std::clamp<int64_t>(total >> 22, 0, 255));
            }
    }
    return out;
}

Axis axis_of(const json& geometry, int which, int height, int width) {
    const int sizes[2] = {geometry["size"][0], geometry["size"][1]}, lengths[2] = {height, width};
    const int size = sizes[which], length = lengths[which];
    if (geometry["policy"] == "crop") {
        const int64_t side = geometry["resize"].is_null() ? std::max(sizes[0], sizes[1]) : geometry["resize"].get<int>();
        const int resized = int(side * length / std::min(height, width));
        return {length, resized, int(std::nearbyint((resized - size) / 2.0)), size, 0};
    }
    if (geometry["policy"] == "letterbox") {
        const double scale = std::min(double(sizes[0]) / height, double(sizes[1]) / width);
        const int fitted = std::min(std::max(1, int(std::nearbyint(length * scale))), size);
        return {length, fitted, 0, fitted, (size - fitted) / 2};
    }
    return {length, size, 0, size, 0};
}

std::vector<float> prepare(const json& geometry, const Image& image) {
    const Axis rows = axis_of(geometry, 0, image.height, image.width), columns = axis_of(geometry, 1, image.height, image.width);
    const Filter filter = filter_of(geometry["interpolation"]);
    const Image small = resample(resample(image, true, columns, filter), false, rows, filter);
    const int height = geometry["size"][0], width = geometry["size"][1];
    std::vector<float> input(size_t(3) * height * width, 0.0f);
    for (int c = 0; c < 3; ++c)
        for (int y = 0; y < small.height; ++y)
            for (int x = 0; x < small.width; ++x)
                input[(size_t(c) * height + y + rows.padding) * width + x + columns.padding] = float(
                    (small.rgb[3 * (size_t(y) * small.width + x) + c] / 255.0 - geometry["mean"][c].get<double>()) /
                    geometry["std"][c].get<double>());
    return input;
}

std::vector<float> floats(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    std::vector<float> values(bytes.size() / sizeof(float));
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(values.data()));
    return values;
}

double difference(const std::vector<float>& a, const std::vector<float>& b) {
    double most = a.size() == b.size() ? 0 : INFINITY;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) most = std::max(most, std::fabs(double(a[i]) - b[i]));
    return most;
}

int main(int count, char** words) try {
    if (count < 3) throw std::runtime_error("usage: inspect FOLDER image... | --check");
    const std::string folder = std::string(words[1]) + "/";
    const json facts = json::parse(std::ifstream(folder + "decision.json")), &geometry = facts["geometry"], &limits = facts["decision"];
    if (facts["version"] > 1 || limits["decides"] != "score" || !geometry["region"].is_null() || !facts["tiling"].is_null())
        throw std::runtime_error("this example decides by the score of whole images; decision.json asks for more");
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
    Ort::Session session(env, (folder + facts["graph"]["file"].get<std::string>()).c_str(), Ort::SessionOptions{});
    const int64_t height = geometry["size"][0], width = geometry["size"][1], shape[] = {1, 3, height, width};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const char *inputs[] = {"image"}, *outputs[] = {"map", "score"};

    const bool check = std::string(words[2]) == "--check";
    json images = check ? facts["test_vectors"] : json(std::vector<std::string>(words + 2, words + count));
    int wrong = 0;
    for (const json& each : images) {
        const std::string path = check ? folder + each["image"].get<std::string>() : each.get<std::string>();
        Image image;
        uint8_t* pixels = stbi_load(path.c_str(), &image.width, &image.height, nullptr, 3);
        if (!pixels) throw std::runtime_error(path + ": " + stbi_failure_reason());
        image.rgb.assign(pixels, pixels + size_t(3) * image.width * image.height);
        stbi_image_free(pixels);
        std::vector<float> input = prepare(geometry, image);
        auto tensor = Ort::Value::CreateTensor<float>(memory, input.data(), input.size(), shape, 4);
        auto results = session.Run(Ort::RunOptions{}, inputs, &tensor, 1, outputs, 2);
        const float *data = results[0].GetTensorData<float>(), score = *results[1].GetTensorData<float>();
        const std::vector<float> map(data, data + height * width);
        const char* verdict = score > limits["limit"].get<double>() ? "reject"
            : !limits["review_limit"].is_null() && score > limits["review_limit"].get<double>() ? "review" : "pass";
        const auto peak = std::max_element(map.begin(), map.end()) - map.begin();
        std::cout << verdict << "  " << score << "  " << path << "  " << (peak % width + 0.5) / width << " " << (peak / width + 0.5) / height << "\n";
        if (!check) continue;
        const json& tolerance = facts["tolerance"];
        const double factor = std::max({1.0, std::fabs(score) / tolerance["reference_size"].get<double>(),
                                        std::fabs(map[peak]) / tolerance["reference_size"].get<double>()});
        wrong += each["verdict"] != verdict || difference(input, floats(folder + each["input"].get<std::string>())) > 1e-5 ||
                 std::fabs(score - each["score"].get<double>()) > factor * tolerance["score"].get<double>() ||
                 difference(map, floats(folder + each["map"].get<std::string>())) > factor * tolerance["map"].get<double>();
    }
    if (check) std::cout << images.size() - wrong << " of " << images.size() << " test vectors come out\n";
    return wrong ? 1 : 0;
} catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
}

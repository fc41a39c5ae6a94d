// Speech to text without Python: Whisper in onnxruntime, with diba's operators.
//
//   transcribe FOLDER LIBDIBA_ONNXRUNTIME.so SOUND.wav
//
// transcribe.py writes the folder: encoder.onnx, decoder.onnx and whisper.txt. The sound has one channel of 16 bits at
// 16 kHz; its first 30 seconds are heard.
#include <algorithm>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "onnxruntime_c_api.h"
#include "sound.hpp"

namespace {

constexpr std::uint32_t kInterface = 17;  // of onnxruntime 1.17, the oldest that diba's operators run in
constexpr std::size_t kMost = 128;        // tokens of an answer

const OrtApi& ort() {
  static const OrtApi* const api = OrtGetApiBase()->GetApi(kInterface);
  if (api == nullptr) throw std::runtime_error("onnxruntime must be 1.17 or newer");
  return *api;
}

void check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string text = ort().GetErrorMessage(status);
  ort().ReleaseStatus(status);
  throw std::runtime_error(text);
}

// A tensor of onnxruntime's.
struct Release {
  void operator()(OrtValue* value) const { ort().ReleaseValue(value); }
};
using Tensor = std::unique_ptr<OrtValue, Release>;

// One over numbers that stay the caller's.
template <typename T>
Tensor tensor(std::vector<T>& data, const std::vector<std::int64_t>& shape) {
  OrtMemoryInfo* memory = nullptr;
  check(ort().CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
  const auto type =
      std::is_same_v<T, float> ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  T nothing{};  // an empty tensor has an address, too
  OrtValue* made = nullptr;
  OrtStatus* status = ort().CreateTensorWithDataAsOrtValue(
      memory, data.empty() ? &nothing : data.data(), data.size() * sizeof(T), shape.data(), shape.size(), type, &made);
  ort().ReleaseMemoryInfo(memory);
  check(status);
  return Tensor(made);
}

using Named = std::vector<std::pair<std::string, const OrtValue*>>;

class Model {
 public:
  Model(const std::string& path, const std::string& library) {
    check(ort().CreateEnv(ORT_LOGGING_LEVEL_WARNING, "transcribe", &env_));
    OrtSessionOptions* options = nullptr;
    check(ort().CreateSessionOptions(&options));
    check(ort().SetIntraOpNumThreads(options, 1));
    // These two fused nodes are slower on a CPU than the nodes that they stand for.
    check(ort().AddSessionConfigEntry(options, "optimization.disable_specified_optimizers",
                                      "SkipLayerNormFusion;BiasGeluFusion"));
    check(ort().RegisterCustomOpsLibrary_V2(options, library.c_str()));
    check(ort().CreateSession(env_, path.c_str(), options, &session_));
    ort().ReleaseSessionOptions(options);
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  ~Model() {
    ort().ReleaseSession(session_);
    ort().ReleaseEnv(env_);
  }

  std::vector<Tensor> run(const Named& inputs, const std::vector<std::string>& outputs) const {
    std::vector<const char*> names, wanted;
    std::vector<const OrtValue*> values;
    for (const auto& [name, value] : inputs) {
      names.push_back(name.c_str());
      values.push_back(value);
    }
    for (const std::string& name : outputs) wanted.push_back(name.c_str());
    std::vector<OrtValue*> made(outputs.size());
    check(ort().Run(session_, nullptr, names.data(), values.data(), values.size(), wanted.data(), wanted.size(),
                    made.data()));
    return std::vector<Tensor>(made.begin(), made.end());
  }

 private:
  OrtEnv* env_ = nullptr;
  OrtSession* session_ = nullptr;
};

// What whisper.txt says.
struct Facts {
  std::int64_t layers = 0, heads = 0, size = 0;
  std::vector<std::int64_t> begin;
  std::int64_t end = 0;
  std::vector<std::string> texts;  // of each token

  explicit Facts(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    file >> layers >> heads >> size;
    std::getline(file, line);
    std::getline(file, line);
    std::istringstream first(line);
    for (std::int64_t token = 0; first >> token;) begin.push_back(token);
    if (!(file >> end) || begin.empty()) throw std::runtime_error(path + " is missing or damaged");
    std::getline(file, line);
    while (std::getline(file, line)) {
      std::string text;
      for (std::size_t i = 0; i + 1 < line.size(); i += 2) {
        text += static_cast<char>(std::stoi(line.substr(i, 2), nullptr, 16));
      }
      texts.push_back(text);
    }
  }
};

// Answers to features, the likeliest token each time.
std::string transcribe(const std::string& folder, const std::string& library, std::vector<float> features) {
  const Facts facts(folder + "/whisper.txt");
  std::vector<std::string> names;
  for (std::int64_t i = 0; i < 2 * facts.layers; ++i) names.push_back("heard." + std::to_string(i));
  const Tensor heard = tensor(features, {1, sound::kMels, sound::kFrames});
  const std::vector<Tensor> keys = Model(folder + "/encoder.onnx", library).run({{"features", heard.get()}}, names);

  const Model decoder(folder + "/decoder.onnx", library);
  std::vector<float> nothing;
  Tensor past = tensor(nothing, {facts.layers, 2, facts.heads, 0, facts.size});
  std::vector<std::int64_t> tokens = facts.begin;
  std::string answer;
  for (std::size_t at = 0; at < kMost; ++at) {
    std::vector<std::int64_t> token{tokens[at]}, position{static_cast<std::int64_t>(at)};
    const Tensor first = tensor(token, {1, 1}), second = tensor(position, {1, 1});
    Named inputs{{"token", first.get()}, {"position", second.get()}, {"past", past.get()}};
    for (std::size_t i = 0; i < names.size(); ++i) inputs.emplace_back(names[i], keys[i].get());
    std::vector<Tensor> made = decoder.run(inputs, {"scores", "grown"});
    past = std::move(made[1]);
    if (at + 1 < tokens.size()) continue;  // the next one is given

    float* scores = nullptr;
    check(ort().GetTensorMutableData(made[0].get(), reinterpret_cast<void**>(&scores)));
    tokens.push_back(std::max_element(scores, scores + facts.texts.size()) - scores);
    if (tokens.back() == facts.end) break;
    answer += facts.texts[static_cast<std::size_t>(tokens.back())];
  }
  return answer.substr(std::min(answer.find_first_not_of(' '), answer.size()));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: transcribe FOLDER LIBDIBA_ONNXRUNTIME.so SOUND.wav\n";
    return 2;
  }
  try {
    std::cout << transcribe(argv[1], argv[2], sound::log_mel(sound::read_wav(argv[3]))) << "\n";
  } catch (const std::exception& error) {
    std::cerr << "transcribe: " << error.what() << "\n";
    return 1;
  }
  return 0;
}

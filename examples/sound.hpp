// What Whisper hears: a recording, and its spectra on the mel scale.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace sound {

constexpr std::size_t kRate = 16000;               // samples a second
constexpr std::size_t kLongest = 30 * kRate;       // samples that the model hears at once
constexpr std::size_t kWindow = 400, kStep = 160;  // samples of a spectrum, and from one to the next
constexpr std::size_t kBins = kWindow / 2 + 1;     // frequencies of a spectrum
constexpr std::size_t kFrames = kLongest / kStep;  // spectra
constexpr std::size_t kMels = 80;
constexpr double kPi = 3.14159265358979323846;

// Samples from -1 to 1 of a WAV file of one channel, 16 bits, 16 kHz.
inline std::vector<float> read_wav(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
  const auto number = [&](std::size_t at, std::size_t size) {  // little-endian
    std::uint32_t value = 0;
    for (std::size_t i = size; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes.at(at + i));
    return value;
  };
  const auto is = [&](std::size_t at, const char* tag) { return std::memcmp(&bytes.at(at), tag, 4) == 0; };
  if (bytes.size() < 44 || !is(0, "RIFF") || !is(8, "WAVE")) throw std::runtime_error(path + " is no WAV file");
  bool known = false;
  for (std::size_t at = 12; at + 8 <= bytes.size();) {
    const std::size_t length = std::min<std::size_t>(number(at + 4, 4), bytes.size() - at - 8);
    if (is(at, "fmt ") && length >= 16) {
      known =
          number(at + 8, 2) == 1 && number(at + 10, 2) == 1 && number(at + 12, 4) == kRate && number(at + 22, 2) == 16;
    } else if (is(at, "data") && known) {
      std::vector<float> samples(length / 2);
      for (std::size_t i = 0; i < samples.size(); ++i) {
        samples[i] = static_cast<float>(static_cast<std::int16_t>(number(at + 8 + 2 * i, 2))) / 32768.0f;
      }
      return samples;
    }
    at += 8 + length + length % 2;
  }
  throw std::runtime_error(path + " must have one channel of 16 bits at 16,000 Hz");
}

// Slaney's scale: linear up to 1,000 Hz, then logarithmic.
inline double hertz(double mel) { return mel < 15 ? mel * 200 / 3 : 1000 * std::exp((mel - 15) * std::log(6.4) / 27); }

// Triangles over the bins, of equal area, (kMels, kBins).
inline std::vector<double> mel_filters() {
  const double top = 15 + 27 * std::log(8.0) / std::log(6.4);  // 8,000 Hz
  std::vector<double> filters(kMels * kBins);
  for (std::size_t m = 0; m < kMels; ++m) {
    std::array<double, 3> corner{};
    for (std::size_t i = 0; i < 3; ++i) corner[i] = hertz(top * static_cast<double>(m + i) / (kMels + 1));
    for (std::size_t b = 0; b < kBins; ++b) {
      const double f = static_cast<double>(b * kRate) / kWindow;
      const double height =
          std::min((f - corner[0]) / (corner[1] - corner[0]), (corner[2] - f) / (corner[2] - corner[1]));
      filters[m * kBins + b] = std::max(0.0, height) * 2 / (corner[2] - corner[0]);
    }
  }
  return filters;
}

// Powers of the frequencies of kWindow samples, which a window of Hann weighs. By the definition of the transform:
// its 32 million products for a second of sound take less time than the model.
class Spectrum {
 public:
  Spectrum() {
    for (std::size_t i = 0; i < kWindow; ++i) {
      const double angle = 2 * kPi * static_cast<double>(i) / kWindow;
      cos_[i] = std::cos(angle);
      sin_[i] = std::sin(angle);
    }
  }

  void operator()(const float* samples, double* powers) const {
    // Sums and differences of samples that lie alike from both ends: cosines see the first alone, sines the second.
    std::array<double, kBins> even{}, odd{};
    const auto weighed = [&](std::size_t i) { return samples[i] * 0.5 * (1 - cos_[i]); };
    even[0] = weighed(0);
    even[kBins - 1] = weighed(kBins - 1);
    for (std::size_t i = 1; i < kBins - 1; ++i) {
      even[i] = weighed(i) + weighed(kWindow - i);
      odd[i] = weighed(i) - weighed(kWindow - i);
    }
    for (std::size_t b = 0; b < kBins; ++b) {
      double re = 0, im = 0;
      for (std::size_t i = 0, at = 0; i < kBins; ++i, at = (at + b) % kWindow) {
        re += even[i] * cos_[at];
        im += odd[i] * sin_[at];
      }
      powers[b] = re * re + im * im;
    }
  }

 private:
  std::array<double, kWindow> cos_, sin_;
};

// The features of a recording, (kMels, kFrames): what lies beyond 30 s is left out, silence follows a shorter one.
inline std::vector<float> log_mel(std::vector<float> samples) {
  samples.resize(kLongest);
  std::vector<float> padded(kLongest + kWindow);  // each spectrum has its samples around it; mirrored at the ends
  std::copy(samples.begin(), samples.end(), padded.begin() + kWindow / 2);
  for (std::size_t i = 1; i <= kWindow / 2; ++i) {
    padded[kWindow / 2 - i] = samples[i];
    padded[kWindow / 2 + kLongest - 1 + i] = samples[kLongest - 1 - i];
  }
  const std::vector<double> filters = mel_filters();
  const Spectrum spectrum;
  std::vector<double> powers(kBins);
  std::vector<float> features(kMels * kFrames);
  float loudest = -10;
  for (std::size_t t = 0; t < kFrames; ++t) {
    const float* from = &padded[t * kStep];
    const bool silent = std::all_of(from, from + kWindow, [](float x) { return x == 0; });
    if (!silent) spectrum(from, powers.data());
    for (std::size_t m = 0; m < kMels; ++m) {
      double power = 0;
      for (std::size_t b = 0; b < kBins && !silent; ++b) power += filters[m * kBins + b] * powers[b];
      features[m * kFrames + t] = static_cast<float>(std::log10(std::max(power, 1e-10)));
      loudest = std::max(loudest, features[m * kFrames + t]);
    }
  }
  for (float& x : features) x = (std::max(x, loudest - 8) + 4) / 4;
  return features;
}

}  // namespace sound

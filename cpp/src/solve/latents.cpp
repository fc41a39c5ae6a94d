#include "solve/latents.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "runtime/parallel.hpp"

namespace diba {
namespace {

constexpr std::size_t kRows = 16;     // whose crossed entries are gathered in one list
constexpr std::size_t kColumns = 64;  // that are moved before crossed ones are looked for

// Moves `count` entries of row i from column j on; returns whether any crossed zero, and which.
bool move(const Latents& latents, const float* gradient, std::size_t i, std::size_t j, std::size_t count,
          const LatentRule& rule, std::int32_t* crossed) {
  float* values = latents.values + i * latents.cols + j;
  float* mean = latents.mean + i * latents.cols + j;
  const float* inner = latents.inner + j;
  const float outer = latents.outer[i], fresh = rule.fresh, way = rule.way, farthest = rule.farthest;
  if (gradient != nullptr) {
    const float* now = gradient + i * latents.cols + j;
    for (std::size_t c = 0; c < count; ++c) mean[c] += fresh * (now[c] - mean[c]);
  }
  std::int32_t any = 0;
  for (std::size_t c = 0; c < count; ++c) {
    const float before = values[c];
    const float moved = before - (way * (mean[c] * inner[c])) * outer;
    const float low = moved < -farthest ? -farthest : moved;
    const float within = low > farthest ? farthest : low;
    const std::int32_t other = (before >= 0.0F) != (moved >= 0.0F) ? 1 : 0;
    values[c] = other != 0 ? moved : within;
    crossed[c] = other;
    any |= other;
  }
  return any != 0;
}

// How far a latent went that crossed zero; 0 for what is no number, so that sizes have an order.
float size_of(float value) { return std::isnan(value) ? 0.0F : std::fabs(value); }

// The entries of `crossed` that may have crossed, the farthest ones; the others go back.
std::vector<std::int64_t> let_few_cross(float* values, std::vector<std::int64_t> crossed, const LatentRule& rule) {
  if (crossed.size() > rule.most) {
    std::vector<float> sizes;
    sizes.reserve(crossed.size());
    for (const std::int64_t entry : crossed) sizes.push_back(size_of(values[entry]));
    const auto last = sizes.begin() + static_cast<std::ptrdiff_t>(rule.most);  // the first that is too many
    std::nth_element(sizes.begin(), last, sizes.end(), std::greater<>());
    const float least = *last;
    auto equal = static_cast<std::size_t>(std::count(sizes.begin(), last, least));  // of that size, that may cross
    std::size_t kept = 0;
    for (const std::int64_t entry : crossed) {
      float& value = values[entry];
      const float size = size_of(value);
      if (size > least || (size == least && equal > 0)) {
        if (size == least) --equal;
        crossed[kept++] = entry;
      } else {
        value = value < 0.0F ? rule.edge : -rule.edge;
      }
    }
    crossed.resize(kept);
  }
  for (const std::int64_t entry : crossed) values[entry] = std::clamp(values[entry], -rule.farthest, rule.farthest);
  return crossed;
}

}  // namespace

std::vector<std::int64_t> step_latents(const Latents& latents, const float* gradient, const LatentRule& rule,
                                       int threads) {
  const std::size_t lists = (latents.rows + kRows - 1) / kRows;
  std::vector<std::vector<std::int64_t>> found(lists);
  const double work = static_cast<double>(latents.rows) * static_cast<double>(latents.cols);
  parallel_for(lists, 1, work, threads, [&](std::size_t begin, std::size_t end) {
    std::int32_t crossed[kColumns];
    for (std::size_t list = begin; list < end; ++list)
      for (std::size_t i = list * kRows; i < std::min(latents.rows, (list + 1) * kRows); ++i)
        for (std::size_t j = 0; j < latents.cols; j += kColumns) {
          const std::size_t count = std::min(kColumns, latents.cols - j);
          if (!move(latents, gradient, i, j, count, rule, crossed)) continue;
          for (std::size_t c = 0; c < count; ++c)
            if (crossed[c] != 0) found[list].push_back(static_cast<std::int64_t>(i * latents.cols + j + c));
        }
  });
  std::vector<std::int64_t> all;
  for (const std::vector<std::int64_t>& list : found) all.insert(all.end(), list.begin(), list.end());
  return let_few_cross(latents.values, std::move(all), rule);
}

}  // namespace diba

// Steps of latent numbers: float64 bounds, the entries that crossed zero, equal bytes for every thread count.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <string>

#include "check.hpp"
#include "data.hpp"
#include "solve/latents.hpp"

namespace {

using Floats = std::vector<float>;
using data::wide;

constexpr float kFarthest = 2.0F, kEdge = 1e-6F;
constexpr std::size_t kAll = SIZE_MAX;
constexpr diba::LatentRule kRule{0.1F, 0.7F, kFarthest, kEdge, kAll};

struct Problem {
  std::size_t rows, cols;
  Floats values, mean, outer, inner, gradient;

  Problem(std::size_t r, std::size_t c, unsigned seed)
      : rows(r),
        cols(c),
        values(data::normals(r * c, seed)),
        mean(data::normals(r * c, seed + 1)),
        outer(data::normals(r, seed + 2)),
        inner(data::normals(c, seed + 3)),
        gradient(data::normals(r * c, seed + 4)) {
    values[0] = 0.0F;  // on the upper side
    values.back() = 1.9F;
  }

  std::vector<std::int64_t> step(bool with_gradient, int threads, std::size_t most = kAll) {
    const diba::Latents latents{values.data(), mean.data(), outer.data(), inner.data(), rows, cols};
    diba::LatentRule rule = kRule;
    rule.most = most;
    return diba::step_latents(latents, with_gradient ? gradient.data() : nullptr, rule, threads);
  }
};

void check_step(std::size_t rows, std::size_t cols, bool with_gradient) {
  const std::string name = std::to_string(rows) + "x" + std::to_string(cols) + (with_gradient ? "" : ", no gradient");
  const Problem before(rows, cols, static_cast<unsigned>(rows + 7 * cols));
  Problem after = before;
  const std::vector<std::int64_t> crossed = after.step(with_gradient, 1);
  bool averaged = true, moved = true;
  std::vector<std::int64_t> expected;
  for (std::size_t e = 0; e < rows * cols; ++e) {
    double mean = wide(before.mean[e]);
    if (with_gradient) mean += wide(kRule.fresh) * (wide(before.gradient[e]) - mean);
    const double scale = std::fabs(wide(before.mean[e])) + std::fabs(wide(before.gradient[e]));
    averaged = averaged && std::fabs(wide(after.mean[e]) - mean) <= 3 * FLT_EPSILON * scale;
    // From the average as it was rounded: four more roundings.
    const double step =
        wide(kRule.way) * wide(after.mean[e]) * wide(before.inner[e % cols]) * wide(before.outer[e / cols]);
    const double to = wide(before.values[e]) - step;
    const double bound = 3 * FLT_EPSILON * (std::fabs(step) + std::fabs(to));
    if (std::fabs(to) <= bound) continue;  // rounding decides on the side
    const bool crosses = (before.values[e] >= 0.0F) != (to >= 0.0);
    if (crosses) expected.push_back(static_cast<std::int64_t>(e));
    const double kept = std::min(std::max(to, -wide(kFarthest)), wide(kFarthest));
    moved = moved && std::fabs(wide(after.values[e]) - kept) <= bound;
  }
  CHECK_IN(averaged, name);
  CHECK_IN(moved, name);
  CHECK_IN(crossed == expected, name);
  for (const int threads : {2, 3, 8}) {
    Problem again = before;
    const bool same = again.step(with_gradient, threads) == crossed;
    CHECK_IN(same && again.values == after.values && again.mean == after.mean, name);
  }
}

// Zero is on the upper side, whatever its sign.
void check_sides() {
  Floats values{0.0F, -0.0F, -FLT_MIN, 1.0F, 1.5F, -1.5F}, mean{1.0F, -1.0F, -2.0F, 100.0F, -9.0F, 9.0F};
  const Floats outer{1.0F}, inner{1.0F, 1.0F, 1.0F, 1.0F, 1.0F, 1.0F};
  const diba::Latents latents{values.data(), mean.data(), outer.data(), inner.data(), 1, 6};
  const std::vector<std::int64_t> crossed =
      diba::step_latents(latents, nullptr, {0.1F, 1.0F, kFarthest, kEdge, kAll}, 1);
  CHECK((crossed == std::vector<std::int64_t>{0, 2, 3}));
  CHECK((values == Floats{-1.0F, 1.0F, 2.0F, -2.0F, 2.0F, -2.0F}));
}

// Of those that would cross, a sort by how far says which do; all others wait at their side's edge.
void check_few(std::size_t rows, std::size_t cols) {
  Problem before(rows, cols, 77);
  for (std::size_t e = 2; e < 10; ++e) {  // of one size, on both sides
    before.mean[e] = before.gradient[e] = (e % 2 == 0 ? 8.0F : -8.0F);
    before.inner[e] = 1.0F;
    before.values[e] = e % 2 == 0 ? 1.0F : -1.0F;
  }
  before.outer[0] = 1.0F;
  Problem unlimited = before;
  std::vector<std::int64_t> order = unlimited.step(true, 1);
  diba::LatentRule far = kRule;
  far.farthest = FLT_MAX;  // so that sizes are seen
  Problem sizes = before;
  const diba::Latents latents{
      sizes.values.data(), sizes.mean.data(), sizes.outer.data(), sizes.inner.data(), rows, cols};
  CHECK(diba::step_latents(latents, sizes.gradient.data(), far, 1) == order);
  const auto size = [&](std::int64_t e) { return std::fabs(sizes.values[static_cast<std::size_t>(e)]); };
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return size(a) > size(b); });
  for (const std::size_t most :
       {std::size_t{0}, std::size_t{1}, std::size_t{3}, order.size() / 2, order.size() - 1, order.size()}) {
    std::vector<std::int64_t> expected(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(most));
    std::sort(expected.begin(), expected.end());
    Floats values = unlimited.values;
    for (std::size_t i = most; i < order.size(); ++i) {
      const auto e = static_cast<std::size_t>(order[i]);
      values[e] = before.values[e] >= 0.0F ? kEdge : -kEdge;
    }
    Problem after = before;
    CHECK(after.step(true, 2, most) == expected);
    CHECK(after.values == values);
  }
}

// Gradients that are no numbers have no order; no more cross than may.
void check_no_numbers() {
  Problem problem(1, 64, 5);
  problem.gradient.assign(64, std::nanf(""));
  CHECK(problem.step(true, 1, 3).size() == 3);
}

}  // namespace

int main() {
  for (const bool with_gradient : {true, false}) {
    for (const std::size_t cols : {1U, 63U, 64U, 65U, 200U}) check_step(5, cols, with_gradient);
    for (const std::size_t rows : {1U, 15U, 16U, 17U, 1024U}) check_step(rows, 130, with_gradient);
  }
  check_sides();
  check_few(3, 65);
  check_few(40, 130);
  check_no_numbers();
  return check::done();
}

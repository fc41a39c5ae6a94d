// greedy_rows against a float64 search that recomputes every objective from its definition.

#include <cmath>
#include <cstdint>
#include <string>

#include "check.hpp"
#include "data.hpp"
#include "diba/greedy.hpp"

namespace {

// A (rows, n) ~ diag(d) B C with C (k, n): what the search sees is H = C C^T, G = C R^T, d and the bits.
struct Problem {
  std::size_t rows, k, n;
  bool signs;
  std::vector<float> a, c, d;
  std::vector<std::uint64_t> words;

  Problem(std::size_t rows_, std::size_t k_, std::size_t n_, bool signs_, unsigned seed)
      : rows(rows_),
        k(k_),
        n(n_),
        signs(signs_),
        a(data::normals(rows_ * n_, seed)),
        c(data::normals(k_ * n_, seed + 1)),
        d(data::normals(rows_, seed + 2)),
        words(data::bits(rows_, k_, seed + 3)) {
    if (rows > 2) d[1] = 0.0F;  // an unused row: nothing to gain
  }

  double entry(const std::vector<std::uint64_t>& bits, std::size_t i, std::size_t j) const {
    const bool set = diba::BitView{bits.data(), rows, k}.get(i, j);
    return signs ? (set ? 1.0 : -1.0) : (set ? 1.0 : 0.0);
  }

  std::vector<double> residual(const std::vector<std::uint64_t>& bits, std::size_t i) const {
    std::vector<double> r(n);
    for (std::size_t q = 0; q < n; ++q) {
      double sum = 0.0;
      for (std::size_t j = 0; j < k; ++j) sum += entry(bits, i, j) * static_cast<double>(c[j * n + q]);
      r[q] = static_cast<double>(a[i * n + q]) - static_cast<double>(d[i]) * sum;
    }
    return r;
  }

  double objective(const std::vector<std::uint64_t>& bits, std::size_t i) const {
    double sum = 0.0;
    for (const double r : residual(bits, i)) sum += r * r;
    return sum;
  }

  std::vector<float> gram() const {
    std::vector<float> h(k * k);
    for (std::size_t j = 0; j < k; ++j)
      for (std::size_t l = 0; l < k; ++l) {
        double sum = 0.0;
        for (std::size_t q = 0; q < n; ++q)
          sum += static_cast<double>(c[j * n + q]) * static_cast<double>(c[l * n + q]);
        h[j * k + l] = static_cast<float>(sum);
      }
    return h;
  }

  std::vector<float> correlations(const std::vector<std::uint64_t>& bits) const {
    std::vector<float> g(rows * k);
    for (std::size_t i = 0; i < rows; ++i) {
      const std::vector<double> r = residual(bits, i);
      for (std::size_t j = 0; j < k; ++j) {
        double sum = 0.0;
        for (std::size_t q = 0; q < n; ++q) sum += static_cast<double>(c[j * n + q]) * r[q];
        g[i * k + j] = static_cast<float>(sum);
      }
    }
    return g;
  }
};

void flip(std::vector<std::uint64_t>& words, std::size_t row_words, std::size_t i, std::size_t j) {
  words[i * row_words + j / 64] ^= std::uint64_t{1} << (j % 64);
}

// The published search, objective by objective: take the best flip of the row while one pays.
std::uint64_t brute_force(const Problem& p, std::vector<std::uint64_t>& words) {
  std::uint64_t flips = 0;
  for (std::size_t i = 0; i < p.rows; ++i) {
    for (;;) {
      double best = p.objective(words, i) * (1.0 - 1e-6);
      std::size_t at = p.k;
      for (std::size_t j = 0; j < p.k; ++j) {
        flip(words, diba::words_for(p.k), i, j);
        const double value = p.objective(words, i);
        if (value < best) best = value, at = j;
        flip(words, diba::words_for(p.k), i, j);
      }
      if (at == p.k) break;
      flip(words, diba::words_for(p.k), i, at);
      ++flips;
    }
  }
  return flips;
}

struct Outcome {
  std::vector<std::uint64_t> words;
  std::vector<float> correlations;
  diba::FlipResult result;
};

Outcome run(const Problem& p, bool cyclic, int threads) {
  const data::Guarded<float> h(p.gram());
  const data::Guarded<float> d(p.d);
  data::Guarded<float> g(p.correlations(p.words));
  data::Guarded<std::uint64_t> words(p.words);
  const diba::FlipResult result =
      diba::greedy_rows(h.data(), g.data(), d.data(), {words.data(), p.rows, p.k}, p.signs, cyclic, threads);
  return {words.copy(), g.copy(), result};
}

void search(const Problem& p, bool cyclic, const std::string& name) {
  diba::select("scalar");
  const Outcome specified = run(p, cyclic, 1);
  check::for_each_isa([&](const std::string& isa) {
    for (const int threads : {1, 3}) {
      const Outcome outcome = run(p, cyclic, threads);
      CHECK_IN(data::same_bytes(outcome.words, specified.words), name + " " + isa);
      CHECK_IN(data::same_bytes(outcome.correlations, specified.correlations), name + " " + isa);
      CHECK_IN(outcome.result.flips == specified.result.flips, name + " " + isa);
      CHECK_IN(outcome.result.decrease == specified.result.decrease, name + " " + isa);
    }
  });

  double before = 0.0, after = 0.0;
  bool optimal = true;
  std::vector<std::uint64_t> words = specified.words;
  for (std::size_t i = 0; i < p.rows; ++i) {
    before += p.objective(p.words, i);
    const double reached = p.objective(words, i);
    after += reached;
    for (std::size_t j = 0; j < p.k; ++j) {
      flip(words, diba::words_for(p.k), i, j);
      optimal = optimal && p.objective(words, i) >= reached * (1.0 - 1e-5);
      flip(words, diba::words_for(p.k), i, j);
    }
  }
  CHECK_IN(optimal, name + ": no single flip may improve");
  CHECK_IN(std::fabs(before - after - specified.result.decrease) <= 1e-5 * before, name + ": reported decrease");
  CHECK_IN(specified.result.flips > 0, name + ": something to do");
  CHECK_IN(diba::tails_are_zero({words.data(), p.rows, p.k}), name + ": tails");

  const std::vector<float> fresh = p.correlations(words);
  float scale = 0.0F, error = 0.0F;
  for (std::size_t e = 0; e < fresh.size(); ++e) {
    scale = std::fmax(scale, std::fabs(fresh[e]));
    error = std::fmax(error, std::fabs(fresh[e] - specified.correlations[e]));
  }
  CHECK_IN(error <= 1e-3F * scale, name + ": correlations kept up to date");

  if (!cyclic) {
    std::vector<std::uint64_t> expected = p.words;
    const std::uint64_t flips = brute_force(p, expected);
    CHECK_IN(data::same_bytes(expected, specified.words), name + ": same bits as brute force");
    CHECK_IN(flips == specified.result.flips, name + ": same number of flips as brute force");
  }
}

// residual_correlations against residuals written out: with the scales given, and with the scales fitted.
void residuals(const Problem& p, bool fit) {
  // C = diag(inner) X^T, so X^T a_i = (C a_i) / inner.
  const std::vector<float> inner(p.k, 0.5F);
  Problem whole = p;
  whole.d.assign(p.rows, 0.0F);
  std::vector<float> correlations = whole.correlations(p.words);  // C a_i
  for (float& t : correlations) t *= 2.0F;
  const std::vector<float> h = p.gram();
  std::vector<float> specified, specified_scale;
  check::for_each_isa([&](const std::string& isa) {
    for (const int threads : {1, 3}) {
      std::vector<float> g(p.rows * p.k), scale = p.d;
      const double decrease =
          diba::residual_correlations(h.data(), correlations.data(), inner.data(), {p.words.data(), p.rows, p.k},
                                      p.signs, fit, scale.data(), g.data(), threads);
      if (specified.empty()) specified = g, specified_scale = scale;
      CHECK_IN(data::same_bytes(g, specified) && data::same_bytes(scale, specified_scale), isa);
      Problem after = p;
      after.d = scale;
      double fell = 0.0, before = 0.0;
      bool best = true;
      for (std::size_t i = 0; i < p.rows; ++i) {
        const double reached = after.objective(p.words, i);
        before += p.objective(p.words, i);
        fell += p.objective(p.words, i) - reached;
        for (const float factor : {0.99F, 1.01F}) {  // a parabola: no neighbour may be lower
          Problem moved = after;
          moved.d[i] = factor * scale[i] + (factor - 1.0F);
          best = best && (!fit || moved.objective(p.words, i) >= reached * (1.0 - 1e-6));
        }
      }
      CHECK_IN(std::fabs(fell - decrease) <= 1e-5 * before, isa + ": reported decrease");
      CHECK_IN(best, isa + ": closed form");
      const std::vector<float> expected = after.correlations(p.words);
      float size = 0.0F, error = 0.0F;
      for (std::size_t e = 0; e < g.size(); ++e) {
        size = std::fmax(size, std::fabs(correlations[e]));
        error = std::fmax(error, std::fabs(g[e] - expected[e]));
      }
      // 2 k roundings of float32 in sums of that size, and some for the Gram matrix
      CHECK_IN(error <= 4.0F * static_cast<float>(p.k + p.n) * 1.2e-7F * size, isa + ": residual correlations");
    }
  });
}

}  // namespace

int main() {
  for (const bool signs : {false, true}) {
    for (const std::size_t k : {1U, 2U, 7U, 8U, 9U, 15U, 16U, 17U, 31U, 33U, 63U, 64U, 65U, 100U}) {
      for (const bool cyclic : {false, true}) {
        const Problem p(4, k, k + 20, signs, static_cast<unsigned>(k));
        search(p, cyclic,
               std::string(signs ? "signs" : "binary") + (cyclic ? " cyclic k " : " best k ") + std::to_string(k));
      }
    }
  }
  for (const bool signs : {false, true})
    for (const bool fit : {false, true})
      for (const std::size_t k : {1U, 5U, 64U, 70U}) residuals(Problem(6, k, k + 9, signs, 11), fit);
  const Problem wide(300, 130, 60, false, 5);  // enough rows for several threads
  diba::select("scalar");
  const Outcome one = run(wide, false, 1);
  check::for_each_isa([&](const std::string& isa) {
    const Outcome many = run(wide, false, 7);
    CHECK_IN(data::same_bytes(many.words, one.words) && many.result.decrease == one.result.decrease, isa);
  });
  return check::done();
}

// greedy_rows against a float64 search that recomputes every objective from its definition.

#include <cmath>
#include <cstdint>
#include <string>

#include "check.hpp"
#include "data.hpp"
#include "row_problem.hpp"
#include "solve/greedy.hpp"

namespace {

using Problem = RowProblem;

struct BestPair {
  double gain;
  std::size_t first, second;
};

// The best two flips of row i, from |r - m_j - m_l|^2 of every two with m_j = d s_j c_j.
BestPair best_pair(const Problem& p, const std::vector<std::uint64_t>& words, std::size_t i) {
  const std::vector<double> r = p.residual(words, i);
  std::vector<double> moves(p.k * p.n);
  for (std::size_t j = 0; j < p.k; ++j) {
    const double s = (p.signs ? 2.0 : 1.0) * (p.entry(words, i, j) > 0.0 ? -1.0 : 1.0);
    for (std::size_t q = 0; q < p.n; ++q)
      moves[j * p.n + q] = s * static_cast<double>(p.d[i]) * static_cast<double>(p.c[j * p.n + q]);
  }
  BestPair best{0.0, p.k, p.k};
  for (std::size_t j = 0; j < p.k; ++j) {
    for (std::size_t l = j + 1; l < p.k; ++l) {
      const double* first = moves.data() + j * p.n;
      const double* second = moves.data() + l * p.n;
      double gain = 0.0;
      for (std::size_t q = 0; q < p.n; ++q) {
        const double moved = first[q] + second[q];
        gain += moved * (2.0 * r[q] - moved);
      }
      if (gain > best.gain) best = {gain, j, l};
    }
  }
  return best;
}

// The search objective by objective: take the best flip of the row while one pays, then the best pair if asked.
std::uint64_t brute_force(const Problem& p, bool pairs, std::vector<std::uint64_t>& words) {
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
      if (at < p.k) {
        flip(words, diba::words_for(p.k), i, at);
        ++flips;
        continue;
      }
      if (!pairs) break;
      const BestPair pair = best_pair(p, words, i);
      if (!(pair.gain > 1e-6 * p.objective(words, i))) break;
      flip(words, diba::words_for(p.k), i, pair.first);
      flip(words, diba::words_for(p.k), i, pair.second);
      flips += 2;
    }
  }
  return flips;
}

struct Outcome {
  std::vector<std::uint64_t> words;
  std::vector<float> correlations;
  diba::FlipResult result;
};

Outcome run(const Problem& p, bool pairs, int threads) {
  const data::Guarded<float> h(p.gram());
  const data::Guarded<float> d(p.d);
  data::Guarded<float> g(p.correlations(p.words));
  data::Guarded<std::uint64_t> words(p.words);
  const diba::FlipResult result =
      diba::greedy_rows(h.data(), g.data(), d.data(), {words.data(), p.rows, p.k}, p.signs, pairs, threads);
  return {words.copy(), g.copy(), result};
}

// Returns the number of flips. Where flips tie, rounding may choose another one than brute force does.
std::uint64_t search(const Problem& p, bool pairs, const std::string& name, bool ties = false) {
  diba::select("scalar");
  const Outcome specified = run(p, pairs, 1);
  check::for_each_isa([&](const std::string& isa) {
    for (const int threads : {1, 3}) {
      const Outcome outcome = run(p, pairs, threads);
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
    optimal = optimal && (!pairs || best_pair(p, words, i).gain <= 1e-5 * reached);
  }
  CHECK_IN(optimal, name + ": no flip may improve");
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

  if (!ties) {
    std::vector<std::uint64_t> expected = p.words;
    const std::uint64_t flips = brute_force(p, pairs, expected);
    CHECK_IN(data::same_bytes(expected, specified.words), name + ": same bits as brute force");
    CHECK_IN(flips == specified.result.flips, name + ": same number of flips as brute force");
  }
  return specified.result.flips;
}

// As a side of 0/1 factors: C = diag(d2) B2, so that H_jl has the sign of d2_j d2_l. d2 alternates and row sums of A
// are those of half the bits, which is what makes single flips stop early.
Problem balanced(std::size_t rows, std::size_t k, std::size_t n, unsigned seed) {
  Problem p(rows, k, n, false, seed);
  for (std::size_t j = 0; j < k; ++j)
    for (std::size_t q = 0; q < p.n; ++q)
      p.c[j * p.n + q] =
          p.c[j * p.n + q] > 0.0F ? (j % 2 == 0 ? 1.0F : -1.0F) * (1.0F + 0.01F * static_cast<float>(j)) : 0.0F;
  return p;
}

// Singles and pairs on top of each other, in both forms of the Gram matrix.
void pair_searches() {
  std::uint64_t singles = 0, pairs = 0;
  for (const std::size_t k : {1U, 2U, 3U, 17U, 63U, 64U, 65U}) {
    for (const bool signs : {false, true})
      search(Problem(4, k, k + 20, signs, static_cast<unsigned>(k)), true, "pairs k " + std::to_string(k));
    const Problem p = balanced(4, k, k + 20, static_cast<unsigned>(k) + 50);
    singles += search(p, false, "balanced singles k " + std::to_string(k));
    pairs += search(p, true, "balanced pairs k " + std::to_string(k));
  }
  CHECK(pairs > singles + 10);
}

// Components that come twice: their pairs tie, and one of two equal flips undoes the other.
void repeated_components() {
  for (const bool signs : {false, true}) {
    for (const std::size_t k : {2U, 6U, 66U}) {
      Problem p(3, k, 30, signs, static_cast<unsigned>(k) + 70);
      for (std::size_t j = k / 2; j < k; ++j)
        for (std::size_t q = 0; q < p.n; ++q) p.c[j * p.n + q] = p.c[(j - k / 2) * p.n + q];
      search(p, true, "repeated components k " + std::to_string(k), true);
    }
  }
}

// Few equations and many bits: more bits may take part in a pair than one block of partners holds.
void many_partners() { search(balanced(1, 500, 12, 9), true, "many partners"); }

// A flip that gains 0.8 of the threshold does not pay, nor does the same flip twice. The other components point away
// from each other, so that no sides can be told.
void no_bit_pairs_with_itself() {
  Problem p(1, 4, 3, false, 1);
  p.c = {1.0F, 0.0F, 0.0F, -0.5F, 0.75F, 0.0F, -0.5F, -0.75F, 0.0F, 0.0F, 0.0F, 0x1p-15F};
  p.a = {0.0F, 0.0F, 0.8F * 0x1p-6F + 0x1p-16F};
  p.d = {1.0F};
  p.words = {0};
  check::for_each_isa([&](const std::string& isa) { CHECK_IN(run(p, true, 1).result.flips == 0, isa); });
}

// Nothing to gain: bits and correlations stay.
void nothing_to_gain() {
  Problem p(3, 70, 20, false, 4);
  p.d.assign(p.rows, 0.0F);
  check::for_each_isa([&](const std::string& isa) {
    const Outcome outcome = run(p, true, 1);
    CHECK_IN(outcome.result.flips == 0 && outcome.result.decrease == 0.0, isa);
    CHECK_IN(data::same_bytes(outcome.words, p.words), isa);
    CHECK_IN(data::same_bytes(outcome.correlations, p.correlations(p.words)), isa);
  });
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
      const Problem p(4, k, k + 20, signs, static_cast<unsigned>(k));
      search(p, false, std::string(signs ? "signs" : "binary") + " k " + std::to_string(k));
    }
  }
  for (const bool signs : {false, true})
    for (const bool fit : {false, true})
      for (const std::size_t k : {1U, 5U, 64U, 70U}) residuals(Problem(6, k, k + 9, signs, 11), fit);
  pair_searches();
  repeated_components();
  many_partners();
  no_bit_pairs_with_itself();
  nothing_to_gain();
  const Problem wide(300, 130, 60, false, 5);  // enough rows for several threads
  for (const bool pairs : {false, true}) {
    diba::select("scalar");
    const Outcome one = run(wide, pairs, 1);
    check::for_each_isa([&](const std::string& isa) {
      const Outcome many = run(wide, pairs, 7);
      CHECK_IN(data::same_bytes(many.words, one.words) && many.result.decrease == one.result.decrease, isa);
    });
  }
  return check::done();
}

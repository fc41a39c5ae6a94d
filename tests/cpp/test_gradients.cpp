// A layer in training: products that equal those of a new packed copy to the byte, whatever the diagonals were before;
// gradients against float64, equal bytes on every instruction set and thread count; no access past the end of any
// buffer.

#include <cmath>
#include <deque>
#include <string>
#include <thread>

#include "check.hpp"
#include "data.hpp"
#include "product/packed_store.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/tuning.hpp"

namespace {

struct Sizes {
  std::size_t rows, k, cols;
  bool signs;
};

struct Model {
  explicit Model(const Sizes& s) : sizes(s), words1(data::bits(s.rows, s.k, 4)), words2(data::bits(s.k, s.cols, 5)) {
    set_diagonals(1);
  }

  void set_diagonals(unsigned seed) {
    d1 = data::normals(sizes.rows, seed);
    d2 = data::normals(sizes.k, seed + 1);
    d3 = data::normals(sizes.cols, seed + 2);
  }

  diba::Scales scales() const { return {d1.data(), d2.data(), d3.data()}; }
  diba::BitView left() const { return {words1.data(), sizes.rows, sizes.k}; }
  diba::BitView right() const { return {words2.data(), sizes.k, sizes.cols}; }
  double bit(const diba::BitView& bits, std::size_t i, std::size_t j) const {
    return data::bit(bits, i, j) ? 1.0 : sizes.signs ? -1.0 : 0.0;
  }

  Sizes sizes;
  std::vector<std::uint64_t> words1, words2;
  std::vector<float> d1, d2, d3;
};

// Bits that stay under diagonals that change.
class Layer {
 public:
  explicit Layer(const Model& model) : bits_(model.left(), model.right(), model.sizes.signs, diba::active()) {}

  std::size_t bytes() const { return bits_.bytes(); }
  void multiply(const diba::Scales& s, const float* x, std::size_t count, const float* bias, float* y,
                int threads) const {
    bits_.multiply(*latest_.get(bits_, s), x, count, bias, y, threads);
  }
  void gradients(const diba::Scales& s, const float* x, const float* g, std::size_t count, const diba::Gradients& out,
                 int threads) const {
    const auto turned = latest_turned_.get(bits_.transposed(), {s.d3, s.d2, s.d1});
    bits_.gradients(*latest_.get(bits_, s), *turned, x, g, count, out, threads);
  }

 private:
  diba::Packed bits_;
  diba::LatestDiagonals latest_, latest_turned_;
};

struct Exact {
  std::vector<double> x, d1, d2, d3;
};

std::vector<double> times(const Model& model, const diba::BitView& bits, const std::vector<double>& x,
                          bool transposed) {
  std::vector<double> y(transposed ? bits.cols : bits.rows);
  for (std::size_t i = 0; i < bits.rows; ++i)
    for (std::size_t j = 0; j < bits.cols; ++j) {
      const double entry = model.bit(bits, i, j);
      y[transposed ? j : i] += entry * x[transposed ? i : j];
    }
  return y;
}

std::vector<double> scaled(const float* x, const std::vector<float>& d) {
  std::vector<double> y(d.size());
  for (std::size_t i = 0; i < d.size(); ++i) y[i] = static_cast<double>(x[i]) * static_cast<double>(d[i]);
  return y;
}

// By the chain rule in float64, one vector at a time.
Exact exact(const Model& model, const std::vector<float>& x, const std::vector<float>& g, std::size_t count) {
  const Sizes& s = model.sizes;
  Exact out{std::vector<double>(count * s.cols), std::vector<double>(s.rows), std::vector<double>(s.k),
            std::vector<double>(s.cols)};
  for (std::size_t c = 0; c < count; ++c) {
    const float *xc = x.data() + c * s.cols, *gc = g.data() + c * s.rows;
    const std::vector<double> u = times(model, model.right(), scaled(xc, model.d3), false);
    const std::vector<double> w = times(model, model.left(), scaled(gc, model.d1), true);
    std::vector<double> scaled_u(s.k), scaled_w(s.k);
    for (std::size_t j = 0; j < s.k; ++j) {
      scaled_u[j] = u[j] * static_cast<double>(model.d2[j]);
      scaled_w[j] = w[j] * static_cast<double>(model.d2[j]);
      out.d2[j] += u[j] * w[j];
    }
    const std::vector<double> v = times(model, model.left(), scaled_u, false);
    const std::vector<double> z = times(model, model.right(), scaled_w, true);
    for (std::size_t i = 0; i < s.rows; ++i) out.d1[i] += v[i] * static_cast<double>(gc[i]);
    for (std::size_t l = 0; l < s.cols; ++l) {
      out.d3[l] += z[l] * static_cast<double>(xc[l]);
      out.x[c * s.cols + l] = z[l] * static_cast<double>(model.d3[l]);
    }
  }
  return out;
}

// Whether the error is below -40 dB: what the fast products promise of whole results.
bool close(const std::vector<float>& found, const std::vector<double>& expected) {
  double signal = 0.0, noise = 0.0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    signal += expected[i] * expected[i];
    noise += (static_cast<double>(found[i]) - expected[i]) * (static_cast<double>(found[i]) - expected[i]);
  }
  return noise * 1e4 <= signal;
}

void check_products(const Model& model, const Layer& layer, const std::string& where) {
  const Sizes& s = model.sizes;
  constexpr std::size_t kCount = 5;
  const std::vector<float> x = data::normals(kCount * s.cols, 6), bias = data::normals(s.rows, 7);
  const diba::PackedFactorization packed(model.left(), model.right(), s.signs, model.scales(), diba::active());
  std::vector<float> expected(kCount * s.rows), found(kCount * s.rows, NAN);
  packed.multiply(x.data(), kCount, bias.data(), expected.data(), 1);
  layer.multiply(model.scales(), x.data(), kCount, bias.data(), found.data(), 2);
  CHECK_IN(data::same_bytes(found, expected), where);
}

std::vector<float> all_gradients(const Model& model, const Layer& layer, const std::vector<float>& x,
                                 const std::vector<float>& g, std::size_t count, int threads, bool of_x) {
  const Sizes& s = model.sizes;
  data::Guarded<float> gx(of_x ? count * s.cols : 0), g1(s.rows), g2(s.k), g3(s.cols);
  layer.gradients(model.scales(), x.data(), g.data(), count,
                  {of_x ? gx.data() : nullptr, g1.data(), g2.data(), g3.data()}, threads);
  std::vector<float> all = gx.copy();
  for (const std::vector<float>& part : {g1.copy(), g2.copy(), g3.copy()})
    all.insert(all.end(), part.begin(), part.end());
  return all;
}

void check_gradients(const Model& model, const Layer& layer, std::size_t count, std::vector<float>* first,
                     const std::string& where) {
  const Sizes& s = model.sizes;
  const std::vector<float> x = data::normals(count * s.cols, 8), g = data::normals(count * s.rows, 9);
  const std::vector<float> all = all_gradients(model, layer, x, g, count, 1, true);
  if (first->empty()) *first = all;
  CHECK_IN(data::same_bytes(all, *first), where);
  for (const int threads : {2, 3})
    CHECK_IN(data::same_bytes(all_gradients(model, layer, x, g, count, threads, true), all), where);
  const auto inputs = static_cast<long>(count * s.cols);
  const std::vector<float> without = all_gradients(model, layer, x, g, count, 2, false);
  CHECK_IN(data::same_bytes(without, std::vector<float>(all.begin() + inputs, all.end())), where);

  const Exact expected = exact(model, x, g, count);
  CHECK_IN(close(std::vector<float>(all.begin(), all.begin() + inputs), expected.x), where + " x");
  long at = inputs;
  for (const auto& [name, part] : {std::pair("d1", expected.d1), {"d2", expected.d2}, {"d3", expected.d3}}) {
    const auto end = at + static_cast<long>(part.size());
    CHECK_IN(close(std::vector<float>(all.begin() + at, all.begin() + end), part), where + " " + name);
    at = end;
  }
}

void check_sizes(const Sizes& sizes) {
  Model model(sizes);
  std::vector<float> first[2];
  const std::string name = std::to_string(sizes.rows) + "x" + std::to_string(sizes.cols);
  check::for_each_isa([&](const std::string& isa) {
    const Layer layer(model);
    const std::size_t before = layer.bytes();
    for (const unsigned round : {0U, 1U, 0U}) {  // new diagonals under the same bits, and the old ones again
      model.set_diagonals(10 * round + 1);
      const std::string where = isa + " " + name + (sizes.signs ? " signs" : " binary");
      check_products(model, layer, where);
      check_gradients(model, layer, round == 0 ? 70 : 130, &first[round], where);
    }
    CHECK(layer.bytes() > before);  // the transposes are packed by the first gradient
  });
}

// Several threads in one new layer, each with diagonals of its own.
void check_threads(bool signs) {
  constexpr std::size_t kThreads = 3, kCount = 4;
  const Sizes sizes{97, 70, 65, signs};
  const std::vector<float> x = data::normals(kCount * sizes.cols, 8), g = data::normals(kCount * sizes.rows, 9);
  std::deque<Model> models;
  std::vector<std::vector<float>> expected;
  for (std::size_t i = 0; i < kThreads; ++i) {
    models.emplace_back(sizes).set_diagonals(static_cast<unsigned>(10 * i + 1));
    const Layer alone(models[i]);
    expected.push_back(all_gradients(models[i], alone, x, g, kCount, 1, true));
  }
  const Layer layer(models[0]);
  bool same[kThreads] = {};
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i)
    threads.emplace_back([&, i] {
      same[i] = true;
      for (int round = 0; round < 50; ++round)
        same[i] &= data::same_bytes(all_gradients(models[i], layer, x, g, kCount, 1, true), expected[i]);
    });
  for (std::thread& thread : threads) thread.join();
  for (const bool one : same) CHECK(one);
}

}  // namespace

int main() {
  diba::set_tuning({512 << 10, 1, 0});  // every thread, however small the work
  for (const bool signs : {false, true}) {
    check_sizes({97, 70, 65, signs});
    check_sizes({64, 33, 130, signs});
    check_threads(signs);
  }
  return check::done();
}

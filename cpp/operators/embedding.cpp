// diba::Embedding

#include <algorithm>
#include <utility>

#include "file/factors.hpp"
#include "file/source.hpp"
#include "layout/aligned.hpp"
#include "operators/coded.hpp"
#include "operators/matrix.hpp"
#include "operators/operators.hpp"
#include "runtime/dispatch.hpp"

namespace diba::ops {
namespace {

constexpr std::size_t kTogether = 64;  // rows looked up by one thread at a time

// Rows of a table, by their numbers; negative ones count from the end.
class Ids {
 public:
  Ids(const Tensor& ids, std::size_t rows) : ids_(ids), rows_(static_cast<std::int64_t>(rows)) {}

  std::size_t count() const { return size_of(ids_.shape); }

  std::size_t operator[](std::size_t i) const {
    const std::int64_t id = ids_.type == kInt64 ? static_cast<const std::int64_t*>(ids_.data)[i]
                                                : static_cast<const std::int32_t*>(ids_.data)[i];
    if (id < -rows_ || id >= rows_) {
      throw Error("the id " + std::to_string(id) + " is not a row of the table, which has " + std::to_string(rows_) +
                  " rows");
    }
    return static_cast<std::size_t>(id < 0 ? id + rows_ : id);
  }

 private:
  const Tensor& ids_;
  std::int64_t rows_;
};

// Calls look_up(first, count) for all rows that are asked for.
template <class F>
void in_pieces(std::size_t count, const Call& call, const F& look_up) {
  const auto piece = [&](std::size_t p) { look_up(p * kTogether, std::min(kTogether, count - p * kTogether)); };
  const Stage stage{(count + kTogether - 1) / kTogether, piece};
  call.executor().run(&stage, 1);
}

Shape output_shape(const Tensor& ids, std::size_t dim) {
  Shape shape = ids.shape;
  shape.push_back(static_cast<std::int64_t>(dim));
  return shape;
}

// Row i is d1(i) (B1(i) d2) B2 d3: the bits of B1 are read where they are packed, B2 is packed transposed.
class FactoredTable : public Kernel {
 public:
  explicit FactoredTable(const Node& node) {
    const Tensor bytes = node.constant(1, "table");
    StoredFactors stored = read_factors(*open_memory(bytes.data, size_of(bytes.shape)), "table");
    signs_ = stored.signs;
    bits_ = shared_bits(stored);
    turned_ = std::make_unique<const Packed>(transposed(stored.right()).view(), signs_, active());
    d1_ = std::move(stored.d1);
    d2_ = std::move(stored.d2);
    d3_ = std::move(stored.d3);
    if (node.integer("embedding_dim") != static_cast<std::int64_t>(d3_.size())) {
      throw Error("embedding_dim is " + std::to_string(node.integer("embedding_dim")) + "; it must be " +
                  std::to_string(d3_.size()) + ", the columns of the table");
    }
    give_back(bytes);
  }

  void compute(const Call& call) const override {
    const Tensor input = call.input(0);
    const Ids ids(input, d1_.size());
    const std::size_t k = d2_.size(), n = d3_.size();
    auto* y = static_cast<float*>(call.output(0, output_shape(input, n)));
    in_pieces(ids.count(), call, [&](std::size_t first, std::size_t count) {
      const Aligned<float> inner(count * k);
      for (std::size_t i = 0; i < count; ++i) {
        float* row = inner.data() + i * k;
        bits_->left_row(ids[first + i], row);
        for (std::size_t l = 0; l < k; ++l) row[l] *= d2_[l];
      }
      turned_->multiply({}, inner.data(), count, nullptr, y + first * n, 1);
      for (std::size_t i = 0; i < count; ++i) {
        const float scale = d1_[ids[first + i]];
        float* row = y + (first + i) * n;
        for (std::size_t j = 0; j < n; ++j) row[j] *= scale * d3_[j];
      }
    });
  }

 private:
  bool signs_;
  std::shared_ptr<const Packed> bits_;
  std::unique_ptr<const Packed> turned_;
  std::vector<float> d1_, d2_, d3_;
};

// A table of 8- or 4-bit numbers around a middle, read where the runtime keeps it.
class QuantizedTable : public Kernel {
 public:
  explicit QuantizedTable(const Node& node) : bits_(node.integer("bits", 8)) {
    const Tensor table = node.constant(1, "table"), scales = node.constant(2, "scales");
    const std::int64_t dim = node.integer("embedding_dim");
    if (bits_ != 8 && bits_ != 4) throw Error("bits is " + std::to_string(bits_) + "; it must be 8 or 4");
    if (table.type != kUint8 || table.shape.size() != 2 || table.shape[1] * 8 != dim * bits_) {
      throw Error("table has shape " + shown(table.shape) + "; it must be uint8 of " + std::to_string(dim * bits_ / 8) +
                  " columns");
    }
    const bool fits = scales.type == kFloat && scales.shape.size() == 2 && scales.shape[0] == table.shape[0] &&
                      scales.shape[1] > 0 && dim % scales.shape[1] == 0;
    if (!fits) {
      throw Error("scales has shape " + shown(scales.shape) + "; it must be float32 of " +
                  std::to_string(table.shape[0]) + " rows, and its columns must divide " + std::to_string(dim));
    }
    rows_ = static_cast<std::size_t>(table.shape[0]);
    dim_ = static_cast<std::size_t>(dim);
    blocks_ = static_cast<std::size_t>(scales.shape[1]);
    if (bits_ == 4 && dim_ / blocks_ % 2 != 0)
      throw Error("a scale belongs to " + std::to_string(dim_ / blocks_) + " numbers; with 4 bits it must be even");
  }

  void compute(const Call& call) const override {
    const Tensor input = call.input(0), table = call.input(1), scales = call.input(2);
    const Ids ids(input, rows_);
    auto* y = static_cast<float*>(call.output(0, output_shape(input, dim_)));
    const auto* numbers = static_cast<const std::uint8_t*>(table.data);
    const auto* units = static_cast<const float*>(scales.data);
    const std::size_t bytes = bits_ == 8 ? dim_ : dim_ / 2;
    in_pieces(ids.count(), call, [&](std::size_t first, std::size_t count) {
      for (std::size_t i = first; i < first + count; ++i) {
        const std::size_t row = ids[i];
        const auto read = bits_ == 8 ? read_8 : read_4;
        for (std::size_t b = 0; b < blocks_; ++b) {
          const std::size_t size = dim_ / blocks_;
          read(numbers + row * bytes + b * bytes / blocks_, size, units[row * blocks_ + b], y + i * dim_ + b * size);
        }
      }
    });
  }

 private:
  static void read_8(const std::uint8_t* q, std::size_t size, float unit, float* y) {
    for (std::size_t j = 0; j < size; ++j) y[j] = unit * static_cast<float>(int{q[j]} - 128);
  }
  static void read_4(const std::uint8_t* q, std::size_t size, float unit, float* y) {
    for (std::size_t j = 0; j < size; j += 2) {
      y[j] = unit * static_cast<float>((q[j / 2] & 15) - 8);
      y[j + 1] = unit * static_cast<float>((q[j / 2] >> 4) - 8);
    }
  }

  std::int64_t bits_;
  std::size_t rows_, dim_, blocks_;
};

// A table of 4-bit numbers whose groups have steps, see CodedTable.
class SteppedTable : public Kernel {
 public:
  explicit SteppedTable(const Node& node) : table_(node, 1, "embedding_dim") {}

  void compute(const Call& call) const override {
    const Tensor input = call.input(0);
    const Ids ids(input, table_.rows());
    auto* y = static_cast<float*>(call.output(0, output_shape(input, table_.cols())));
    const CodeRows rows = table_.view(call);
    const float* scales = table_.scales(call);
    in_pieces(ids.count(), call, [&](std::size_t first, std::size_t count) {
      for (std::size_t i = first; i < first + count; ++i) decode_row(rows, scales, ids[i], y + i * table_.cols());
    });
  }

 private:
  CodedTable table_;
};

void infer(const Inference& inference) {
  ElementType type;
  Dimensions dimensions = inference.input(0, &type);
  const Shape dim = inference.integers("embedding_dim");
  if (dim.size() != 1) return;
  dimensions.push_back({dim[0], ""});
  inference.set_output(0, dimensions, kFloat);
}

}  // namespace

Definition embedding(ElementType ids) {
  return {"Embedding",
          {{ids, kRequired}, {kUint8, kRequired}, {kFloat, kOptional}},
          {{kFloat, kRequired}},
          [](const Node& node) -> std::unique_ptr<Kernel> {
            if (node.integer("group", 0) != 0) return std::make_unique<SteppedTable>(node);
            if (node.has_input(2)) return std::make_unique<QuantizedTable>(node);
            return std::make_unique<FactoredTable>(node);
          },
          infer};
}

}  // namespace diba::ops

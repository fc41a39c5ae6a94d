// A table of 8- or 4-bit numbers, an initializer that is read where the runtime keeps it.
#pragma once

#include "operators/operators.hpp"
#include "product/code_rows.hpp"

namespace diba::ops {

// Inputs `table` and `table` + 1 of a node: uint8 (rows, bytes) and float32 (rows, 1); with the attribute `group` the
// bytes of a row are 4-bit codes and then the steps of its groups. Throws Error.
class CodedTable {
 public:
  CodedTable(const Node& node, std::size_t table, const char* columns);

  std::size_t rows() const { return rows_.rows; }
  std::size_t cols() const { return rows_.cols; }

  // The table in a call, and its scales.
  CodeRows view(const Call& call) const;
  const float* scales(const Call& call) const { return static_cast<const float*>(call.input(table_ + 1).data); }

 private:
  CodeRows rows_{};
  std::size_t table_;
};

}  // namespace diba::ops

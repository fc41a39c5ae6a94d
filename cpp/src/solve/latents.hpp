// A step of the latent numbers of bits while these are trained; python/diba/torch/retuning/latents.py says by which
// rule they move.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace diba {

struct Latents {
  float* values;       // (rows, cols)
  float* mean;         // (rows, cols): their averaged gradients
  const float* outer;  // (rows), and
  const float* inner;  // (cols): 1 / h of entry (i, j) is outer_i * inner_j
  std::size_t rows, cols;
};

// mean += fresh * (gradient - mean), where a gradient (rows, cols) is given and not null, then
// values -= (way * (mean * inner)) * outer. Returns the entries that are on the other side of zero now (zero itself is
// on the upper one), as row * cols + column, rising; all others are kept within [-farthest, farthest].
std::vector<std::int64_t> step_latents(const Latents& latents, const float* gradient, float fresh, float way,
                                       float farthest, int threads);

}  // namespace diba

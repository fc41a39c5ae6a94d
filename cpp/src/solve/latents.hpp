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

struct LatentRule {
  float fresh;       // share of the new gradient in the average
  float way;         // of a latent whose averaged gradient is h
  float farthest;    // latents stay within [-farthest, farthest], and
  float edge;        // this far from zero where they have to wait
  std::size_t most;  // latents that may cross zero
};

// mean += fresh * (gradient - mean), where a gradient (rows, cols) is given and not null, then
// values -= (way * (mean * inner)) * outer. Where more than `most` come to the other side of zero (zero itself is on
// the upper one), those that came farthest do, of equal ones the first; the others are put back to the edge of their
// side. Returns the entries that crossed, as row * cols + column, rising.
std::vector<std::int64_t> step_latents(const Latents& latents, const float* gradient, const LatentRule& rule,
                                       int threads);

}  // namespace diba

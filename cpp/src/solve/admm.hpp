// One ADMM step of one sign factor (Boza and Macko, arXiv 2505.11076), in one pass over its rows. The iteration that
// calls it, with its equations, is python/diba/solvers/admm.py.
#pragma once

#include <cstddef>

#include "layout/bit_matrix.hpp"
#include "solve/quantized.hpp"

namespace diba {

// A side Z = diag(outer) S diag(inner), (rows, k), with the dual U of its other half Y. All arrays are row-major.
struct SignSide {
  MutableBitView bits;  // S: read, then written
  float* outer;         // (rows) u: read, then written, of length one
  float* inner;         // (k) v: in the old units when read, for Z; written for a new u of length one
  float* state;         // (rows, k) Y + U before the projection: read in the old units, written in the new ones
  bool fixed = false;   // u is given and stays: the projection fits v alone
};

// One step of power iteration from `inner` (k) towards the rank-one fit u v^T of |state| (rows, k): writes outer (rows)
// = u of length one, and inner = v for it. `fixed`: outer is read only, and has length one.
void fit_magnitudes(float* outer, float* inner, const float* state, std::size_t rows, std::size_t k,
                    bool fixed = false);

// With X the other factor in columns of length one: solves Y = (A X + penalty (Z - U)) inverse, then projects Y + U
// onto signs times a rank-one matrix by one step of power iteration from `inner`.
//   correlations (rows, k) = A X; inverse (k, k) = (X^T X + (ridge + penalty) I)^-1;
//   ratio (k): new units of the columns over the old ones (the columns of X were scaled to length one);
//   weights (k): of the value returned, sum of correlations * weights * S, summed over rows in order.
double step_sign_side(const SignSide& side, const float* correlations, const QuantizedMatrix& inverse,
                      const float* ratio, const float* weights, float penalty, int threads);

// The projection alone: signs, outer and inner for side.state, which is Y + U in the new units here and is not changed.
void project_sign_side(const SignSide& side, const float* ratio, int threads);

}  // namespace diba

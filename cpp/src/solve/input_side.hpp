// One ADMM step of the right factor under the error of outputs, tr((A - X Y^T) C (A - X Y^T)^T) for second moments
// C = Q diag(values) Q^T. The iteration that calls it, with its equations, is python/diba/solvers/metric.py.
#pragma once

#include <cstddef>

#include "solve/admm.hpp"
#include "solve/quantized.hpp"

namespace diba {

// What the right side keeps beside its signs, in the eigenvectors' coordinates; read in the old units, written in the
// new ones.
struct InputVariables {
  float* solution;  // (n, k) T = Q^T Y, where the conjugate gradients start
  float* state;     // (n, k) Q^T (Y + U)
};

// The linear system of a step. With X the left factor in columns of length one, row j of T solves
//   t (values_j (X^T X + ridge) + penalty) = values_j (Q^T A^T X)_j + penalty (Q^T (Z - U))_j.
struct InputSystem {
  const float* values;          // (n) eigenvalues, at least 0
  const float* basis;           // (n, n) Q
  const QuantizedMatrix& gram;  // (k, k) X^T X + ridge
  const float* correlations;    // (n, k) Q^T A^T X
  const float* image;           // (n, k) Q^T diag(outer) S, of Z before the step
  float penalty;
  int iterations;  // of conjugate gradients
};

// H = X^T diag(weights) X, symmetric to the bit; x (n, k), weights (n), h (k, k). Sums in order of the rows, fused.
void weighted_gram(const float* x, const float* weights, std::size_t n, std::size_t k, float* h, int threads);

// One step, then the projection as in step_sign_side. ratio (k): new units of the columns over the old ones; weights
// (k): of the value returned, sum of values * correlations * image * weights, summed over rows in order.
double step_input_side(const SignSide& side, const InputVariables& variables, const InputSystem& system,
                       const float* ratio, const float* weights, int threads);

}  // namespace diba

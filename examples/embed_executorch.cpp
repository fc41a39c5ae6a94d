// A sentence embedding without Python: ExecuTorch and diba's backend, which the build links.
//
//   embed_executorch MODEL.pte ID [ID ...]
//
// MODEL.pte is all-MiniLM-L6-v2 or another model of its kind, from "diba export --executorch" or
// diba.executorch.export, with input_ids, attention_mask and, if it takes them, token_type_ids; the IDs are the tokens
// of a sentence, with those that its tokenizer puts around it. Prints one number a line.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/core/evalue.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

using executorch::extension::from_blob;
using executorch::extension::Module;

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: embed_executorch MODEL.pte ID [ID ...]\n");
    return 2;
  }
  std::vector<std::int64_t> ids, mask;
  for (int i = 2; i < argc; ++i) {
    ids.push_back(std::strtoll(argv[i], nullptr, 10));
    mask.push_back(1);
  }
  const int count = argc - 2;
  Module model(argv[1]);
  const auto type = executorch::aten::ScalarType::Long;
  const auto meta = model.method_meta("forward");
  std::vector<std::int64_t> zeros(ids.size(), 0);  // one sentence: tokens of the first kind
  const auto made = {from_blob(ids.data(), {1, count}, type), from_blob(mask.data(), {1, count}, type),
                     from_blob(zeros.data(), {1, count}, type)};
  std::vector<executorch::runtime::EValue> inputs(made.begin(), made.end());
  if (meta.ok()) inputs.resize(meta->num_inputs());
  const auto outputs = model.forward(inputs);
  if (!outputs.ok()) {
    std::fprintf(stderr, "embed_executorch: %s\n", executorch::runtime::to_string(outputs.error()));
    return 1;
  }
  const auto& hidden = outputs->at(0).toTensor();  // (1, count, width)
  const std::ptrdiff_t width = hidden.size(2);
  std::vector<double> mean(static_cast<std::size_t>(width), 0.0);
  for (std::ptrdiff_t i = 0; i < hidden.numel(); ++i)
    mean[static_cast<std::size_t>(i % width)] += static_cast<double>(hidden.const_data_ptr<float>()[i]);
  double square = 0;
  for (const double sum : mean) square += sum * sum;
  for (const double sum : mean) std::printf("%.6f\n", sum / std::sqrt(square));
  return 0;
}

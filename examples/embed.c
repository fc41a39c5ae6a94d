// A sentence embedding without Python: onnxruntime's C interface and diba's operators.
//
//   embed MODEL.onnx LIBDIBA_ONNXRUNTIME.so ID [ID ...]
//
// MODEL.onnx is all-MiniLM-L6-v2 or another model of its kind, from `diba export` or sentence_embeddings.py; the IDs
// are the tokens of a sentence, with those that its tokenizer puts around it. Prints one number a line.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "onnxruntime_c_api.h"

// All that is called here is in the interface of onnxruntime 1.17, the oldest that diba's operators run in.
enum { kInterface = 17 };

static const OrtApi* ort;

// Ends the program where a call failed.
static void check(OrtStatus* status) {
  if (status == NULL) return;
  fprintf(stderr, "embed: %s\n", ort->GetErrorMessage(status));
  ort->ReleaseStatus(status);
  exit(1);
}

static OrtSession* open_model(const OrtEnv* env, const char* model, const char* library) {
  OrtSessionOptions* options = NULL;
  OrtSession* session = NULL;
  check(ort->CreateSessionOptions(&options));
  check(ort->SetIntraOpNumThreads(options, 1));
  // These two fused nodes are slower on a CPU than the nodes that they stand for.
  check(ort->AddSessionConfigEntry(options, "optimization.disable_specified_optimizers",
                                   "SkipLayerNormFusion;BiasGeluFusion"));
  check(ort->RegisterCustomOpsLibrary_V2(options, library));
  check(ort->CreateSession(env, model, options, &session));
  ort->ReleaseSessionOptions(options);
  return session;
}

// The last hidden state of one sentence, (1, count, width); `width` is set.
static OrtValue* run(OrtSession* session, int64_t* ids, size_t count, size_t* width) {
  int64_t* ones = malloc(count * sizeof *ones);
  int64_t* zeros = calloc(count, sizeof *zeros);
  if (ones == NULL || zeros == NULL) {
    fprintf(stderr, "embed: out of memory\n");
    exit(1);
  }
  for (size_t i = 0; i < count; ++i) ones[i] = 1;

  const char* inputs[] = {"input_ids", "attention_mask", "token_type_ids"};
  const char* outputs[] = {"last_hidden_state"};
  int64_t* data[] = {ids, ones, zeros};
  const int64_t shape[] = {1, (int64_t)count};
  OrtMemoryInfo* memory = NULL;
  OrtValue* values[3] = {NULL, NULL, NULL};
  check(ort->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
  for (int i = 0; i < 3; ++i) {
    check(ort->CreateTensorWithDataAsOrtValue(memory, data[i], count * sizeof(int64_t), shape, 2,
                                              ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, &values[i]));
  }
  OrtValue* hidden = NULL;
  check(ort->Run(session, NULL, inputs, (const OrtValue* const*)values, 3, outputs, 1, &hidden));

  OrtTensorTypeAndShapeInfo* info = NULL;
  size_t numbers = 0;
  check(ort->GetTensorTypeAndShape(hidden, &info));
  check(ort->GetTensorShapeElementCount(info, &numbers));
  *width = numbers / count;
  ort->ReleaseTensorTypeAndShapeInfo(info);
  for (int i = 0; i < 3; ++i) ort->ReleaseValue(values[i]);
  ort->ReleaseMemoryInfo(memory);
  free(ones);
  free(zeros);
  return hidden;
}

// The mean over all tokens, of length 1: a batch would have padding, to be left out of the mean.
static void print_embedding(OrtValue* hidden, size_t count, size_t width) {
  float* states = NULL;
  check(ort->GetTensorMutableData(hidden, (void**)&states));
  double square = 0;
  for (size_t j = 0; j < width; ++j) {
    double sum = 0;
    for (size_t i = 0; i < count; ++i) sum += states[i * width + j];
    states[j] = (float)(sum / (double)count);
    square += (double)states[j] * states[j];
  }
  for (size_t j = 0; j < width; ++j) printf("%.9g\n", states[j] / sqrt(square));
}

int main(int argc, char** argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: embed MODEL.onnx LIBDIBA_ONNXRUNTIME.so ID [ID ...]\n");
    return 2;
  }
  const size_t count = (size_t)(argc - 3);
  int64_t* ids = malloc(count * sizeof *ids);
  if (ids == NULL) return 1;
  for (size_t i = 0; i < count; ++i) {
    char* end = NULL;
    ids[i] = strtoll(argv[3 + i], &end, 10);
    if (end == argv[3 + i] || *end != '\0') {
      fprintf(stderr, "embed: '%s' is no token id; it must be a whole number\n", argv[3 + i]);
      return 2;
    }
  }
  ort = OrtGetApiBase()->GetApi(kInterface);
  if (ort == NULL) {
    fprintf(stderr, "embed: onnxruntime %s is too old; it must be 1.17 or newer\n",
            OrtGetApiBase()->GetVersionString());
    return 1;
  }
  OrtEnv* env = NULL;
  size_t width = 0;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "embed", &env));
  OrtSession* session = open_model(env, argv[1], argv[2]);
  OrtValue* hidden = run(session, ids, count, &width);
  print_embedding(hidden, count, width);
  ort->ReleaseValue(hidden);
  ort->ReleaseSession(session);
  ort->ReleaseEnv(env);
  free(ids);
  return 0;
}

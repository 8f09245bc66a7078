// Any processor: loops that a compiler turns into whatever vectors there are.

#include "attention.h"
#include "embedding.h"
#include "linear.h"
#include "selection.h"

namespace {

struct Portable {
  using Quantized = uint8_t;

  static void dot(int64_t rows, const Quantized* a, int64_t stride, const int8_t* b, int64_t groups,
                  int32_t (*tile)[kPanel]) {
    for (int64_t row = 0; row < rows; ++row) {
      int32_t totals[kPanel] = {};
      for (int64_t group = 0; group < groups; ++group) {
        const Quantized* four = a + row * stride + group * kGroup;
        const int8_t* weights = b + group * kPanel * kGroup;
        for (int64_t column = 0; column < kPanel; ++column) {
          for (int64_t i = 0; i < kGroup; ++i) totals[column] += four[i] * weights[column * kGroup + i];
        }
      }
      memcpy(tile[row], totals, sizeof totals);
    }
  }

  static void dot(int64_t rows, const float* a, int64_t stride, const float* b, int64_t inputs,
                  float (*tile)[kPanel]) {
    for (int64_t row = 0; row < rows; ++row) {
      Floats totals[2] = {};
      for (int64_t i = 0; i < inputs; ++i) {
        for (int half = 0; half < 2; ++half) {
          totals[half] += a[row * stride + i] * load(b + i * kPanel + half * kLanes);
        }
      }
      for (int half = 0; half < 2; ++half) store(tile[row] + half * kLanes, totals[half]);
    }
  }
};

}  // namespace

const hgt::Kernels hgt::portable_kernels = {
    "portable", sizeof(Portable::Quantized), prepare_row<Portable>, multiply<Portable>, attend, embed, select,
};

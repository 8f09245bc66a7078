// x86-64 with AVX-512 F, BW, DQ, VL and VNNI: 32 registers of 16 numbers, and sums of four products of bytes.

#include <immintrin.h>

#include "attention.h"
#include "embedding.h"
#include "linear.h"
#include "selection.h"

namespace {

constexpr int kAhead = 3072;  // bytes of a panel that are prefetched

template <int rows>
struct Int8Block {
  HGT_INLINE static void run(const uint8_t* a, int64_t stride, const int8_t* b, int64_t groups,
                             int32_t (*tile)[kPanel]) {
    __m512i totals[rows][2];
    for (auto& row : totals) row[0] = row[1] = _mm512_setzero_si512();
    for (int64_t group = 0; group < groups; ++group) {
      const __m512i left = _mm512_loadu_si512(b), right = _mm512_loadu_si512(b + 64);
      _mm_prefetch(reinterpret_cast<const char*>(b) + kAhead, _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(b) + kAhead + 64, _MM_HINT_T0);
      b += kPanel * kGroup;
      for (int row = 0; row < rows; ++row) {
        int32_t four;
        memcpy(&four, a + row * stride + group * kGroup, sizeof four);
        totals[row][0] = _mm512_dpbusd_epi32(totals[row][0], _mm512_set1_epi32(four), left);
        totals[row][1] = _mm512_dpbusd_epi32(totals[row][1], _mm512_set1_epi32(four), right);
      }
    }
    for (int row = 0; row < rows; ++row) {
      for (int half = 0; half < 2; ++half) _mm512_store_si512(tile[row] + half * kLanes, totals[row][half]);
    }
  }
};

template <int rows>
struct FloatBlock {
  HGT_INLINE static void run(const float* a, int64_t stride, const float* b, int64_t inputs,
                             float (*tile)[kPanel]) {
    __m512 totals[rows][2];
    for (auto& row : totals) row[0] = row[1] = _mm512_setzero_ps();
    for (int64_t i = 0; i < inputs; ++i) {
      const __m512 left = _mm512_loadu_ps(b), right = _mm512_loadu_ps(b + kLanes);
      _mm_prefetch(reinterpret_cast<const char*>(b) + kAhead, _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(b) + kAhead + 64, _MM_HINT_T0);
      b += kPanel;
      for (int row = 0; row < rows; ++row) {
        const __m512 one = _mm512_set1_ps(a[row * stride + i]);
        totals[row][0] = _mm512_fmadd_ps(one, left, totals[row][0]);
        totals[row][1] = _mm512_fmadd_ps(one, right, totals[row][1]);
      }
    }
    for (int row = 0; row < rows; ++row) {
      for (int half = 0; half < 2; ++half) _mm512_store_ps(tile[row] + half * kLanes, totals[row][half]);
    }
  }
};

struct Avx512 {
  using Quantized = uint8_t;

  static void dot(int64_t rows, const Quantized* a, int64_t stride, const int8_t* b, int64_t groups,
                  int32_t (*tile)[kPanel]) {
    with_rows<Int8Block, kMaxBlock>(rows, a, stride, b, groups, tile);
  }

  static void dot(int64_t rows, const float* a, int64_t stride, const float* b, int64_t inputs,
                  float (*tile)[kPanel]) {
    with_rows<FloatBlock, kMaxBlock>(rows, a, stride, b, inputs, tile);
  }
};

}  // namespace

const hgt::Kernels hgt::avx512_kernels = {
    "avx512", sizeof(Avx512::Quantized), prepare_row<Avx512>, multiply<Avx512>, attend, embed, select,
};

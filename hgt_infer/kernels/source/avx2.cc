// x86-64 with AVX2, FMA and F16C: 16 registers of eight numbers.
//
// AVX2 adds products of bytes in pairs of 16 bits, which saturate. So bytes become 16 bits first: their
// products are added in pairs of 32 bits, exactly.

#include <immintrin.h>

#include "attention.h"
#include "embedding.h"
#include "linear.h"
#include "selection.h"

namespace {

constexpr int kRows = 3;  // that the registers have room for

// Half a panel, 16 columns; a register holds two sums, to be added, of each of four columns.
template <int rows>
struct Int8Block {
  HGT_INLINE static void run(const int16_t* a, int64_t stride, const int8_t* b, int64_t groups,
                             int32_t (*tile)[kPanel]) {
    __m256i totals[rows][4];
    for (auto& row : totals) row[0] = row[1] = row[2] = row[3] = _mm256_setzero_si256();
    for (int64_t group = 0; group < groups; ++group) {
      for (int four = 0; four < 4; ++four) {
        const auto* weights = reinterpret_cast<const __m128i*>(b + group * kPanel * kGroup) + four;
        const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(weights));
        for (int row = 0; row < rows; ++row) {
          int64_t inputs;
          memcpy(&inputs, a + row * stride + group * kGroup, sizeof inputs);
          const __m256i pairs = _mm256_madd_epi16(wide, _mm256_set1_epi64x(inputs));
          totals[row][four] = _mm256_add_epi32(totals[row][four], pairs);
        }
      }
    }
    for (int row = 0; row < rows; ++row) {
      for (int eight = 0; eight < 2; ++eight) {
        const __m256i mixed = _mm256_hadd_epi32(totals[row][2 * eight], totals[row][2 * eight + 1]);
        const __m256i in_order = _mm256_permute4x64_epi64(mixed, 0b11011000);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(tile[row] + 8 * eight), in_order);
      }
    }
  }
};

template <int rows>
struct FloatBlock {
  HGT_INLINE static void run(const float* a, int64_t stride, const float* b, int64_t inputs,
                             float (*tile)[kPanel]) {
    __m256 totals[rows][4];
    for (auto& row : totals) row[0] = row[1] = row[2] = row[3] = _mm256_setzero_ps();
    for (int64_t i = 0; i < inputs; ++i) {
      for (int row = 0; row < rows; ++row) {
        const __m256 one = _mm256_set1_ps(a[row * stride + i]);
        for (int eight = 0; eight < 4; ++eight) {
          totals[row][eight] = _mm256_fmadd_ps(one, _mm256_loadu_ps(b + 8 * eight), totals[row][eight]);
        }
      }
      b += kPanel;
    }
    for (int row = 0; row < rows; ++row) {
      for (int eight = 0; eight < 4; ++eight) _mm256_storeu_ps(tile[row] + 8 * eight, totals[row][eight]);
    }
  }
};

struct Avx2 {
  using Quantized = int16_t;

  static void dot(int64_t rows, const Quantized* a, int64_t stride, const int8_t* b, int64_t groups,
                  int32_t (*tile)[kPanel]) {
    for (int64_t row = 0; row < rows; row += kRows) {
      for (int64_t half = 0; half < 2; ++half) {
        auto* target = reinterpret_cast<int32_t (*)[kPanel]>(tile[row] + half * kLanes);
        const int8_t* weights = b + half * kLanes * kGroup;
        with_rows<Int8Block, kRows>(rows - row, a + row * stride, stride, weights, groups, target);
      }
    }
  }

  static void dot(int64_t rows, const float* a, int64_t stride, const float* b, int64_t inputs,
                  float (*tile)[kPanel]) {
    for (int64_t row = 0; row < rows; row += kRows) {
      with_rows<FloatBlock, kRows>(rows - row, a + row * stride, stride, b, inputs, tile + row);
    }
  }
};

}  // namespace

const hgt::Kernels hgt::avx2_kernels = {
    "avx2", sizeof(Avx2::Quantized), prepare_row<Avx2>, multiply<Avx2>, attend, embed, select,
};

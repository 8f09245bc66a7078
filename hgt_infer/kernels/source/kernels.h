// What an instruction set implements, and what operators.cc asks of it. Tensors are dense, in row-major
// order.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace hgt {

// A matrix [inputs, outputs] is stored as panels of 32 columns, one behind the other; the last one is filled
// up with zeros. Rows of a panel follow each other: float [inputs][32], or, in groups of four rows that one
// instruction multiplies, int8 [inputs / 4][32][4], the last group filled up with zeros.
constexpr int64_t kPanel = 32;
constexpr int64_t kGroup = 4;

constexpr int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// output = gelu(normalize(input) · weight + bias) + residual, each part but the product where it is asked
// for.
struct Linear {
  const float* input;  // [rows, inputs]
  int64_t rows, inputs, outputs;
  const float *norm_weight, *norm_bias;  // [inputs], or null: no LayerNorm
  float epsilon;
  const void* weight;          // panels of float, or of int8 where scale is not null
  const float* scale;          // [outputs], of the int8 columns
  const int32_t* column_sums;  // [outputs], of the int8 columns
  float shift;                 // > 0: input is above -shift, and quantized without a sign
  const float* bias;           // [outputs], or null
  const float* residual;       // [rows, outputs], or null
  bool has_gelu;
  float* output;  // [rows, outputs]
  // Between the two passes:
  float* normalized;    // [rows, inputs], where there is a LayerNorm
  void* quantized;      // [rows, inputs filled up to a multiple of kGroup] of quantized_bytes each, int8 only
  float* input_scales;  // [rows], int8 only
};

// The cache is [slots, blocks, layers, 2, heads, 16, head_size]: a block has 16 positions of a slot in all
// layers, keys and values. So what a sequence has is in one piece, however long its slot is.
constexpr int64_t kBlock = 16;

// Causal self-attention of tokens over the cache of their slots, into which their own keys and values are
// written.
struct Attention {
  const float* qkv;  // [tokens, 3, heads, head_size]
  void* cache;       // of the layer: its keys in block 0 of slot 0; float, or the bits of halves
  bool is_half;
  int64_t slot_stride, block_stride;  // from one to the next, in numbers
  const int32_t *slots, *positions;   // [tokens]
  int64_t heads, head_size;
  float* output;              // [tokens, heads, head_size]
  const int64_t* run_starts;  // [runs + 1], tokens of one slot at consecutive positions
};

struct Embedding {
  const int32_t *token_ids, *positions;  // [tokens]
  const void* weight;                    // of the output layer [size, vocabulary]: panels
  const float* scale;                    // [vocabulary] where weight is int8, else null
  const float* position_weight;          // [positions, size]
  int64_t size;
  float* output;  // [tokens, size]
};

// The `count` largest numbers of each row and their places.
struct Selection {
  const float* input;  // [rows, size]
  int64_t size, count;
  float* values;    // [rows, count]
  int64_t* places;  // [rows, count]
  int32_t* maxima;  // [rows, size / 64, filled up to a multiple of 16]
  uint64_t* heaps;  // [rows, count]
};

struct Kernels {
  const char* name;
  size_t quantized_bytes;
  void (*prepare_row)(const Linear&, int64_t row);
  void (*multiply)(const Linear&, int64_t panel, int64_t first_row, int64_t last_row);
  void (*attend)(const Attention&, int64_t run, int64_t head);
  void (*embed)(const Embedding&, int64_t token);
  void (*select)(const Selection&, int64_t row);
};

extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

}  // namespace hgt

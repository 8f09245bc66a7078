// A linear layer in two passes: `prepare_row` normalizes and quantizes rows of the input, `multiply` computes
// a panel of columns for a block of rows. An instruction set gives `dot` for both types of weight.
//
// A row's result depends on that row alone: each sum runs over the inputs in their order, whatever the number
// of rows.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

using hgt::kGroup;
using hgt::kPanel;
using hgt::Linear;

// Rows that are multiplied at once: as many as an instruction set has registers for, or fewer.
constexpr int64_t kMaxBlock = 12;

// (x - mean) / √(variance + epsilon) · weight + bias. Sums run in 16 lanes, which are added up at the end.
HGT_INLINE void normalize(const Linear& linear, const float* input, float* output) {
  const int64_t size = linear.inputs;
  const float count = static_cast<float>(size);
  Floats total{}, squares{};
  for (int64_t i = 0; i < size; i += kLanes) total += load(input + i, size - i);
  const float mean = sum(total) / count;
  for (int64_t i = 0; i < size; i += kLanes) {
    const Floats centered = first_lanes(load(input + i, size - i) - mean, size - i);
    squares += centered * centered;
  }
  const float inverse = 1.0f / __builtin_sqrtf(sum(squares) / count + linear.epsilon);
  for (int64_t i = 0; i < size; i += kLanes) {
    const int64_t left = size - i;
    const Floats centered = load(input + i, left) - mean;
    const Floats scaled = centered * inverse * load(linear.norm_weight + i, left);
    store(output + i, scaled + load(linear.norm_bias + i, left), left);
  }
}

// Integers from 0 to 255, and the scale that gives the row back: 0 stands for -shift where there is a shift,
// else 128 stands for 0. A row that has a NaN or an infinity gets that as its scale, and so as its result.
template <class Quantized>
HGT_INLINE void quantize(const Linear& linear, const float* input, Quantized* output, float* scale) {
  const int64_t size = linear.inputs;
  const bool is_shifted = linear.shift > 0;
  Integers largest_bits{};  // of magnitudes, which are ordered as their bits are, NaN above all
  for (int64_t i = 0; i < size; i += kLanes) {
    const Floats values = load(input + i, size - i);
    const Floats shifted = is_shifted ? first_lanes(values + linear.shift, size - i) : values;
    const Integers magnitudes = bits(shifted) & 0x7fffffff;
    largest_bits = magnitudes > largest_bits ? magnitudes : largest_bits;
  }
  int32_t lanes[kLanes], largest_bit_pattern = 0;
  memcpy(lanes, &largest_bits, sizeof lanes);
  for (const int32_t lane : lanes)
    largest_bit_pattern = lane > largest_bit_pattern ? lane : largest_bit_pattern;
  float largest;
  memcpy(&largest, &largest_bit_pattern, sizeof largest);

  const float steps = is_shifted ? 255.0f : 127.0f;
  *scale = largest / steps;
  // The inverse of a subnormal number can be infinite: such a row is as good as zeros.
  const bool is_usable = largest > 1e-35f && largest < __builtin_inff();
  const float factor = is_usable ? steps / largest : 0.0f;
  const Integers zero = Integers{} + (is_shifted ? 0 : 128);
  const int64_t stored_size = hgt::divide_up(size, kGroup) * kGroup;
  for (int64_t i = 0; i < stored_size; i += kLanes) {
    Floats values = load(input + i, size - i < 0 ? 0 : size - i);
    if (is_shifted) values = values + linear.shift;
    const Integers integers = nearest(values * factor) + zero;
    Quantized all[kLanes];
    const auto narrow = __builtin_convertvector(integers, Bytes);
    for (int lane = 0; lane < kLanes; ++lane) all[lane] = narrow[lane];
    const int64_t left = stored_size - i < kLanes ? stored_size - i : kLanes;
    memcpy(output + i, all, static_cast<size_t>(left) * sizeof(Quantized));
  }
}

template <class Isa>
void prepare_row(const Linear& linear, int64_t row) {
  const float* input = linear.input + row * linear.inputs;
  if (linear.norm_weight != nullptr) {
    float* normalized = linear.normalized + row * linear.inputs;
    normalize(linear, input, normalized);
    input = normalized;
  }
  if (linear.scale != nullptr) {
    const int64_t stored_size = hgt::divide_up(linear.inputs, kGroup) * kGroup;
    auto* quantized = static_cast<typename Isa::Quantized*>(linear.quantized) + row * stored_size;
    quantize(linear, input, quantized, linear.input_scales + row);
  }
}

// Of a panel's columns: what the sums are scaled by and what is added.
struct Columns {
  Floats scale[2], bias[2];
  Integers correction[2];

  HGT_INLINE Columns(const Linear& linear, int64_t first, int64_t count) : scale{}, bias{}, correction{} {
    for (int half = 0; half < 2; ++half) {
      const int64_t left = count - half * kLanes;
      if (left <= 0) break;
      if (linear.bias != nullptr) bias[half] = load(linear.bias + first + half * kLanes, left);
      if (linear.scale == nullptr) continue;
      scale[half] = load(linear.scale + first + half * kLanes, left);
      if (linear.shift > 0) continue;
      int32_t sums_of_columns[kLanes] = {};
      const int64_t width = left < kLanes ? left : kLanes;
      memcpy(sums_of_columns, linear.column_sums + first + half * kLanes, static_cast<size_t>(width) * 4);
      memcpy(&correction[half], sums_of_columns, sizeof sums_of_columns);
      correction[half] *= 128;
    }
  }
};

HGT_INLINE void finish(const Linear& linear, Floats values, int64_t row, int64_t column, int64_t count) {
  if (linear.has_gelu) values = gelu(values);
  const int64_t offset = row * linear.outputs + column;
  if (linear.residual != nullptr) values = load(linear.residual + offset, count) + values;
  store(linear.output + offset, values, count);
}

template <class Isa>
void multiply(const Linear& linear, int64_t panel, int64_t first_row, int64_t last_row) {
  const int64_t column = panel * kPanel;
  const int64_t count = linear.outputs - column < kPanel ? linear.outputs - column : kPanel;
  const int64_t inputs = linear.inputs;
  const int64_t stored_size = hgt::divide_up(inputs, kGroup) * kGroup;
  const Columns columns(linear, column, count);
  for (int64_t row = first_row; row < last_row;) {
    // Blocks of nearly equal size: 13 rows are 7 and 6.
    const int64_t left = last_row - row;
    const int64_t rows = hgt::divide_up(left, hgt::divide_up(left, kMaxBlock));
    if (linear.scale != nullptr) {
      alignas(64) int32_t tile[kMaxBlock][kPanel];
      const auto* a = static_cast<const typename Isa::Quantized*>(linear.quantized) + row * stored_size;
      const auto* b = static_cast<const int8_t*>(linear.weight) + column * stored_size;
      Isa::dot(rows, a, stored_size, b, stored_size / kGroup, tile);
      for (int64_t i = 0; i < rows; ++i) {
        for (int half = 0; half < 2 && half * kLanes < count; ++half) {
          Integers totals;
          memcpy(&totals, tile[i] + half * kLanes, sizeof totals);
          const Floats exact = __builtin_convertvector(totals - columns.correction[half], Floats);
          const Floats scaled = exact * (columns.scale[half] * linear.input_scales[row + i]);
          finish(linear, scaled + columns.bias[half], row + i, column + half * kLanes, count - half * kLanes);
        }
      }
    } else {
      alignas(64) float tile[kMaxBlock][kPanel];
      const float* input = linear.norm_weight != nullptr ? linear.normalized : linear.input;
      const auto* b = static_cast<const float*>(linear.weight) + column * inputs;
      Isa::dot(rows, input + row * inputs, inputs, b, inputs, tile);
      for (int64_t i = 0; i < rows; ++i) {
        for (int half = 0; half < 2 && half * kLanes < count; ++half) {
          const Floats totals = load(tile[i] + half * kLanes) + columns.bias[half];
          finish(linear, totals, row + i, column + half * kLanes, count - half * kLanes);
        }
      }
    }
    row += rows;
  }
}

// Calls Function<rows>::run, so that a block's size is known to the compiler.
template <template <int> class Function, int most, class... Arguments>
HGT_INLINE void with_rows(int64_t rows, Arguments... arguments) {
  if constexpr (most > 1) {
    if (rows < most) return with_rows<Function, most - 1>(rows, arguments...);
  }
  Function<most>::run(arguments...);
}

}  // namespace

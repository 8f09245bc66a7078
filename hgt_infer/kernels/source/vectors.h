// Sixteen numbers at once, in the compiler's vector types: the same operations in the same order, and so the
// same bits, on every instruction set. No multiplication is fused with an addition (-ffp-contract=off).
#pragma once

#include <stdint.h>
#include <string.h>

namespace {

constexpr int64_t kLanes = 16;
using Floats = float __attribute__((vector_size(64)));
using Integers = int32_t __attribute__((vector_size(64)));
using Half = uint16_t;  // the bits of a number in half precision
using Halves = Half __attribute__((vector_size(32)));
using Bytes = uint8_t __attribute__((vector_size(16)));

#define HGT_INLINE inline __attribute__((always_inline))

HGT_INLINE Floats broadcast(float value) { return Floats{} + value; }

HGT_INLINE Floats load(const float* source) {
  Floats values;
  memcpy(&values, source, sizeof values);
  return values;
}

HGT_INLINE Integers bits(Floats values) { return reinterpret_cast<Integers>(values); }
HGT_INLINE Floats from_bits(Integers values) { return reinterpret_cast<Floats>(values); }

#if defined(__F16C__) || defined(__aarch64__)
using HardwareHalves = _Float16 __attribute__((vector_size(32)));
HGT_INLINE Floats widen(Halves values) {
  return __builtin_convertvector(reinterpret_cast<HardwareHalves>(values), Floats);
}
HGT_INLINE Halves narrow(Floats values) {
  return reinterpret_cast<Halves>(__builtin_convertvector(values, HardwareHalves));
}
#else
// The same, exactly and to the nearest number, halves to even.
HGT_INLINE Floats widen(Halves values) {
  const Integers all = __builtin_convertvector(values, Integers), magnitude = all & 0x7fff;
  const Floats scaled = from_bits(magnitude << 13) * 0x1p112f;  // subnormal halves too: the product is exact
  const Integers special = magnitude >= 0x7c00 ? Integers{} + 0x7f800000 : Integers{};
  return from_bits(bits(scaled) | special | (magnitude >= 0x7c00 ? magnitude << 13 : Integers{}) |
                   (all & 0x8000) << 16);
}
HGT_INLINE Halves narrow(Floats values) {
  const Integers magnitude = bits(values) & 0x7fffffff, sign = (bits(values) >> 16) & 0x8000;
  const Integers normal = ((magnitude + 0xfff + ((magnitude >> 13) & 1)) >> 13) - (112 << 10);
  // The last bit of a float in [0.5, 1) is worth as much as that of a subnormal half.
  const Integers subnormal = bits(from_bits(magnitude) + 0.5f) - bits(broadcast(0.5f));
  Integers result = magnitude < 0x38800000 ? subnormal : normal;
  result = magnitude >= 0x477ff000 ? Integers{} + 0x7c00 : result;
  result = magnitude > 0x7f800000 ? Integers{} + 0x7e00 : result;
  return __builtin_convertvector(result | sign, Halves);
}
#endif

HGT_INLINE Floats load(const Half* source) {
  Halves values;
  memcpy(&values, source, sizeof values);
  return widen(values);
}

// The first `count` of 16 numbers; the others are 0.
template <class Number>
HGT_INLINE Floats load(const Number* source, int64_t count) {
  if (count >= kLanes) return load(source);
  Number values[kLanes] = {};
  memcpy(values, source, static_cast<size_t>(count) * sizeof(Number));
  return load(values);
}

HGT_INLINE void store(float* target, Floats values) { memcpy(target, &values, sizeof values); }

HGT_INLINE void store(Half* target, Floats values) {
  const Halves halves = narrow(values);
  memcpy(target, &halves, sizeof halves);
}

template <class Number>
HGT_INLINE void store(Number* target, Floats values, int64_t count) {
  if (count >= kLanes) return store(target, values);
  Number all[kLanes];
  store(all, values);
  memcpy(target, all, static_cast<size_t>(count) * sizeof(Number));
}

// The first `count` lanes, and 0 in the others.
HGT_INLINE Floats first_lanes(Floats values, int64_t count) {
  if (count >= kLanes) return values;
  const Integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return from_bits(bits(values) & (lane < static_cast<int32_t>(count)));
}

// The nearest integers, halves to even; |values| must be below 2^22. In a float of 1.5 · 2^23 the last bit is
// a one.
constexpr float kRounder = 12582912.0f;
HGT_INLINE Integers nearest(Floats values) { return bits(values + kRounder) - bits(broadcast(kRounder)); }

// Sums of halves, of quarters, ...: lane i with lane i + 8, then i + 4, i + 2, i + 1.
HGT_INLINE float sum(Floats values) {
  float lanes[kLanes];
  store(lanes, values);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// sum() of 16 vectors, as the lanes of one.
HGT_INLINE Floats sums(Floats (&rows)[kLanes]) {
  for (int i = 0; i < 8; ++i) {
    const Floats a = rows[2 * i], b = rows[2 * i + 1];
    rows[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
              __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  for (int i = 0; i < 4; ++i) {
    const Floats a = rows[2 * i], b = rows[2 * i + 1];
    rows[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
              __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  for (int i = 0; i < 2; ++i) {
    const Floats a = rows[2 * i], b = rows[2 * i + 1];
    rows[i] = __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
              __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  }
  const Floats a = rows[0], b = rows[1];
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

HGT_INLINE float max(Floats values) {
  float lanes[kLanes], largest;
  store(lanes, values);
  largest = lanes[0];
  for (int i = 1; i < kLanes; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

// e^x within 1.3 units in the last place; 0 below -87.33, e^88.37 above that, NaN for NaN.
//
// x = n · ln 2 + r with |r| ≤ ln 2 / 2; e^x = 2^n · e^r, and e^r = 1 + r + r² · p(r), where p is the
// polynomial of degree 4 through (e^r - 1 - r) / r² at Chebyshev's nodes. ln 2 is 355/512, by which n is
// multiplied exactly, and the rest.
HGT_INLINE Floats exp(Floats x) {
  const Integers is_low = x < -87.33f;
  x = x > 88.37f ? broadcast(88.37f) : x;
  const Floats shifted = x * 1.44269504f + kRounder;
  const Floats n = shifted - kRounder;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = r * 0.0013933731243014336f + 0.008363235741853714f;
  p = p * r + 0.041666463017463684f;
  p = p * r + 0.16666576266288757f;
  p = p * r + 0.5f;
  const Floats of_r = (p * r) * r + r + 1.0f;
  const Floats power = from_bits((bits(shifted) - bits(broadcast(kRounder)) + 127) << 23);
  return from_bits(bits(of_r * power) & ~is_low);
}

// x / 2 · (1 + tanh u) = x / (1 + e^-2u) with u = √(2/π) · (x + 0.044715 · x³): transformers' gelu_new.
HGT_INLINE Floats gelu(Floats x) {
  const Floats u = 0.7978845608f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exp(-2.0f * u));
}

}  // namespace

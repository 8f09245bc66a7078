// Attention of one head for a run of tokens: consecutive positions of one slot.
//
// score(j) = q · k(j) / √head_size for all positions j up to the token's own; weights = softmax(scores);
// output = Σ weight(j) · v(j) / Σ weight(j). Positions come in blocks of kBlock, whose sums are brought to
// the largest score so far (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). All
// sums run in the order of positions: what a token gets does not depend on how many tokens a run has.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

using hgt::Attention;

constexpr int64_t kBlock = 1024;  // positions

// size: head_size where it is known to the compiler, else 0.
template <class Number, int size>
struct Head {
  const int64_t head_size, stride;
  Number *keys, *values;  // [max_length, head_size]

  HGT_INLINE Head(const Attention& all, int64_t run, int64_t head)
      : head_size(size != 0 ? size : all.head_size), stride(all.max_length * head_size) {
    const int64_t slot = all.slots[all.run_starts[run]];
    keys = static_cast<Number*>(all.keys) + (slot * all.heads + head) * stride;
    values = static_cast<Number*>(all.values) + (slot * all.heads + head) * stride;
  }

  HGT_INLINE void append(const float* key, const float* value, int64_t position) {
    for (int64_t i = 0; i < head_size; i += kLanes) {
      store(keys + position * head_size + i, load(key + i, head_size - i), head_size - i);
      store(values + position * head_size + i, load(value + i, head_size - i), head_size - i);
    }
  }

  HGT_INLINE void prefetch(const Number* vector) {
    for (int64_t i = 0; i < head_size; i += 64 / static_cast<int64_t>(sizeof(Number)))
      __builtin_prefetch(vector + i);
  }

  // q · k of 16 positions from `first`; those from `last` on get 0.
  HGT_INLINE Floats dots(const float* query, int64_t first, int64_t last) {
    Floats products[kLanes];
    for (int64_t j = 0; j < kLanes; ++j) {
      products[j] = Floats{};
      if (first + j >= last) continue;
      const int64_t place = (first + j) * head_size;
      prefetch(values + place);
      for (int64_t i = 0; i < head_size; i += kLanes) {
        products[j] += load(query + i, head_size - i) * load(keys + place + i, head_size - i);
      }
    }
    return sums(products);
  }

  // output += Σ weight(j) · v(j), where weights begins with that of `first`.
  HGT_INLINE void add_values(const float* weights, int64_t first, int64_t last, float* output) {
    constexpr int kVectors = size != 0 && size % kLanes == 0 ? size / kLanes : 1;
    for (int64_t i = 0; i < head_size; i += kVectors * kLanes) {
      Floats totals[kVectors];
      for (int v = 0; v < kVectors; ++v)
        totals[v] = load(output + i + v * kLanes, head_size - i - v * kLanes);
      for (int64_t j = first; j < last; ++j) {
        const int64_t place = j * head_size + i;
        prefetch(keys + stride + place);  // of the next head, whose turn is likely to come next
        for (int v = 0; v < kVectors; ++v) {
          const Floats value = load(values + place + v * kLanes, head_size - i - v * kLanes);
          totals[v] += weights[j - first] * value;
        }
      }
      for (int v = 0; v < kVectors; ++v)
        store(output + i + v * kLanes, totals[v], head_size - i - v * kLanes);
    }
  }

  HGT_INLINE void attend(const float* query, int64_t length, float* output) {
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(head_size));
    const Integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    float peak = -__builtin_inff(), total = 0;
    for (int64_t i = 0; i < head_size; ++i) output[i] = 0;
    for (int64_t start = 0; start < length; start += kBlock) {
      const int64_t stop = start + kBlock < length ? start + kBlock : length;
      alignas(64) float scores[kBlock];
      Floats largest = broadcast(peak);
      for (int64_t first = start; first < stop; first += kLanes) {
        const Integers is_there = lane < static_cast<int32_t>(stop - first);
        const Floats some = is_there ? dots(query, first, stop) * scale : broadcast(-__builtin_inff());
        store(scores + first - start, some);
        largest = some > largest ? some : largest;
      }
      const float new_peak = max(largest);
      if (start > 0) {
        const float factor = exp(broadcast(peak - new_peak))[0];
        total *= factor;
        for (int64_t i = 0; i < head_size; ++i) output[i] *= factor;
      }
      peak = new_peak;
      Floats totals{};
      for (int64_t first = 0; first < stop - start; first += kLanes) {
        const Floats weights = exp(load(scores + first) - peak);
        store(scores + first, weights);
        totals += weights;
      }
      total += sum(totals);
      add_values(scores, start, stop, output);
    }
    for (int64_t i = 0; i < head_size; i += kLanes) {
      store(output + i, load(output + i, head_size - i) / total, head_size - i);
    }
  }
};

template <class Number, int size>
void attend_run(const Attention& attention, int64_t run, int64_t head) {
  Head<Number, size> one(attention, run, head);
  const int64_t head_size = one.head_size, width = attention.heads * head_size;
  const int64_t first = attention.run_starts[run], last = attention.run_starts[run + 1];
  for (int64_t token = first; token < last; ++token) {
    const float* query = attention.qkv + token * 3 * width + head * head_size;
    one.append(query + width, query + 2 * width, attention.positions[token]);
    one.attend(query, attention.positions[token] + 1, attention.output + token * width + head * head_size);
  }
}

template <class Number>
void attend_in(const Attention& attention, int64_t run, int64_t head) {
  if (attention.head_size == 64) return attend_run<Number, 64>(attention, run, head);
  attend_run<Number, 0>(attention, run, head);
}

void attend(const Attention& attention, int64_t run, int64_t head) {
  if (attention.is_half) return attend_in<Half>(attention, run, head);
  attend_in<float>(attention, run, head);
}

}  // namespace

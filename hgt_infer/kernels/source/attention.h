// Attention of one head for a run of tokens: consecutive positions of one slot.
//
// score(j) = q · k(j) / √head_size for all positions j up to the token's own; weights = softmax(scores);
// output = Σ weight(j) · v(j) / Σ weight(j). Positions come in pieces of kPiece, whose sums are brought to
// the largest score so far (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). All
// sums run in the order of positions, whether a token comes alone or with others, which only share what is
// read from the cache.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

using hgt::Attention;
using hgt::kBlock;

constexpr int64_t kPiece = 1024;  // positions, a multiple of kBlock
constexpr int kTokens = 4;        // that read the cache together

// size: head_size where it is known to the compiler, else 0.
template <class Number, int size>
struct Head {
  const int64_t head_size, block_stride, value_offset;
  Number* const cache;

  HGT_INLINE Head(const Attention& all, int64_t run, int64_t head)
      : head_size(size != 0 ? size : all.head_size),
        block_stride(all.block_stride),
        value_offset(all.heads * kBlock * head_size),
        cache(static_cast<Number*>(all.cache) + all.slots[all.run_starts[run]] * all.slot_stride +
              head * kBlock * head_size) {}

  HGT_INLINE Number* key(int64_t position) const {
    return cache + position / kBlock * block_stride + position % kBlock * head_size;
  }
  HGT_INLINE Number* value(int64_t position) const { return key(position) + value_offset; }

  HGT_INLINE void append(const float* new_key, const float* new_value, int64_t position) const {
    for (int64_t i = 0; i < head_size; i += kLanes) {
      store(key(position) + i, load(new_key + i, head_size - i), head_size - i);
      store(value(position) + i, load(new_value + i, head_size - i), head_size - i);
    }
  }

  HGT_INLINE void prefetch(const Number* vector) const {
    for (int64_t i = 0; i < head_size; i += 64 / static_cast<int64_t>(sizeof(Number))) {
      __builtin_prefetch(vector + i);
    }
  }

  // q · k of the 16 positions of a block, for each token; those from `last` on get 0.
  template <int tokens>
  HGT_INLINE void dots(const float* query, int64_t stride, int64_t first, int64_t last,
                       Floats (&scores)[tokens]) const {
    Floats products[tokens][kLanes];
    const Number* keys = key(first);
    for (int64_t j = 0; j < kBlock; ++j) {
      Floats totals[tokens] = {};
      if (first + j < last) {
        prefetch(keys + value_offset + j * head_size);
        for (int64_t i = 0; i < head_size; i += kLanes) {
          const Floats some = load(keys + j * head_size + i, head_size - i);
          for (int t = 0; t < tokens; ++t) totals[t] += load(query + t * stride + i, head_size - i) * some;
        }
      }
      for (int t = 0; t < tokens; ++t) products[t][j] = totals[t];
    }
    for (int t = 0; t < tokens; ++t) scores[t] = sums(products[t]);
  }

  // output += weight(j) · v(j) for positions first … last - 1, for each token; weights begins with that of
  // `first`.
  template <int tokens>
  HGT_INLINE void add_values(const float* weights, int64_t first, int64_t last, float* output,
                             int64_t stride) const {
    constexpr int kVectors = size != 0 && size % kLanes == 0 ? size / kLanes : 1;
    for (int64_t i = 0; i < head_size; i += kVectors * kLanes) {
      Floats totals[tokens][kVectors];
      for (int t = 0; t < tokens; ++t) {
        for (int v = 0; v < kVectors; ++v) {
          totals[t][v] = load(output + t * stride + i + v * kLanes, head_size - i - v * kLanes);
        }
      }
      for (int64_t j = first; j < last; ++j) {
        const Number* values = value(j) + i;
        prefetch(values - value_offset + kBlock * head_size);  // the next head's key: its turn is likely next
        Floats some[kVectors];
        for (int v = 0; v < kVectors; ++v) some[v] = load(values + v * kLanes, head_size - i - v * kLanes);
        for (int t = 0; t < tokens; ++t) {
          for (int v = 0; v < kVectors; ++v) totals[t][v] += weights[t * kPiece + j - first] * some[v];
        }
      }
      for (int t = 0; t < tokens; ++t) {
        for (int v = 0; v < kVectors; ++v) {
          store(output + t * stride + i + v * kLanes, totals[t][v], head_size - i - v * kLanes);
        }
      }
    }
  }

  // Tokens at positions `position`, `position` + 1, …; from one's query to the next, and so for outputs, it
  // is a stride.
  template <int tokens>
  HGT_INLINE void attend(const float* query, int64_t query_stride, int64_t position, float* output,
                         int64_t output_stride) const {
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(head_size));
    const Integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int64_t length = position + tokens;
    float peaks[tokens], totals[tokens] = {};
    for (int t = 0; t < tokens; ++t) {
      peaks[t] = -__builtin_inff();
      for (int64_t i = 0; i < head_size; ++i) output[t * output_stride + i] = 0;
    }
    for (int64_t start = 0; start < length; start += kPiece) {
      const int64_t stop = start + kPiece < length ? start + kPiece : length;
      alignas(64) float weights[tokens][kPiece];
      Floats largest[tokens];
      for (int t = 0; t < tokens; ++t) largest[t] = broadcast(peaks[t]);
      for (int64_t first = start; first < stop; first += kBlock) {
        Floats scores[tokens];
        dots(query, query_stride, first, stop, scores);
        for (int t = 0; t < tokens; ++t) {
          const Integers is_seen = lane <= static_cast<int32_t>(position + t - first);
          const Floats seen = is_seen ? scores[t] * scale : broadcast(-__builtin_inff());
          store(weights[t] + first - start, seen);
          largest[t] = seen > largest[t] ? seen : largest[t];
        }
      }
      for (int t = 0; t < tokens; ++t) {
        const float peak = max(largest[t]);
        if (start > 0) {
          const float factor = exp(broadcast(peaks[t] - peak))[0];
          totals[t] *= factor;
          for (int64_t i = 0; i < head_size; ++i) output[t * output_stride + i] *= factor;
        }
        peaks[t] = peak;
        Floats sum_of_weights{};
        for (int64_t i = 0; i < stop - start; i += kLanes) {
          const Floats some = exp(load(weights[t] + i) - peak);
          store(weights[t] + i, some);
          sum_of_weights += some;
        }
        totals[t] += sum(sum_of_weights);
      }
      // What all of them see, and what the later ones see alone.
      const int64_t shared = position + 1 < stop ? position + 1 : stop;
      if (start < shared) add_values<tokens>(weights[0], start, shared, output, output_stride);
      for (int t = 1; t < tokens; ++t) {
        const int64_t first = start < shared ? shared : start,
                      last = position + t + 1 < stop ? position + t + 1 : stop;
        if (first < last)
          add_values<1>(weights[t] + first - start, first, last, output + t * output_stride, 0);
      }
    }
    for (int t = 0; t < tokens; ++t) {
      float* result = output + t * output_stride;
      for (int64_t i = 0; i < head_size; i += kLanes) {
        store(result + i, load(result + i, head_size - i) / totals[t], head_size - i);
      }
    }
  }
};

template <class Number, int size>
void attend_run(const Attention& attention, int64_t run, int64_t head) {
  const Head<Number, size> one(attention, run, head);
  const int64_t width = attention.heads * one.head_size;
  const int64_t first = attention.run_starts[run], last = attention.run_starts[run + 1];
  const auto query = [&](int64_t token) { return attention.qkv + token * 3 * width + head * one.head_size; };
  const auto output = [&](int64_t token) { return attention.output + token * width + head * one.head_size; };
  for (int64_t token = first; token < last; ++token) {
    one.append(query(token) + width, query(token) + 2 * width, attention.positions[token]);
  }
  int64_t token = first;
  for (; token + kTokens <= last; token += kTokens) {
    one.template attend<kTokens>(query(token), 3 * width, attention.positions[token], output(token), width);
  }
  for (; token < last; ++token) {
    one.template attend<1>(query(token), 3 * width, attention.positions[token], output(token), width);
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

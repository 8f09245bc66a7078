// The largest numbers of a row, in order; of equal ones the first. NaN counts as larger than all.
//
// A row is cut into groups of kGroupSize numbers. The count-th largest of the groups' maxima is a bound that
// at least `count` numbers reach: only groups whose maximum reaches it are looked at, and those are hardly
// more than `count`.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

using hgt::Selection;

constexpr int64_t kGroupSize = 64;              // numbers, kLanes apart from each other
constexpr int64_t kSpan = kGroupSize * kLanes;  // that kLanes groups lie in

// Whole numbers in the order of the numbers.
HGT_INLINE Integers ordered(Floats values) {
  const Integers pattern = bits(values + 0.0f);  // -0 is 0
  const Integers order = pattern ^ ((pattern >> 31) & 0x7fffffff);
  return (pattern & 0x7fffffff) > 0x7f800000 ? Integers{} + 0x7fffffff : order;
}

HGT_INLINE int32_t ordered(float value) {
  value += 0.0f;
  int32_t pattern;
  memcpy(&pattern, &value, sizeof pattern);
  return (pattern & 0x7fffffff) > 0x7f800000 ? 0x7fffffff : pattern ^ ((pattern >> 31) & 0x7fffffff);
}

// A number and its place as one whole number: larger numbers and, of equal ones, earlier places are larger.
HGT_INLINE uint64_t packed(int32_t order, int64_t place) {
  const uint64_t above = static_cast<uint32_t>(order) ^ 0x80000000u;
  return above << 32 | (0xffffffffu - static_cast<uint64_t>(place));
}

// The `count` largest of what is pushed: a heap with the smallest of them at its root.
class Largest {
 public:
  Largest(uint64_t* heap, int64_t count) : heap_(heap), count_(count) {}

  HGT_INLINE void push(uint64_t value) {
    if (size_ < count_) {
      int64_t at = size_++;
      for (; at > 0 && heap_[(at - 1) / 2] > value; at = (at - 1) / 2) heap_[at] = heap_[(at - 1) / 2];
      heap_[at] = value;
    } else if (value > heap_[0]) {
      sink(value);
    }
  }
  uint64_t smallest() const { return heap_[0]; }

  // The largest one last put where the heap ends, and so on: the heap becomes a list in descending order.
  void sort() {
    const int64_t size = size_;
    while (size_ > 1) {
      const uint64_t root = heap_[0];
      const uint64_t last = heap_[--size_];
      sink(last);
      heap_[size_] = root;
    }
    size_ = size;
  }

 private:
  HGT_INLINE void sink(uint64_t value) {
    int64_t at = 0;
    for (int64_t child = 1; child < size_; child = 2 * at + 1) {
      if (child + 1 < size_ && heap_[child + 1] < heap_[child]) ++child;
      if (heap_[child] >= value) break;
      heap_[at] = heap_[child];
      at = child;
    }
    heap_[at] = value;
  }

  uint64_t* heap_;
  int64_t count_, size_ = 0;
};

void select(const Selection& selection, int64_t row) {
  const int64_t size = selection.size, spans = hgt::divide_up(size, kSpan);
  const float* numbers = selection.input + row * size;
  int32_t* maxima = selection.maxima + row * spans * kLanes;
  uint64_t* heap = selection.heaps + row * selection.count;

  Largest of_maxima(heap, selection.count);
  for (int64_t span = 0; span < spans; ++span) {
    Integers largest = Integers{} + INT32_MIN;
    const int64_t stop = span * kSpan + kSpan < size ? span * kSpan + kSpan : size;
    for (int64_t i = span * kSpan; i < stop; i += kLanes) {
      Integers order = ordered(load(numbers + i, stop - i));
      if (stop - i < kLanes) {
        const Integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        order = lane < static_cast<int32_t>(stop - i) ? order : largest;
      }
      largest = order > largest ? order : largest;
    }
    memcpy(maxima + span * kLanes, &largest, sizeof largest);
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      if (span * kSpan + lane < size)
        of_maxima.push(packed(maxima[span * kLanes + lane], span * kLanes + lane));
    }
  }
  // Fewer groups than numbers are wanted: all of them are looked at.
  const bool is_bounded = (spans - 1) * kLanes >= selection.count;
  const int32_t bound =
      is_bounded ? static_cast<int32_t>((of_maxima.smallest() >> 32) ^ 0x80000000u) : INT32_MIN;

  Largest of_all(heap, selection.count);
  for (int64_t group = 0; group < spans * kLanes; ++group) {
    if (maxima[group] < bound) continue;
    const int64_t first = group / kLanes * kSpan + group % kLanes;
    const int64_t stop = first + kSpan - group % kLanes < size ? first + kSpan - group % kLanes : size;
    for (int64_t i = first; i < stop; i += kLanes) {
      const int32_t order = ordered(numbers[i]);
      if (order >= bound) of_all.push(packed(order, i));
    }
  }
  of_all.sort();
  for (int64_t i = 0; i < selection.count; ++i) {
    const int64_t place = static_cast<int64_t>(0xffffffffu - (heap[i] & 0xffffffffu));
    selection.values[row * selection.count + i] = numbers[place];
    selection.places[row * selection.count + i] = place;
  }
}

}  // namespace

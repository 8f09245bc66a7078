// A token's embedding, which is its column of the output layer, and the embedding of its position.
#pragma once

#include "kernels.h"

namespace {

void embed(const hgt::Embedding& embedding, int64_t token) {
  const int64_t size = embedding.size, id = embedding.token_ids[token];
  const int64_t column = id % hgt::kPanel, panel = id / hgt::kPanel;
  const float* position = embedding.position_weight + embedding.positions[token] * size;
  float* output = embedding.output + token * size;
  if (embedding.scale != nullptr) {
    const int64_t groups = hgt::divide_up(size, hgt::kGroup);
    const auto* weight =
        static_cast<const int8_t*>(embedding.weight) + panel * groups * hgt::kPanel * hgt::kGroup;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t place = ((i / hgt::kGroup) * hgt::kPanel + column) * hgt::kGroup + i % hgt::kGroup;
      output[i] = static_cast<float>(weight[place]) * embedding.scale[id] + position[i];
    }
  } else {
    const auto* weight = static_cast<const float*>(embedding.weight) + panel * size * hgt::kPanel;
    for (int64_t i = 0; i < size; ++i) output[i] = weight[i * hgt::kPanel + column] + position[i];
  }
}

}  // namespace

// The operators of domain "hgt_infer" for ONNX Runtime's CPU provider, and the choice of the instruction set.
//
// What a graph gives is checked here: shapes and types of the constants when a session is made, the others
// and all indices in every run. Work is split by ONNX Runtime's own threads; how it is split changes no
// result.

#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "onnxruntime_api.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(_WIN32)
#define HGT_EXPORT extern "C" __declspec(dllexport)
#else
#define HGT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace hgt {
namespace {

Api api;
const Kernels* chosen = nullptr;  // of the sessions that are made from now on

// What the processor has

#if defined(__x86_64__)
struct Cpuid {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  explicit Cpuid(unsigned leaf) { __get_cpuid_count(leaf, 0, &eax, &ebx, &ecx, &edx); }
};

constexpr bool has(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

// The registers that the operating system saves, as bits of XCR0.
unsigned saved_registers() {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

bool has_avx2() {
  const unsigned osxsave_fma_f16c = 1u << 27 | 1u << 12 | 1u << 29;
  const unsigned avx2_bmi1_bmi2 = 1u << 5 | 1u << 3 | 1u << 8;
  return has(Cpuid(1).ecx, osxsave_fma_f16c) && has(Cpuid(7).ebx, avx2_bmi1_bmi2) &&
         has(saved_registers(), 0x6);
}

bool has_avx512() {
  const unsigned f_dq_cd_bw_vl = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
  const unsigned vnni = 1u << 11;
  const Cpuid leaf(7);
  return has_avx2() && has(leaf.ebx, f_dq_cd_bw_vl) && has(leaf.ecx, vnni) && has(saved_registers(), 0xe6);
}
#endif

struct InstructionSet {
  const Kernels* kernels;
  bool (*is_there)();
};

// The fastest one first.
const InstructionSet instruction_sets[] = {
#if defined(__x86_64__)
    {&avx512_kernels, has_avx512},
    {&avx2_kernels, has_avx2},
#endif
    {&portable_kernels, [] { return true; }},
};

// Memory and errors

// Memory for the time of a run. What is given back is kept for the next run: taking it from the system anew,
// page by page, would cost a tenth of a step.
class Buffer {
 public:
  explicit Buffer(int64_t bytes) {
    for (auto& kept : kept_) {
      block_ = __atomic_exchange_n(&kept, nullptr, __ATOMIC_ACQ_REL);
      if (block_ != nullptr && block_->bytes >= bytes) return;
      free(block_);
    }
    block_ = static_cast<Block*>(malloc(sizeof(Block) + static_cast<size_t>(bytes)));
    if (block_ != nullptr) block_->bytes = bytes;
  }
  ~Buffer() {
    for (auto& kept : kept_) {
      Block* nothing = nullptr;
      if (__atomic_compare_exchange_n(&kept, &nothing, block_, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        return;
    }
    free(block_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  bool is_there() const { return block_ != nullptr; }
  char* data() const { return reinterpret_cast<char*>(block_ + 1); }

 private:
  struct alignas(16) Block {
    int64_t bytes;
  };
  static Block* kept_[4];
  Block* block_;
};
Buffer::Block* Buffer::kept_[4] = {};

Status* fail(const char* message) { return api.error(ErrorCode::kInvalidArgument, message); }

#define HGT_TRY(expression)                                          \
  do {                                                               \
    if (::hgt::Status* status = (expression); status) return status; \
  } while (false)

constexpr size_t kMaxDimensions = 7;

struct Tensor {
  const Value* value = nullptr;
  void* data = nullptr;
  ElementType type = ElementType::kAny;
  size_t num_dimensions = 0;
  int64_t dimensions[kMaxDimensions] = {};

  bool is_there() const { return value != nullptr; }
  template <class Number>
  const Number* as() const {
    return static_cast<const Number*>(data);
  }
  bool is(ElementType wanted, size_t count) const { return type == wanted && num_dimensions == count; }
  bool is_vector(ElementType wanted, int64_t size) const { return is(wanted, 1) && dimensions[0] == size; }

  Status* read() {
    Shape* shape = nullptr;
    HGT_TRY(api.shape(value, &shape));
    Status* status = api.element_type(shape, &type);
    if (status == nullptr) status = api.num_dimensions(shape, &num_dimensions);
    if (status == nullptr && num_dimensions > kMaxDimensions)
      status = fail("a tensor of more than 7 dimensions");
    if (status == nullptr) status = api.dimensions(shape, dimensions, num_dimensions);
    api.release(shape);
    if (status != nullptr) return status;
    return api.data(value, &data);
  }
};

Status* read_constant(const KernelInfo* info, size_t index, Tensor* tensor) {
  int is_constant = 0;
  HGT_TRY(api.constant_input(info, index, &is_constant, &tensor->value));
  if (is_constant == 0 || !tensor->is_there()) {
    tensor->value = nullptr;
    return nullptr;
  }
  return tensor->read();
}

Status* read_input(const KernelContext* context, size_t index, Tensor* tensor) {
  HGT_TRY(api.input(context, index, &tensor->value));
  if (!tensor->is_there()) return nullptr;
  return tensor->read();
}

template <class Number>
Status* make_output(KernelContext* context, const int64_t* shape, size_t count, Number** data,
                    size_t index = 0) {
  Value* value = nullptr;
  HGT_TRY(api.output(context, index, shape, count, &value));
  void* untyped = nullptr;
  HGT_TRY(api.data(value, &untyped));
  *data = static_cast<Number*>(untyped);
  return nullptr;
}

bool is_within(const Tensor& indices, int64_t end) {
  const int64_t count = indices.dimensions[0];
  for (int64_t i = 0; i < count; ++i) {
    if (indices.as<int32_t>()[i] < 0 || indices.as<int32_t>()[i] >= end) return false;
  }
  return true;
}

// Calls function(i) for 0 ≤ i < count, on several threads where the work is worth it.
template <class Function>
Status* parallel(const KernelContext* context, int64_t count, bool is_worth_it, const Function& function) {
  if (count > 1 && is_worth_it) {
    const auto call = [](void* argument, size_t i) {
      (*static_cast<const Function*>(argument))(static_cast<int64_t>(i));
    };
    return api.parallel_for(context, call, static_cast<size_t>(count), const_cast<Function*>(&function));
  }
  for (int64_t i = 0; i < count; ++i) function(i);
  return nullptr;
}

// Operators

struct LinearOp {
  static constexpr const char* kName = "Linear";
  enum Input { kInput, kWeight, kScale, kColumnSums, kBias, kNormWeight, kNormBias, kResidual, kNumInputs };
  static constexpr ElementType kTypes[] = {
      ElementType::kFloat, ElementType::kAny,   ElementType::kFloat, ElementType::kInt32,
      ElementType::kFloat, ElementType::kFloat, ElementType::kFloat, ElementType::kFloat,
  };
  static constexpr size_t kNumRequired = 2;
  static constexpr ElementType kOutputTypes[] = {ElementType::kFloat};

  const Kernels* kernels = chosen;
  Linear linear = {};

  Status* create(const KernelInfo* info) {
    int64_t has_gelu = 0;
    HGT_TRY(api.attribute(info, "num_outputs", &linear.outputs));
    HGT_TRY(api.attribute(info, "gelu", &has_gelu));
    HGT_TRY(api.attribute(info, "shift", &linear.shift));
    HGT_TRY(api.attribute(info, "epsilon", &linear.epsilon));
    linear.has_gelu = has_gelu != 0;
    Tensor weight, scale, column_sums, bias, norm_weight, norm_bias;
    HGT_TRY(read_constant(info, kWeight, &weight));
    HGT_TRY(read_constant(info, kScale, &scale));
    HGT_TRY(read_constant(info, kColumnSums, &column_sums));
    HGT_TRY(read_constant(info, kBias, &bias));
    HGT_TRY(read_constant(info, kNormWeight, &norm_weight));
    HGT_TRY(read_constant(info, kNormBias, &norm_bias));
    const int64_t outputs = linear.outputs, panels = divide_up(outputs, kPanel);
    const int64_t* shape = weight.dimensions;
    const bool is_int8 = weight.is(ElementType::kInt8, 4);
    if (outputs < 1 || !(is_int8 || weight.is(ElementType::kFloat, 3))) {
      return fail("Linear: weight must be panels of int8 or float");
    }
    if (shape[0] != panels || shape[1] < 1 || shape[2] != kPanel || (is_int8 && shape[3] != kGroup)) {
      return fail(
          "Linear: weight must be [panels, inputs, 32] of float or [panels, inputs / 4, 32, 4] of int8");
    }
    groups_ = shape[1];
    if (is_int8 && !(scale.is_vector(ElementType::kFloat, outputs) &&
                     column_sums.is_vector(ElementType::kInt32, outputs))) {
      return fail("Linear: scale and column_sums must have a value for each output");
    }
    if (bias.is_there() && !bias.is_vector(ElementType::kFloat, outputs)) {
      return fail("Linear: bias must have a value for each output");
    }
    const int64_t size = norm_weight.dimensions[0];
    if (norm_weight.is_there() && !(norm_weight.is_vector(ElementType::kFloat, size) &&
                                    norm_bias.is_vector(ElementType::kFloat, size))) {
      return fail("Linear: norm_weight and norm_bias must have a value for each input");
    }
    norm_size_ = size;
    linear.weight = weight.data;
    linear.scale = is_int8 ? scale.as<float>() : nullptr;
    linear.column_sums = column_sums.as<int32_t>();
    linear.bias = bias.as<float>();
    linear.norm_weight = norm_weight.as<float>();
    linear.norm_bias = norm_bias.as<float>();
    return nullptr;
  }

  Status* compute(KernelContext* context) const {
    Tensor input, residual;
    HGT_TRY(read_input(context, kInput, &input));
    HGT_TRY(read_input(context, kResidual, &residual));
    Linear run = linear;
    run.rows = input.dimensions[0];
    run.inputs = input.dimensions[1];
    const bool is_int8 = run.scale != nullptr;
    const int64_t stored_size = is_int8 ? divide_up(run.inputs, kGroup) : run.inputs;
    if (!input.is(ElementType::kFloat, 2) || stored_size != groups_ ||
        (run.norm_weight != nullptr && run.inputs != norm_size_)) {
      return fail("Linear: input must be [rows, inputs], as many inputs as weight has");
    }
    if (residual.is_there() && !(residual.is(ElementType::kFloat, 2) && residual.dimensions[0] == run.rows &&
                                 residual.dimensions[1] == run.outputs)) {
      return fail("Linear: residual must be [rows, outputs]");
    }
    const int64_t shape[] = {run.rows, run.outputs};
    HGT_TRY(make_output(context, shape, 2, &run.output));
    if (run.rows == 0) return nullptr;
    run.input = input.as<float>();
    run.residual = residual.as<float>();

    const int64_t padded = divide_up(run.inputs, kGroup) * kGroup;
    const int64_t normalized_bytes = run.norm_weight != nullptr ? run.rows * run.inputs * 4 : 0;
    const int64_t scale_bytes = is_int8 ? run.rows * 4 : 0;
    const int64_t quantized_bytes =
        is_int8 ? run.rows * padded * static_cast<int64_t>(kernels->quantized_bytes) : 0;
    const Buffer buffer(normalized_bytes + scale_bytes + quantized_bytes);
    if (!buffer.is_there()) return api.error(ErrorCode::kFail, "Linear: no memory");
    run.normalized = reinterpret_cast<float*>(buffer.data());
    run.input_scales = reinterpret_cast<float*>(buffer.data() + normalized_bytes);
    run.quantized = buffer.data() + normalized_bytes + scale_bytes;
    if (is_int8 || run.norm_weight != nullptr) {
      const auto prepare = [&](int64_t row) { kernels->prepare_row(run, row); };
      HGT_TRY(parallel(context, run.rows, run.rows * run.inputs >= kWorthThreads, prepare));
    }
    // Panels are read once for each chunk of rows; the rows of a chunk stay in a core's cache meanwhile.
    const int64_t panels = divide_up(run.outputs, kPanel), chunks = divide_up(run.rows, kChunkRows);
    const int64_t panels_at_once = divide_up(panels, kMaxItems), items = divide_up(panels, panels_at_once);
    const auto multiply = [&](int64_t item) {
      const int64_t first_row = item / items * kChunkRows, first_panel = item % items * panels_at_once;
      const int64_t last_row = first_row + kChunkRows < run.rows ? first_row + kChunkRows : run.rows;
      for (int64_t panel = first_panel; panel < first_panel + panels_at_once && panel < panels; ++panel) {
        kernels->multiply(run, panel, first_row, last_row);
      }
    };
    const bool is_worth_it = run.rows * run.inputs * run.outputs >= 8 * kWorthThreads;
    return parallel(context, chunks * items, is_worth_it, multiply);
  }

 private:
  static constexpr int64_t kWorthThreads = 4096;
  static constexpr int64_t kChunkRows = 96;
  static constexpr int64_t kMaxItems = 128;
  int64_t groups_ = 0, norm_size_ = 0;
};

struct AttentionOp {
  static constexpr const char* kName = "Attention";
  enum Input { kQkv, kCache, kSlots, kPositions, kNumInputs };
  static constexpr ElementType kTypes[] = {ElementType::kFloat, ElementType::kAny, ElementType::kInt32,
                                           ElementType::kInt32};
  static constexpr size_t kNumRequired = kNumInputs;
  static constexpr ElementType kOutputTypes[] = {ElementType::kFloat};

  const Kernels* kernels = chosen;

  Status* create(const KernelInfo* info) { return api.attribute(info, "layer", &layer_); }

  Status* compute(KernelContext* context) const {
    Tensor qkv, cache, slots, positions;
    HGT_TRY(read_input(context, kQkv, &qkv));
    HGT_TRY(read_input(context, kCache, &cache));
    HGT_TRY(read_input(context, kSlots, &slots));
    HGT_TRY(read_input(context, kPositions, &positions));
    // cache: [slots, blocks, layers, 2, heads, 16, head_size]
    const int64_t* shape = cache.dimensions;
    const int64_t tokens = qkv.dimensions[0], num_slots = shape[0];
    Attention run = {};
    run.heads = shape[4];
    run.head_size = shape[6];
    run.is_half = cache.type == ElementType::kFloat16;
    if (cache.num_dimensions != 7 || !(run.is_half || cache.type == ElementType::kFloat) || layer_ < 0 ||
        shape[2] <= layer_ || shape[3] != 2 || shape[5] != kBlock) {
      return fail("Attention: cache must be [slots, blocks, layers, 2, heads, 16, head_size]");
    }
    const int64_t layer_size = 2 * run.heads * kBlock * run.head_size;
    run.block_stride = shape[2] * layer_size;
    run.slot_stride = shape[1] * run.block_stride;
    run.cache = static_cast<char*>(cache.data) + layer_ * layer_size * (run.is_half ? 2 : 4);
    if (!qkv.is(ElementType::kFloat, 2) || qkv.dimensions[1] != 3 * run.heads * run.head_size) {
      return fail("Attention: qkv must be [tokens, 3 * heads * head_size]");
    }
    if (!slots.is_vector(ElementType::kInt32, tokens) || !positions.is_vector(ElementType::kInt32, tokens)) {
      return fail("Attention: slots and positions must have a value for each token");
    }
    if (!is_within(slots, num_slots) || !is_within(positions, shape[1] * kBlock)) {
      return fail("Attention: a slot or a position lies outside the cache");
    }
    const int64_t output_shape[] = {tokens, run.heads * run.head_size};
    HGT_TRY(make_output(context, output_shape, 2, &run.output));
    if (tokens == 0) return nullptr;
    run.qkv = qkv.as<float>();
    run.slots = slots.as<int32_t>();
    run.positions = positions.as<int32_t>();
    const Buffer buffer((tokens + 1) * static_cast<int64_t>(sizeof(int64_t)));
    if (!buffer.is_there()) return api.error(ErrorCode::kFail, "Attention: no memory");
    auto* run_starts = reinterpret_cast<int64_t*>(buffer.data());
    int64_t runs = 0, work = 0;
    for (int64_t token = 0; token < tokens; ++token) {
      const bool goes_on = token > 0 && run.slots[token] == run.slots[token - 1] &&
                           run.positions[token] == run.positions[token - 1] + 1;
      if (!goes_on) run_starts[runs++] = token;
      work += run.positions[token] + 1;
    }
    run_starts[runs] = tokens;
    run.run_starts = run_starts;
    const auto attend = [&](int64_t i) { kernels->attend(run, i / run.heads, i % run.heads); };
    return parallel(context, runs * run.heads, work * run.heads * run.head_size >= 16384, attend);
  }

 private:
  int64_t layer_ = 0;
};

struct EmbeddingOp {
  static constexpr const char* kName = "Embedding";
  enum Input { kTokenIds, kPositions, kWeight, kScale, kPositionWeight, kNumInputs };
  static constexpr ElementType kTypes[] = {ElementType::kInt32, ElementType::kInt32, ElementType::kAny,
                                           ElementType::kFloat, ElementType::kFloat};
  static constexpr size_t kNumRequired = 3;
  static constexpr ElementType kOutputTypes[] = {ElementType::kFloat};

  const Kernels* kernels = chosen;

  Status* create(const KernelInfo* info) {
    Tensor weight, scale, position_weight;
    HGT_TRY(read_constant(info, kWeight, &weight));
    HGT_TRY(read_constant(info, kScale, &scale));
    HGT_TRY(read_constant(info, kPositionWeight, &position_weight));
    HGT_TRY(api.attribute(info, "vocabulary", &vocabulary_));
    const int64_t* shape = weight.dimensions;
    const bool is_int8 = weight.is(ElementType::kInt8, 4) && shape[3] == kGroup &&
                         scale.is_vector(ElementType::kFloat, vocabulary_);
    if (!position_weight.is(ElementType::kFloat, 2))
      return fail("Embedding: position_weight must be a matrix");
    embedding_.size = position_weight.dimensions[1];
    num_positions_ = position_weight.dimensions[0];
    const int64_t stored_size = is_int8 ? divide_up(embedding_.size, kGroup) : embedding_.size;
    if (!(is_int8 || weight.is(ElementType::kFloat, 3)) || shape[0] != divide_up(vocabulary_, kPanel) ||
        shape[1] != stored_size || shape[2] != kPanel) {
      return fail("Embedding: weight must be the panels of the output layer");
    }
    embedding_.weight = weight.data;
    embedding_.scale = is_int8 ? scale.as<float>() : nullptr;
    embedding_.position_weight = position_weight.as<float>();
    return nullptr;
  }

  Status* compute(KernelContext* context) const {
    Tensor token_ids, positions;
    HGT_TRY(read_input(context, kTokenIds, &token_ids));
    HGT_TRY(read_input(context, kPositions, &positions));
    Embedding run = embedding_;
    const int64_t tokens = token_ids.dimensions[0];
    if (!token_ids.is_vector(ElementType::kInt32, tokens) ||
        !positions.is_vector(ElementType::kInt32, tokens)) {
      return fail("Embedding: token_ids and positions must have a value for each token");
    }
    if (!is_within(token_ids, vocabulary_) || !is_within(positions, num_positions_)) {
      return fail("Embedding: a token or a position lies outside the embedding");
    }
    const int64_t shape[] = {tokens, run.size};
    HGT_TRY(make_output(context, shape, 2, &run.output));
    run.token_ids = token_ids.as<int32_t>();
    run.positions = positions.as<int32_t>();
    return parallel(context, tokens, tokens >= 4, [&](int64_t token) { kernels->embed(run, token); });
  }

 private:
  Embedding embedding_ = {};
  int64_t vocabulary_ = 0, num_positions_ = 0;
};

struct TopKOp {
  static constexpr const char* kName = "TopK";
  enum Input { kInput, kCount, kNumInputs };
  static constexpr ElementType kTypes[] = {ElementType::kFloat, ElementType::kInt64};
  static constexpr size_t kNumRequired = kNumInputs;
  static constexpr ElementType kOutputTypes[] = {ElementType::kFloat, ElementType::kInt64};

  const Kernels* kernels = chosen;

  Status* create(const KernelInfo*) { return nullptr; }

  Status* compute(KernelContext* context) const {
    Tensor input, count;
    HGT_TRY(read_input(context, kInput, &input));
    HGT_TRY(read_input(context, kCount, &count));
    if (!input.is(ElementType::kFloat, 2) || !count.is_vector(ElementType::kInt64, 1)) {
      return fail("TopK: input must be a matrix, and the count one number");
    }
    Selection run = {};
    run.size = input.dimensions[1];
    run.count = *count.as<int64_t>();
    const int64_t rows = input.dimensions[0];
    if (run.count < 1 || run.count > run.size || run.size > UINT32_MAX) {
      return fail("TopK: the count must be from 1 to the number of columns");
    }
    const int64_t shape[] = {rows, run.count};
    HGT_TRY(make_output(context, shape, 2, &run.values, 0));
    HGT_TRY(make_output(context, shape, 2, &run.places, 1));
    run.input = input.as<float>();
    const int64_t heap_bytes = rows * run.count * 8;
    const Buffer buffer(heap_bytes + rows * divide_up(run.size, 1024) * 16 * 4);
    if (!buffer.is_there()) return api.error(ErrorCode::kFail, "TopK: no memory");
    run.heaps = reinterpret_cast<uint64_t*>(buffer.data());
    run.maxima = reinterpret_cast<int32_t*>(buffer.data() + heap_bytes);
    return parallel(context, rows, rows * run.size >= 16384, [&](int64_t row) { kernels->select(run, row); });
  }
};

// What ONNX Runtime asks of an operator.
template <class Op>
constexpr CustomOp describe() {
  CustomOp op = {};
  op.version = kApiVersion;
  op.name = [](const CustomOp*) { return Op::kName; };
  op.provider = [](const CustomOp*) { return "CPUExecutionProvider"; };
  op.input_type = [](const CustomOp*, size_t i) { return Op::kTypes[i]; };
  op.num_inputs = [](const CustomOp*) { return static_cast<size_t>(Op::kNumInputs); };
  op.output_type = [](const CustomOp*, size_t i) { return Op::kOutputTypes[i]; };
  op.num_outputs = [](const CustomOp*) { return sizeof(Op::kOutputTypes) / sizeof(ElementType); };
  op.destroy = [](void* kernel) { free(kernel); };
  op.input_presence = [](const CustomOp*, size_t i) {
    return i < Op::kNumRequired ? Presence::kRequired : Presence::kOptional;
  };
  op.output_presence = [](const CustomOp*, size_t) { return Presence::kRequired; };
  op.input_memory = [](const CustomOp*, size_t) { return 0; };
  op.min_variadic_inputs = op.variadic_inputs_alike = [](const CustomOp*) { return 1; };
  op.min_variadic_outputs = op.variadic_outputs_alike = [](const CustomOp*) { return 1; };
  op.create_v2 = [](const CustomOp*, void* const*, const KernelInfo* info, void** kernel) -> Status* {
    Op made;
    HGT_TRY(made.create(info));
    *kernel = malloc(sizeof made);
    if (*kernel == nullptr) return api.error(ErrorCode::kFail, "no memory");
    memcpy(*kernel, &made, sizeof made);
    return nullptr;
  };
  op.compute_v2 = [](void* kernel, KernelContext* context) {
    return static_cast<const Op*>(kernel)->compute(context);
  };
  op.first_version = [](const CustomOp*) { return 1; };
  op.last_version = [](const CustomOp*) { return 1; };
  return op;
}

constexpr CustomOp operators[] = {describe<LinearOp>(), describe<AttentionOp>(), describe<EmbeddingOp>(),
                                  describe<TopKOp>()};

Domain* domain = nullptr;  // for as long as the process runs

}  // namespace
}  // namespace hgt

// Chooses the instruction set of the sessions that are made from now on: "avx512", "avx2", "portable", or ""
// for the fastest one here. Returns the name of the one that is chosen, or null where there is no such one on
// this processor.
HGT_EXPORT const char* hgt_kernels_choose(const char* name) {
  for (const auto& set : hgt::instruction_sets) {
    if ((*name == 0 || strcmp(name, set.kernels->name) == 0) && set.is_there()) {
      hgt::chosen = set.kernels;
      return set.kernels->name;
    }
  }
  return nullptr;
}

// ONNX Runtime calls this for session options that name the library.
HGT_EXPORT hgt::Status* RegisterCustomOps(hgt::SessionOptions* options, const hgt::ApiBase* base) {
  if (!hgt::api.open(base)) return nullptr;  // an ONNX Runtime before 1.22 then misses the operators
  if (hgt::chosen == nullptr) hgt_kernels_choose("");
  if (hgt::domain == nullptr) {
    HGT_TRY(hgt::api.create_domain("hgt_infer", &hgt::domain));
    for (const auto& op : hgt::operators) HGT_TRY(hgt::api.add_to_domain(hgt::domain, &op));
  }
  return hgt::api.add_domain(options, hgt::domain);
}

// The part of ONNX Runtime's C interface that operators.cc uses.
//
// No header comes with ONNX Runtime's Python package. Its C interface only ever grows at the end: the
// position of a function in OrtApi, and of a field in OrtCustomOp, is the same in all versions since
// API_VERSION.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace hgt {

constexpr uint32_t kApiVersion = 22;

struct Status;         // OrtStatus: null is success
struct Value;          // OrtValue
struct KernelInfo;     // OrtKernelInfo
struct KernelContext;  // OrtKernelContext
struct Shape;          // OrtTensorTypeAndShapeInfo
struct Domain;         // OrtCustomOpDomain
struct SessionOptions;

struct ApiBase {
  void (*const* (*get_api)(uint32_t version))();
  const char* (*get_version)();
};

enum class ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum class ElementType : int { kAny = 0, kFloat = 1, kInt8 = 3, kInt32 = 6, kInt64 = 7, kFloat16 = 10 };
enum class Presence : int { kRequired = 0, kOptional = 1 };

// OrtCustomOp. A field that is null is not used by ONNX Runtime.
struct CustomOp {
  uint32_t version;
  void* create;
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  ElementType (*input_type)(const CustomOp*, size_t);
  size_t (*num_inputs)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, size_t);
  size_t (*num_outputs)(const CustomOp*);
  void* compute;
  void (*destroy)(void* kernel);
  Presence (*input_presence)(const CustomOp*, size_t);
  Presence (*output_presence)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);  // 0: the provider's own
  int (*min_variadic_inputs)(const CustomOp*);
  int (*variadic_inputs_alike)(const CustomOp*);
  int (*min_variadic_outputs)(const CustomOp*);
  int (*variadic_outputs_alike)(const CustomOp*);
  Status* (*create_v2)(const CustomOp*, void* const* api, const KernelInfo*, void** kernel);
  Status* (*compute_v2)(void* kernel, KernelContext*);
  void* infer_output_shape;
  int (*first_version)(const CustomOp*);
  int (*last_version)(const CustomOp*);
  void* inplace[2];
  void* alias[2];
};
static_assert(sizeof(void*) != 8 || sizeof(CustomOp) == 208, "not the layout of OrtCustomOp");

// OrtApi: functions by their positions.
class Api {
 public:
  bool open(const ApiBase* base) {
    table_ = base->get_api(kApiVersion);
    return table_ != nullptr;
  }

  Status* error(ErrorCode code, const char* message) const {
    return at<Status* (*)(ErrorCode, const char*)>(0)(code, message);
  }
  Status* create_domain(const char* name, Domain** domain) const {
    return at<Status* (*)(const char*, Domain**)>(26)(name, domain);
  }
  Status* add_to_domain(Domain* domain, const CustomOp* op) const {
    return at<Status* (*)(Domain*, const CustomOp*)>(27)(domain, op);
  }
  Status* add_domain(SessionOptions* options, Domain* domain) const {
    return at<Status* (*)(SessionOptions*, Domain*)>(28)(options, domain);
  }
  Status* data(const Value* value, void** data) const {
    return at<Status* (*)(const Value*, void**)>(51)(value, data);
  }
  Status* element_type(const Shape* shape, ElementType* type) const {
    return at<Status* (*)(const Shape*, ElementType*)>(60)(shape, type);
  }
  Status* num_dimensions(const Shape* shape, size_t* count) const {
    return at<Status* (*)(const Shape*, size_t*)>(61)(shape, count);
  }
  Status* dimensions(const Shape* shape, int64_t* values, size_t count) const {
    return at<Status* (*)(const Shape*, int64_t*, size_t)>(62)(shape, values, count);
  }
  Status* shape(const Value* value, Shape** shape) const {
    return at<Status* (*)(const Value*, Shape**)>(65)(value, shape);
  }
  Status* attribute(const KernelInfo* info, const char* name, float* value) const {
    return at<Status* (*)(const KernelInfo*, const char*, float*)>(85)(info, name, value);
  }
  Status* attribute(const KernelInfo* info, const char* name, int64_t* value) const {
    return at<Status* (*)(const KernelInfo*, const char*, int64_t*)>(86)(info, name, value);
  }
  Status* input(const KernelContext* context, size_t index, const Value** value) const {
    return at<Status* (*)(const KernelContext*, size_t, const Value**)>(90)(context, index, value);
  }
  Status* output(KernelContext* context, size_t index, const int64_t* shape, size_t count,
                 Value** value) const {
    return at<Status* (*)(KernelContext*, size_t, const int64_t*, size_t, Value**)>(91)(context, index, shape,
                                                                                        count, value);
  }
  void release(Status* status) const { at<void (*)(Status*)>(93)(status); }
  void release(Shape* shape) const { at<void (*)(Shape*)>(99)(shape); }
  Status* constant_input(const KernelInfo* info, size_t index, int* is_constant, const Value** value) const {
    return at<Status* (*)(const KernelInfo*, size_t, int*, const Value**)>(249)(info, index, is_constant,
                                                                                value);
  }
  Status* parallel_for(const KernelContext* context, void (*function)(void*, size_t), size_t count,
                       void* argument) const {
    using Function = Status* (*)(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*);
    return at<Function>(274)(context, function, count, 0, argument);
  }

 private:
  using Table = void (*const*)();
  template <class Function>
  Function at(size_t position) const {
    return reinterpret_cast<Function>(reinterpret_cast<void* const*>(table_)[position]);
  }
  Table table_ = nullptr;
};

}  // namespace hgt

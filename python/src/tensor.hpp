// Tensors of any library, as views: where they lie, their sizes, strides and type. Nothing of Torch, JAX or CuPy is
// linked; an object is asked in the way that its type understands.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include <nanobind/nanobind.h>

#include "epistle/types.hpp"
#include "epistle/views.hpp"

namespace epistle::python {

namespace nb = nanobind;

namespace dlpack {
struct ExchangeApi;
}

/// What an element is. Types of which Epistle only knows the size are kOther.
enum class ElementType : std::uint8_t { kBf16, kFp16, kFp32, kFp8E4m3, kInt32, kInt64, kOther };

inline constexpr std::size_t kMaxDimensions = 4;

struct Tensor {
  void* data = nullptr;
  std::size_t num_dimensions = 0;
  std::array<std::int64_t, kMaxDimensions> shape = {};
  std::array<std::int64_t, kMaxDimensions> strides = {};  ///< in elements
  ElementType type = ElementType::kOther;
  std::int64_t element_bytes = 0;
  std::string type_name = {};  ///< for messages
  bool on_cuda = false;
  int ordinal = 0;  ///< of its GPU
  bool read_only = false;
  const dlpack::ExchangeApi* api = nullptr;  ///< of its library, where it has one
  nb::object keep = {};                      ///< what must live while the view is used, besides the tensor itself
};

/// Throws TypeError for what is no tensor.
[[nodiscard]] Tensor read_tensor(const nb::handle& object);

/// The device that a call's tensors must lie on.
struct TensorPlace {
  bool on_cuda = false;
  int ordinal = 0;
};

/// Reads the tensors of one call. What is wrong with them is kept rather than thrown: the call is then made with views
/// that the library refuses, so that the other ranks are told (see call_refused).
class TensorReader {
 public:
  explicit TensorReader(TensorPlace place) : place_(place) {}

  [[nodiscard]] const std::string& complaint() const noexcept { return complaint_; }
  /// Of an argument that is no tensor; the first complaint counts.
  void refuse(const std::string& text) {
    if (complaint_.empty()) complaint_ = text;
  }

  /// Of the first tensor on a GPU, where it has a table for exchange.
  [[nodiscard]] const dlpack::ExchangeApi* library() const noexcept { return library_; }

  /// None gives empty views. Rows are [num_rows, hidden], or [blocks, rows, hidden] where these are the same in memory.
  [[nodiscard]] ConstRows rows(std::string_view name, const nb::handle& object, DType dtype);
  [[nodiscard]] Rows writable_rows(std::string_view name, const nb::handle& object, DType dtype);
  [[nodiscard]] ScalesView scales(std::string_view name, const nb::handle& object, DType payload);
  [[nodiscard]] IdsView ids(std::string_view name, const nb::handle& object);
  [[nodiscard]] WeightsView weights(std::string_view name, const nb::handle& object, std::int64_t num_tokens,
                                    std::int64_t top_k);
  /// fp32 of `num_elements`, one behind the other.
  [[nodiscard]] float* floats(std::string_view name, const nb::handle& object, std::int64_t num_elements,
                              bool writable);
  [[nodiscard]] const std::int32_t* token_count(std::string_view name, const nb::handle& object);
  [[nodiscard]] const std::uint64_t* step_seed(std::string_view name, const nb::handle& object);

 private:
  // False where something is wrong, which is kept.
  [[nodiscard]] bool read(std::string_view name, const nb::handle& object, std::size_t num_dimensions, Tensor& tensor);
  [[nodiscard]] bool read_table(std::string_view name, const nb::handle& object, Tensor& tensor,
                                std::size_t num_dimensions = 2);
  [[nodiscard]] Rows read_rows(std::string_view name, const nb::handle& object, DType dtype, bool writable);
  [[nodiscard]] bool check_writable(std::string_view name, const Tensor& tensor);
  [[nodiscard]] bool complain(std::string_view name, const std::string& text);

  TensorPlace place_;
  const dlpack::ExchangeApi* library_ = nullptr;
  std::string complaint_;
  // What keeps exported tensors alive until the call has been made: a call has no more of them.
  std::array<nb::object, 8> keep_;
  std::size_t num_kept_ = 0;
};

}  // namespace epistle::python

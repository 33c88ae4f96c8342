// What a step that one rank takes alone came to, as a value that can be told to the other ranks.
#pragma once

#include <exception>
#include <new>
#include <optional>
#include <type_traits>
#include <utility>

#include "epistle/error.hpp"

namespace epistle {

/// Why a rank cannot go on; none = it can.
using Complaint = std::optional<Error>;

/// The error of `work`, whatever it threw; or what it returned, where that is a Complaint.
template <typename Work>
[[nodiscard]] Complaint attempt(Work&& work) {
  try {
    if constexpr (std::is_same_v<std::invoke_result_t<Work>, Complaint>) {
      return std::forward<Work>(work)();
    } else {
      std::forward<Work>(work)();
    }
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(ErrorCode::kOutOfMemory, "the memory of this process is exhausted (ulimit -v, or the machine's)");
  } catch (const std::exception& error) {
    return Error(ErrorCode::kSystem, error.what());
  }
  return std::nullopt;
}

}  // namespace epistle

#include "dispatch/call/handle_state.hpp"

#include <fmt/format.h>

namespace epistle {

std::string all_handles_in_use(std::int32_t max_handles) {
  return fmt::format(
      "all {} handles of this dispatcher are in use; let a Handle or a Received go, or raise max_handles", max_handles);
}

}  // namespace epistle

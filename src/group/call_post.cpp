#include "group/call_post.hpp"

#include <string_view>

#include <fmt/format.h>

namespace epistle {
namespace {

constexpr std::array<std::string_view, 18> kNames = {"nothing",
                                                     "barrier",
                                                     "form domains",
                                                     "all_gather",
                                                     "create a shared region",
                                                     "exchange descriptors",
                                                     "ask for memory",
                                                     "create a dispatcher",
                                                     "set up GPU memory",
                                                     "a dispatcher on a GPU",
                                                     "set_placement",
                                                     "prepare",
                                                     "dispatch",
                                                     "combine",
                                                     "dispatch_backward",
                                                     "combine_backward",
                                                     "create a weight store",
                                                     "begin a migration"};

std::string_view name_of(CallKind kind) noexcept {
  const auto idx = static_cast<std::size_t>(kind);
  return idx < kNames.size() ? kNames[idx] : "an unknown call";
}

}  // namespace

std::string Call::describe() const {
  if (subject != 0) {
    const std::string later_step = step != 0 ? fmt::format(", step {}", step + 1) : "";
    return fmt::format("{} (dispatcher {}, handle {}{})", name_of(kind), subject, detail, later_step);
  }
  if (detail != 0) return fmt::format("{} ({} bytes)", name_of(kind), detail);
  return std::string(name_of(kind));
}

}  // namespace epistle

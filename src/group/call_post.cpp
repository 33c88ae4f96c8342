#include "group/call_post.hpp"

#include <string_view>

#include <fmt/format.h>

#include "group/barrier.hpp"

namespace epistle {
namespace {

constexpr std::array<std::string_view, 19> kNames = {"nothing",
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
                                                     "begin a migration",
                                                     "set_mask"};

// Of a call in a word. Handles are counted: the first 2^30 of a dispatcher fit, calls with later ones take the longer
// way.
constexpr int kKindBits = 5;
constexpr int kStepBits = 3;
constexpr int kBufferBits = 4;
constexpr int kSubjectBits = 10;
constexpr int kDetailBits = 30;
static_assert(kKindBits + kStepBits + kBufferBits + kSubjectBits + kDetailBits == kArrivalWordBits);
static_assert(kNames.size() <= std::size_t{1} << kKindBits);

std::string_view name_of(CallKind kind) noexcept {
  const auto idx = static_cast<std::size_t>(kind);
  return idx < kNames.size() ? kNames[idx] : "an unknown call";
}

}  // namespace

std::uint64_t Call::in_a_word() const noexcept {
  if (value != kAnyValue) return 0;
  std::uint64_t word = 0;
  bool fits = true;
  const auto append = [&](std::uint64_t field, int num_bits) {
    fits = fits && field >> num_bits == 0;
    word = word << num_bits | field;
  };
  // A negative one does not fit. What was gathered is left out: nobody compares it.
  append(static_cast<std::uint64_t>(kind), kKindBits);
  append(static_cast<std::uint64_t>(step), kStepBits);
  append(static_cast<std::uint64_t>(buffer), kBufferBits);
  append(subject, kSubjectBits);
  append(detail, kDetailBits);
  return fits ? word : 0;
}

std::string Call::describe() const {
  if (subject != 0) {
    const std::string later_step = step != 0 ? fmt::format(", step {}", step + 1) : "";
    return fmt::format("{} (dispatcher {}, handle {}{})", name_of(kind), subject, detail, later_step);
  }
  if (detail != 0 && kind != CallKind::kSetMask) return fmt::format("{} ({} bytes)", name_of(kind), detail);
  return std::string(name_of(kind));
}

}  // namespace epistle
